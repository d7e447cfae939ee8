"""NumPy arrays as kernels take them: addresses, strides, and what they may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from native._cpu import ffi

__all__ = ["ALIGNMENT", "aligned_empty", "check_matrix", "check_vector", "floats", "pointer", "stride"]

ALIGNMENT = 64  # bytes: a line of the cache, and a register of AVX-512


def aligned_empty(size_bytes: int) -> npt.NDArray[np.uint8]:
    """A flat uninitialised byte array that begins at a multiple of 64 bytes."""
    raw = np.empty(size_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size_bytes]


def pointer(kind: str, array: npt.NDArray[Any] | None) -> Any:
    """The address of an array as a C type; None: NULL. It does not keep the array alive."""
    return ffi.NULL if array is None else ffi.cast(kind, array.ctypes.data)


def stride(array: npt.NDArray[Any]) -> int:
    """Elements from one row to the next."""
    return int(array.strides[0] // array.itemsize)


def floats(array: npt.NDArray[np.float32]) -> Any:
    """The address of fp32 rows, each contiguous. Raises ValueError: it is something else."""
    if array.dtype != np.float32 or array.strides[-1] != 4:
        raise ValueError(f"{array.dtype} with strides {array.strides} is not fp32 with contiguous rows")
    return ffi.cast("float *", array.ctypes.data)


def check_matrix(name: str, array: npt.NDArray[Any], dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless it is a matrix with rows that are contiguous and do not overlap."""
    if array.ndim != 2 or array.dtype != dtype or not array.size:
        raise ValueError(f"{name} must be a matrix of {np.dtype(dtype)}, got {array.dtype} {array.shape}")
    if (array.shape[1] > 1 and array.strides[1] != array.itemsize) or array.strides[0] % array.itemsize:
        raise ValueError(f"rows of {name} must be contiguous")
    if array.shape[0] > 1 and array.strides[0] < array.shape[1] * array.itemsize:
        raise ValueError(f"rows of {name} must not overlap")


def check_vector(name: str, array: npt.NDArray[Any], size: int, dtype: npt.DTypeLike) -> None:
    """Raise ValueError unless it is contiguous, of this size and type."""
    if array.shape != (size,) or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be {size} contiguous {np.dtype(dtype)}, got {array.dtype} {array.shape}"
        )
