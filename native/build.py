"""Compiles native/cpu into the extension module native._cpu, as setup.py tells cffi to."""

from __future__ import annotations

import re
from pathlib import Path

import cffi

# Paths are relative to the root: that is where the build runs, and what a source distribution records.
SOURCES = Path("native/cpu")


def read_headers() -> dict[str, str]:
    """The public headers, each behind those that it includes.

    Names with a leading underscore are between the C files alone: they may hold what cffi cannot parse.
    """
    texts = {path.name: path.read_text() for path in sorted(SOURCES.glob("[!_]*.h"))}
    ordered: dict[str, str] = {}

    def visit(name: str) -> None:
        for included in re.findall(r'^#include "(.+)"', texts[name], re.MULTILINE):
            if included not in ordered:
                visit(included)
        ordered[name] = texts[name]

    for name in texts:
        visit(name)
    return ordered


def declarations(header: str) -> str:
    """What cffi is told of a header: every line but those with '#'."""
    return "".join(line for line in header.splitlines(keepends=True) if not line.startswith("#"))


ffibuilder = cffi.FFI()
HEADERS = read_headers()
for _header in HEADERS.values():
    ffibuilder.cdef(declarations(_header))
ffibuilder.set_source(
    "native._cpu",
    "".join(f'#include "{name}"\n' for name in HEADERS),
    sources=sorted(str(path) for path in SOURCES.glob("*.c")),
    depends=[*sorted(str(path) for path in SOURCES.glob("*.h")), "native/build.py", "setup.py"],
    include_dirs=[str(SOURCES)],
    libraries=["m", "pthread"],
    # No -march=native: the binary has to run elsewhere. Kernels name their targets one by one.
    # No contraction: a*b + c has one rounding or two as the source says, on every machine.
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
)
