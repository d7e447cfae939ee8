"""Compiles native/cpu into the extension module native._cpu, as setup.py tells cffi to."""

from __future__ import annotations

from pathlib import Path

import cffi

# Paths are relative to the root: that is where the build runs, and what a source distribution records.
SOURCES = Path("native/cpu")
TYPES = SOURCES / "types.h"  # what the other headers speak of
# Names with a leading underscore are between the C files alone: they may hold what cffi cannot parse.
HEADERS = [TYPES, *sorted(path for path in SOURCES.glob("[!_]*.h") if path != TYPES)]


def declarations(header: Path) -> str:
    """What cffi is told of a header: every line but those with '#'."""
    return "".join(line for line in header.read_text().splitlines(keepends=True) if not line.startswith("#"))


ffibuilder = cffi.FFI()
for _header in HEADERS:
    ffibuilder.cdef(declarations(_header))
ffibuilder.set_source(
    "native._cpu",
    "".join(f'#include "{header.name}"\n' for header in HEADERS),
    sources=sorted(str(path) for path in SOURCES.glob("*.c")),
    depends=sorted(str(path) for path in SOURCES.glob("*.h")),
    include_dirs=[str(SOURCES)],
    libraries=["m", "pthread"],
    # No -march=native: the binary has to run elsewhere. Kernels name their targets one by one.
    # No contraction: a*b + c has one rounding or two as the source says, on every machine.
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-ffp-contract=off"],
)
