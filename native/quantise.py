"""Activations rounded to int8, row by row: what the products of integers take."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from attrs import frozen

from native._cpu import lib
from native.arrays import check_matrix, pointer, stride
from native.variant import resolve_variant

__all__ = ["QuantisedRows", "quantise_rows"]


@frozen(eq=False)
class QuantisedRows:
    """Activations as int8: a row is its values times its scale."""

    values: npt.NDArray[np.int8]  # [m, at least k], zeros from k on
    k: int
    scale: npt.NDArray[np.float32]  # [m]
    sum: npt.NDArray[np.int32]  # [m], of each row's values


def quantise_rows(x: npt.NDArray[np.float32], variant: int | None = None) -> QuantisedRows:
    """Rows [m, k] to int8, symmetric, each with its own scale; see quantise.h for the rule."""
    check_matrix("activations", x, np.float32)
    m, k = x.shape
    # a row more than a multiple of 1024 bytes: rows then fall into different sets of the cache
    values = np.empty((m, (k + 7) // 8 * 8 + 64), dtype=np.int8)
    scale, sums = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.int32)
    lib.llmos_quantise_rows_variant(
        resolve_variant(variant), pointer("float *", x), stride(x), m, k,
        pointer("int8_t *", values), stride(values),
        pointer("float *", scale), pointer("int32_t *", sums),
    )  # fmt: skip
    return QuantisedRows(values, k, scale, sums)
