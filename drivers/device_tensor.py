"""Memory that is not torch's, as a tensor that shares it: by DLPack, which takes an address as it is."""

from __future__ import annotations

import ctypes

import torch
from torch.utils.dlpack import from_dlpack

__all__ = ["tensor_over"]

CPU, CUDA = 1, 2  # kinds of devices in DLPack
UNSIGNED, BYTE_BITS = 1, 8


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("num_dims", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


# torch looks at a description once more when the last view of its memory goes, which may be at the very end;
# it takes a hundred bytes, and there are two in each load
_descriptions: list[_Managed] = []

_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


def tensor_over(address: int, num_bytes: int, device: torch.device) -> torch.Tensor:
    """A flat uint8 tensor over memory that the caller keeps as long as anybody uses it; nothing is copied.

    Args:
        address: in the address space of the device.
        num_bytes: at least 1; memory need not be behind all of them before somebody touches it.
        device: "cpu" or "cuda", with an index.
    """
    kind = CUDA if device.type == "cuda" else CPU
    tensor = _Tensor(
        address,
        _Device(kind, device.index or 0),
        1,
        _Type(UNSIGNED, BYTE_BITS, 1),
        (ctypes.c_int64 * 1)(num_bytes),
        (ctypes.c_int64 * 1)(1),
        0,
    )
    managed = _Managed(tensor, None, None)
    _descriptions.append(managed)
    return from_dlpack(_new_capsule(ctypes.addressof(managed), b"dltensor", None))
