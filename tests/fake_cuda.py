"""A CUDA driver library without a device, compiled from fake_cuda.c, and what tests say to it."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import cffi
from attrs import frozen

from native.cuda.device import CudaDevice

__all__ = ["GRANULE", "ILLEGAL_ADDRESS", "OUT_OF_MEMORY", "Counts", "FakeCuda", "load_fake"]

GRANULE = 65536  # bytes; of a device it is 2 MiB
OUT_OF_MEMORY, ILLEGAL_ADDRESS = 2, 700
SOURCE = Path(__file__).with_suffix(".c")


@frozen
class Counts:
    """What lives in the fake."""

    frames: int
    mappings: int
    reservations: int
    events: int
    contexts: int
    streams: int
    pinned: int  # extents of main memory
    waiting: int  # launches
    set_access: int  # calls so far
    unpinned: int  # copies so far whose main memory was not pinned


class FakeCuda:
    """The fake's controls; one for the process, as the library has one state."""

    def __init__(self, library: str) -> None:
        self.library = library
        self._ffi = cffi.FFI()
        self._ffi.cdef(
            "void fake_launch_fill(unsigned long long at, size_t size, unsigned char value);"
            "void fake_fail(const char *name, int after, int code);"
            "void fake_set_memory(size_t bytes); void fake_set_granule(size_t bytes);"
            "void fake_set_lazy(int lazy);"
            "void fake_count(int64_t *out); void fake_reset(void);"
        )
        self._lib: Any = self._ffi.dlopen(library)

    def open(self) -> CudaDevice:
        """Its one device."""
        return CudaDevice(0, self.library)

    def launch_fill(self, address: int, size_bytes: int, value: int) -> None:
        """A kernel that writes bytes: at once, or, where the fake is lazy, when somebody waits for it."""
        self._lib.fake_launch_fill(address, size_bytes, value)

    def fail(self, call: str, code: int, after: int = 0) -> None:
        """Let a call fail once, after it was made `after` more times; codes from 700 on are for good."""
        self._lib.fake_fail(call.encode(), after, code)

    def set_memory(self, num_bytes: int) -> None:
        """How much there is for frames."""
        self._lib.fake_set_memory(num_bytes)

    def set_granule(self, num_bytes: int) -> None:
        """What memory is given out in, GRANULE until now."""
        self._lib.fake_set_granule(num_bytes)

    def be_lazy(self) -> None:
        """Run what is launched on the default stream as late as may be, as other streams do."""
        self._lib.fake_set_lazy(1)

    def count(self) -> Counts:
        """What lives now."""
        out = self._ffi.new("int64_t[10]")
        self._lib.fake_count(out)
        return Counts(*out)

    def count_live(self) -> tuple[int, ...]:
        """Frames, mappings, reservations, events, contexts, streams, pinned extents: zeros: nothing leaks."""
        counts = self.count()
        return (
            counts.frames,
            counts.mappings,
            counts.reservations,
            counts.events,
            counts.contexts,
            counts.streams,
            counts.pinned,
        )

    def reset(self) -> None:
        """As if the process were new."""
        self._lib.fake_reset()


@functools.cache
def load_fake() -> FakeCuda:
    """Compile and load it, once for the process."""
    folder = tempfile.TemporaryDirectory(prefix="llmos-fake-cuda-", ignore_cleanup_errors=True)
    path = Path(folder.name) / "libfakecuda.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{SOURCE.parents[1]}/native/cuda",
    ]
    subprocess.run([*command, str(SOURCE), "-o", str(path), "-lpthread"], check=True)
    fake = FakeCuda(str(path))
    fake.folder = folder  # type: ignore[attr-defined]  # goes with the process
    return fake
