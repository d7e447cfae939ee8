"""The CUDA driver library, opened at run time, and one device of it. Every call's result is looked at."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cffi

__all__ = ["LIBRARY", "LIBRARY_VARIABLE", "CudaDevice", "CudaFault", "CudaRefused", "ffi", "library_path"]

LIBRARY = "libcuda.so.1"
LIBRARY_VARIABLE = "LLMOS_LIBCUDA"  # an environment variable that names another library

# After any of these the context is lost: every later call fails too, until the process ends.
STICKY = frozenset({4, 214, 220, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})

NUM_MULTIPROCESSORS, CAPABILITY_MAJOR, CAPABILITY_MINOR = 16, 75, 76  # attributes of a device
NAME_BYTES = 256

ffi = cffi.FFI()
ffi.cdef((Path(__file__).parent / "calls.h").read_text())


class CudaRefused(OSError):
    """The driver did not do what it was asked for (out of memory, say); the device goes on."""


class CudaFault(RuntimeError):
    """The device is beyond use for this process; says which call was the first to find that."""


class CudaDevice:
    """One device and its primary context, which torch uses too. Close it after all that was made on it.

    The calling thread gets the context; another one that makes calls says `make_current` first.

    Args:
        index: which device.
        library: file name of the driver library; None: see `library_path`.

    Raises:
        CudaRefused: there is no driver, it is too old, or there is no such device.
    """

    def __init__(self, index: int = 0, library: str | None = None) -> None:
        self.index = index
        self._fault = ""  # the first error that ended the use of the device
        path = library or library_path()
        try:
            self._lib: Any = ffi.dlopen(path)
        except OSError as error:  # cffi tells twice which library, and then where else it has looked
            reason = str(error).removeprefix(f"cannot load library '{path}': ")
            reason = reason.partition(".  Additionally")[0]
            raise CudaRefused(f"there is no CUDA driver: {reason}") from None
        self.call("cuInit", 0)
        device = ffi.new("CUdevice *")
        self.call("cuDeviceGet", device, index)
        self._device = device[0]
        context = ffi.new("CUcontext *")
        self.call("cuDevicePrimaryCtxRetain", context, self._device)
        self._context = context[0]
        self.is_closed = False
        try:
            self.make_current()
            self.memory = ffi.new("CUmemAllocationProp *", {"type": 1, "location": {"type": 1, "id": index}})
            self.access = ffi.new(
                "CUmemAccessDesc *", {"location": {"type": 1, "id": index}, "flags": 3}
            )  # its own memory, to read and write
            granularity = ffi.new("size_t *")
            self.call("cuMemGetAllocationGranularity", granularity, self.memory, 0)
            self.granularity_bytes = int(granularity[0])
            self.num_multiprocessors = self._attribute(NUM_MULTIPROCESSORS)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """What the board calls itself."""
        name = ffi.new("char[]", NAME_BYTES)
        self.call("cuDeviceGetName", name, NAME_BYTES, self._device)
        return str(ffi.string(name).decode(errors="replace"))  # type: ignore[union-attr]

    @property
    def capability(self) -> tuple[int, int]:
        """Which instructions it has: 9.0 is a Hopper."""
        return self._attribute(CAPABILITY_MAJOR), self._attribute(CAPABILITY_MINOR)

    @property
    def total_bytes(self) -> int:
        """Of its memory."""
        total = ffi.new("size_t *")
        self.call("cuDeviceTotalMem_v2", total, self._device)
        return int(total[0])

    @property
    def free_bytes(self) -> int:
        """Memory that nobody has, of any process."""
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        self.call("cuMemGetInfo_v2", free, total)
        return int(free[0])

    def call(self, name: str, *arguments: Any) -> None:
        """Make one call of the driver.

        Raises:
            CudaFault: the device is beyond use. It names the first call that failed so, and its error,
                whichever call this is: what cleans up behind a failure must not hide it.
            CudaRefused: anything else but success; names the call and the error.
        """
        try:
            function = getattr(self._lib, name)
        except AttributeError:
            raise CudaRefused(f"the CUDA driver is too old: it has no {name}") from None
        if result := function(*arguments):
            message = f"{name}: {self._name_error(result)}"
            if result in STICKY:
                self._fault = self._fault or message
            raise CudaFault(self._fault) if self._fault else CudaRefused(message)

    def make_current(self) -> None:
        """Give the calling thread this device's context."""
        self.call("cuCtxSetCurrent", self._context)

    def synchronize(self) -> None:
        """Wait for all that was launched. Raises CudaFault when something of it failed."""
        self.call("cuCtxSynchronize")

    def close(self) -> None:
        """Give the context back. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            self.call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, attribute: int) -> int:
        value = ffi.new("int *")
        self.call("cuDeviceGetAttribute", value, attribute, self._device)
        return int(value[0])

    def _name_error(self, result: int) -> str:
        name = ffi.new("char **")
        if self._lib.cuGetErrorName(result, name) or name[0] == ffi.NULL:
            return f"error {result}"
        return str(ffi.string(name[0]).decode())  # type: ignore[union-attr]


def library_path() -> str:
    """The driver library: the system's, or what LLMOS_LIBCUDA names."""
    return os.environ.get(LIBRARY_VARIABLE) or LIBRARY
