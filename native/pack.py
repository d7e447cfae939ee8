"""Weights in the order that kernels read them: packed from NumPy arrays, and described to C."""

from __future__ import annotations

import enum
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from native._cpu import ffi, lib
from native.arrays import ALIGNMENT, aligned_empty, check_matrix, check_vector, pointer, stride
from native.variant import resolve_variant

__all__ = [
    "GROUP",
    "PACKED_LAYOUT",
    "TILE_COLUMNS",
    "PackedWeight",
    "WeightFormat",
    "pack_int4",
    "pack_int8",
    "pack_weight",
    "packed_bytes",
]

TILE_COLUMNS = int(lib.LLMOS_TILE_COLUMNS)
GROUP = 128  # inputs that share a second-level scale in W4A8
PACKED_LAYOUT = 1  # of packed bytes, which lie on disk: another number for another order

FloatArray = npt.NDArray[np.float32]


class WeightFormat(enum.IntEnum):
    """How packed weights are stored; the numbers are those of types.h."""

    FP32 = lib.LLMOS_FP32
    FP16 = lib.LLMOS_FP16
    BF16 = lib.LLMOS_BF16
    W8A8 = lib.LLMOS_W8A8
    W4A8 = lib.LLMOS_W4A8

    @property
    def is_quantised(self) -> bool:
        """Whether it takes int8 activations."""
        return self in (WeightFormat.W8A8, WeightFormat.W4A8)


ROW_FORMATS = {  # of weights before they are packed
    np.dtype(np.float32): int(WeightFormat.FP32),
    np.dtype(np.float16): int(WeightFormat.FP16),
    np.dtype(np.uint16): int(WeightFormat.BF16),
}


class PackedWeight:
    """A linear layer's weights, packed, with the C structure that describes them.

    Args:
        weight_format: of `data`.
        n: outputs.
        k: inputs.
        data: flat uint8, `llmos_packed_bytes` long, 64-byte aligned.
        scale: [n] fp32 for the quantised formats, else None.
        bias: [n] fp32, or None.

    Raises:
        ValueError: an array has another size, type or alignment, or the shape has no packed form.
    """

    def __init__(
        self,
        weight_format: WeightFormat,
        n: int,
        k: int,
        data: npt.NDArray[np.uint8],
        scale: FloatArray | None = None,
        bias: FloatArray | None = None,
    ) -> None:
        size_bytes = packed_bytes(weight_format, n, k)
        if data.dtype != np.uint8 or data.shape != (size_bytes,) or not data.flags.c_contiguous:
            raise ValueError(
                f"{weight_format.name} of {n} x {k} is {size_bytes} flat bytes, got {data.shape}"
            )
        if data.ctypes.data % ALIGNMENT:
            raise ValueError(f"packed weights begin at a multiple of {ALIGNMENT} bytes")
        if weight_format.is_quantised != (scale is not None):
            raise ValueError(f"{weight_format.name} and scales do not go together")
        for name, vector in (("scale", scale), ("bias", bias)):
            if vector is not None:
                check_vector(name, vector, n, np.float32)
        self.weight_format, self.n, self.k = weight_format, n, k
        self.data, self.scale, self.bias = data, scale, bias
        self.struct = ffi.new("llmos_weight *")
        self.struct.format, self.struct.n, self.struct.k = int(weight_format), n, k
        self.struct.group = GROUP if weight_format is WeightFormat.W4A8 else 0
        self.struct.data = pointer("void *", data)
        self.struct.scale = pointer("float *", scale)
        self.struct.bias = pointer("float *", bias)

    def unpack(self) -> FloatArray:
        """The weights [n, k] as the kernels see them."""
        rows = np.empty((self.n, self.k), dtype=np.float32)
        lib.llmos_unpack_rows(self.struct, 0, self.n, pointer("float *", rows), self.k)
        return rows

    def unpack_int8(self) -> npt.NDArray[np.int8]:
        """The integers [n, k] of a quantised format."""
        if not self.weight_format.is_quantised:
            raise ValueError(f"{self.weight_format.name} weights are no integers")
        rows = np.empty((self.n, self.k), dtype=np.int8)
        lib.llmos_unpack_int8(self.struct, 0, self.n, pointer("int8_t *", rows), self.k)
        return rows


def packed_bytes(weight_format: WeightFormat, n: int, k: int) -> int:
    """Bytes of packed weights.

    Raises:
        ValueError: the shape has no packed form: a dimension below 1, or a quantised k above 65536.
    """
    size_bytes = int(lib.llmos_packed_bytes(weight_format, n, k))
    if size_bytes < 0:
        raise ValueError(f"no {weight_format.name} form of {n} x {k}")
    return size_bytes


def pack_weight(
    weight_format: WeightFormat,
    rows: npt.NDArray[Any],
    bias: FloatArray | None = None,
    num_threads: int = 1,
    variant: int | None = None,
) -> PackedWeight:
    """Pack weights. The bits depend on neither threads nor, for the quantised formats, the variant.

    Args:
        weight_format: to pack in.
        rows: [n, k]: float32, float16, or the bits of bfloat16 as uint16.
        bias: [n] fp32.
        num_threads: that share the rows.
        variant: one of `usable_variants`; the best when None.

    Returns:
        The packed weight. In a quantised format, a row with a number that is not finite is packed as zeros,
        with the scale NaN.

    Raises:
        ValueError: shapes or types do not fit, or the shape has no packed form.

    Source (W4A8): Lin et al. 2024, "QServe", arXiv:2405.04532, progressive quantisation.
    """
    row_format = ROW_FORMATS.get(rows.dtype)
    if row_format is None:
        raise ValueError(f"weights must be float32, float16 or bfloat16 bits as uint16, got {rows.dtype}")
    check_matrix("weights", rows, rows.dtype)
    n, k = rows.shape
    data = aligned_empty(packed_bytes(weight_format, n, k))
    scale = np.empty(n, dtype=np.float32) if weight_format.is_quantised else None
    arguments = (stride(rows), pointer("void *", data), pointer("float *", scale))
    chosen = resolve_variant(variant)

    def pack(n0: int) -> None:
        lib.llmos_pack_rows_variant(
            chosen, int(weight_format), k, n0, min(n0 + share, n), row_format,
            pointer("void *", rows[n0:]), *arguments,
        )  # fmt: skip

    tiles = -(-n // TILE_COLUMNS)
    share = -(-tiles // num_threads) * TILE_COLUMNS
    if num_threads == 1:
        pack(0)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(pack, range(0, n, share)))
    return PackedWeight(weight_format, n, k, data, scale, bias)


def pack_int8(rows: npt.NDArray[np.int8], scale: FloatArray) -> PackedWeight:
    """Pack integers [n, k] in -127..127 and their scales [n] as W8A8."""
    check_matrix("weights", rows, np.int8)
    n, k = rows.shape
    data = aligned_empty(packed_bytes(WeightFormat.W8A8, n, k))
    lib.llmos_pack_int8(k, 0, n, pointer("int8_t *", rows), stride(rows), pointer("void *", data))
    return PackedWeight(WeightFormat.W8A8, n, k, data, scale)


def pack_int4(
    codes: npt.NDArray[np.uint8],
    group_scale: npt.NDArray[np.uint8],
    group_offset: npt.NDArray[np.uint8],
    scale: FloatArray,
    bias: FloatArray | None = None,
) -> PackedWeight:
    """Pack codes [n, k] with their groups' scales and offsets [n, ceil(k / 128)] as W4A8.

    Raises:
        ValueError: a shape or type is wrong, a code is above 15, or code * scale + offset can leave 0..255.
    """
    check_matrix("codes", codes, np.uint8)
    n, k = codes.shape
    for name, array in (("scales", group_scale), ("offsets", group_offset)):
        check_matrix(name, array, np.uint8)
        if array.shape != (n, -(-k // GROUP)) or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous [{n}, {-(-k // GROUP)}], got {array.shape}")
    if codes.max() > 15 or group_scale.max() > 17:
        raise ValueError("codes are 0..15 and their scales 1..17")
    widest = np.repeat(group_scale.astype(np.int32), GROUP, axis=1)[:, :k] * codes
    if (widest + np.repeat(group_offset.astype(np.int32), GROUP, axis=1)[:, :k]).max() > 255:
        raise ValueError("code * scale + offset leaves 0..255")
    data = aligned_empty(packed_bytes(WeightFormat.W4A8, n, k))
    lib.llmos_pack_int4(
        k, 0, n, pointer("uint8_t *", codes), stride(codes), pointer("uint8_t *", group_scale),
        pointer("uint8_t *", group_offset), pointer("void *", data),
    )  # fmt: skip
    return PackedWeight(WeightFormat.W4A8, n, k, data, scale, bias)
