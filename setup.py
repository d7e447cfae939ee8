"""Build hook: compiles native/_cpu through cffi; everything else is in pyproject.toml.

Files are compiled side by side, and only those that changed, or that include what changed.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildWhatChanged(build_ext):
    """Compiles the files of an extension on all processors, each by a call of the compiler.

    Objects are kept below build/, where the next build finds them, an editable install as well. Beside each
    the compiler leaves a list of what was read (-MMD).
    """

    def finalize_options(self) -> None:
        """See build_ext."""
        super().finalize_options()
        self.build_temp = os.path.join("build", f"objects.{self.plat_name}-{sys.implementation.cache_tag}")

    def build_extensions(self) -> None:
        """See build_ext."""
        compile_in_turn = self.compiler.compile
        self.compiler.compiler_so.append("-MMD")

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            objects = self.compiler.object_filenames(sources, output_dir=options["output_dir"])

            def compile_one(source: str, made: str) -> None:
                if self.force or not is_current(Path(made), options["depends"]):
                    compile_in_turn([source], **options)

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                list(pool.map(compile_one, sources, objects))
            return objects

        self.compiler.compile = compile_all
        super().build_extensions()


def is_current(made: Path, depends: list[str]) -> bool:
    """Whether an object is newer than all that it was made from: what its list names, and how it is built."""
    try:
        read = made.with_suffix(".d").read_text().replace("\\\n", " ").split()[1:]
        scripts = [name for name in depends if name.endswith(".py")]
        newest = max(os.stat(name).st_mtime_ns for name in (*read, *scripts))
        return newest < made.stat().st_mtime_ns
    except OSError:  # never made, or a header is gone
        return False


setup(cffi_modules=["native/build.py:ffibuilder"], cmdclass={"build_ext": BuildWhatChanged})
