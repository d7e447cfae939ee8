"""Compiles native/cpu into the extension module native._cpu, as setup.py tells cffi to."""

from __future__ import annotations

from pathlib import Path

import cffi

HEADER = Path("native/cpu/llmos_cpu.h")

# Paths are relative to the root: that is where the build runs, and what a source distribution records.
_declarations = "".join(
    line for line in HEADER.read_text().splitlines(keepends=True) if not line.startswith("#")
)

ffibuilder = cffi.FFI()
ffibuilder.cdef(_declarations)
ffibuilder.set_source(
    "native._cpu",
    '#include "llmos_cpu.h"',
    sources=sorted(str(path) for path in HEADER.parent.glob("*.c")),
    depends=[str(HEADER)],
    include_dirs=[str(HEADER.parent)],
    # No -march=native: the binary has to run elsewhere. Kernels name their targets one by one.
    extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra"],
)
