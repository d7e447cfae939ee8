"""Products of activations with packed weights, from NumPy arrays: checks arguments, calls the kernels.

The forward pass calls the same kernels from C; this is for encoders, tests and measurements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from native._cpu import ffi, lib
from native.arrays import aligned_empty, check_matrix, pointer, stride
from native.pack import TILE_COLUMNS, PackedWeight
from native.quantise import QuantisedRows
from native.variant import resolve_variant

__all__ = ["bind_multiply", "multiply", "multiply_argmax"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


def bind_multiply(
    weight: PackedWeight,
    x: FloatArray | QuantisedRows,
    out: FloatArray,
    *,
    accumulate: bool = False,
    columns: tuple[int, int] | None = None,
    variant: int | None = None,
) -> Callable[[], None]:
    """`multiply` with its arguments checked once, to be called many times.

    Raises:
        ValueError: shapes, types or ranges do not fit.
    """
    values, ldx, scale, sums, m = _activations(weight, x)
    n0, n1 = _columns(weight, columns)
    check_matrix("out", out, np.float32)
    if out.shape != (m, weight.n):
        raise ValueError(f"out must be [{m}, {weight.n}], got {out.shape}")
    scratch = _scratch(weight, m)
    arguments = (
        resolve_variant(variant), weight.struct, values, ldx, scale, sums, m,
        pointer("float *", out), stride(out), int(accumulate), n0, n1, pointer("void *", scratch),
    )  # fmt: skip
    alive = (weight, x, out, scratch)  # the arguments are bare addresses

    def run() -> None:
        assert alive
        lib.llmos_gemm_variant(*arguments)

    return run


def multiply(
    weight: PackedWeight,
    x: FloatArray | QuantisedRows,
    *,
    out: FloatArray | None = None,
    accumulate: bool = False,
    columns: tuple[int, int] | None = None,
    variant: int | None = None,
) -> FloatArray:
    """x times the transposed weight, plus its bias: [m, n] fp32.

    Args:
        weight: packed, [n, k].
        x: [m, k], rows quantised if the format is.
        out: where to write, [m, n]; made, of zeros, when None.
        accumulate: add to `out` instead.
        columns: only these, from and to: multiples of the tile, the end may be n.
        variant: one of `usable_variants`; the best when None.

    Raises:
        ValueError: shapes, types or ranges do not fit.
    """
    if out is None:
        rows = x.values if isinstance(x, QuantisedRows) else x
        out = np.zeros((rows.shape[0], weight.n), dtype=np.float32)
    bind_multiply(weight, x, out, accumulate=accumulate, columns=columns, variant=variant)()
    return out


def multiply_argmax(
    weight: PackedWeight,
    x: FloatArray | QuantisedRows,
    *,
    columns: tuple[int, int] | None = None,
    variant: int | None = None,
) -> tuple[FloatArray, IntArray]:
    """The largest element of each row of the product and its column, the lowest of equal ones.

    Raises:
        ValueError: shapes, types or ranges do not fit.
    """
    values, ldx, scale, sums, m = _activations(weight, x)
    n0, n1 = _columns(weight, columns)
    value, index = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.int32)
    scratch = _scratch(weight, m)
    lib.llmos_gemm_argmax_variant(
        resolve_variant(variant), weight.struct, values, ldx, scale, sums, m, n0, n1,
        pointer("float *", value), pointer("int32_t *", index), pointer("void *", scratch),
    )  # fmt: skip
    return value, index


def _activations(weight: PackedWeight, x: FloatArray | QuantisedRows) -> tuple[Any, int, Any, Any, int]:
    if isinstance(x, QuantisedRows) != weight.weight_format.is_quantised:
        raise ValueError(f"{weight.weight_format.name} does not take {type(x).__name__}")
    if isinstance(x, QuantisedRows):
        if x.k != weight.k:
            raise ValueError(f"rows of {x.k} for a weight of {weight.k} inputs")
        m = x.values.shape[0]
        return (
            pointer("void *", x.values), stride(x.values), pointer("float *", x.scale),
            pointer("int32_t *", x.sum), m,
        )  # fmt: skip
    check_matrix("activations", x, np.float32)
    if x.shape[1] != weight.k:
        raise ValueError(f"rows of {x.shape[1]} for a weight of {weight.k} inputs")
    return pointer("void *", x), stride(x), ffi.NULL, ffi.NULL, x.shape[0]


def _columns(weight: PackedWeight, columns: tuple[int, int] | None) -> tuple[int, int]:
    n0, n1 = columns or (0, weight.n)
    if not 0 <= n0 < n1 <= weight.n or n0 % TILE_COLUMNS or (n1 % TILE_COLUMNS and n1 != weight.n):
        raise ValueError(f"columns {n0} to {n1} are not tiles of {TILE_COLUMNS} of {weight.n}")
    return n0, n1


def _scratch(weight: PackedWeight, m: int) -> npt.NDArray[np.uint8]:
    return aligned_empty(int(lib.llmos_gemm_scratch_bytes(weight.struct, m)))
