"""Norms, activations and embedding on the CPU: native/cpu/norm.h and activation.h for NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from native._cpu import ffi, lib
from native.arrays import floats, stride
from native.quantise import QuantisedRows

__all__ = ["embed", "rms_norm", "rms_norm_int8", "silu_mul"]

Floats = npt.NDArray[np.float32]


def rms_norm(x: Floats, weight: Floats, epsilon: float, out: Floats | None = None) -> Floats:
    """x / sqrt(mean(x^2) + epsilon) * weight for rows [m, k]; into `out` (which may be x), or a new array."""
    out = np.empty(x.shape, dtype=np.float32) if out is None else out
    lib.llmos_rms_norm(floats(x), stride(x), floats(weight), epsilon, *x.shape, floats(out), stride(out))
    return out


def rms_norm_int8(x: Floats, weight: Floats, epsilon: float) -> QuantisedRows:
    """`rms_norm`, with its rows rounded as `quantise_rows` rounds them."""
    m, k = x.shape
    values = np.empty((m, (k + 7) // 8 * 8), dtype=np.int8)
    scale, sums = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.int32)
    lib.llmos_rms_norm_int8(
        floats(x), stride(x), floats(weight), epsilon, m, k, ffi.cast("int8_t *", values.ctypes.data),
        values.shape[1], floats(scale), ffi.cast("int32_t *", sums.ctypes.data),
    )  # fmt: skip
    return QuantisedRows(values, k, scale, sums)


def silu_mul(gate_up: Floats) -> Floats:
    """silu(gate) * up: [m, 2 * size], gate first -> [m, size]."""
    rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = np.empty((rows, size), dtype=np.float32)
    gate, up = gate_up[:, :size], gate_up[:, size:]
    lib.llmos_silu_mul(floats(gate), floats(up), stride(gate_up), rows, size, floats(out), stride(out))
    return out


def embed(table: npt.NDArray[Any], format: int, ids: npt.NDArray[np.int32]) -> Floats:
    """Rows of a table [n, dim], whose items are fp32 (0), fp16 (1) or bf16 (2) -> [len(ids), dim]."""
    if not table.flags.c_contiguous or table.itemsize != (4 if format == 0 else 2):
        raise ValueError(f"a table of format {format} is not {table.dtype} with strides {table.strides}")
    if ids.dtype != np.int32 or not ids.flags.c_contiguous:
        raise ValueError(f"ids are contiguous int32, not {ids.dtype}")
    out = np.empty((len(ids), table.shape[1]), dtype=np.float32)
    lib.llmos_embed(
        ffi.cast("void *", table.ctypes.data), format, table.shape[1],
        ffi.cast("int32_t *", ids.ctypes.data), len(ids), floats(out), stride(out),
    )  # fmt: skip
    return out
