"""Build hook: compiles native/_cpu through cffi, files side by side; everything else is in pyproject.toml."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildSideBySide(build_ext):
    """Compiles the files of an extension on all processors, each by a call of the compiler."""

    def build_extensions(self) -> None:
        """See build_ext."""
        compile_in_turn = self.compiler.compile

        def compile_all(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
            def compile_one(source: str) -> list[str]:
                return compile_in_turn([source], *arguments, **options)

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                return [made for each in pool.map(compile_one, sources) for made in each]

        self.compiler.compile = compile_all
        super().build_extensions()


setup(cffi_modules=["native/build.py:ffibuilder"], cmdclass={"build_ext": BuildSideBySide})
