"""Products of activations with packed weights, from NumPy arrays: checks arguments, calls the kernels.

The forward pass calls the same kernels from C; this is for packing, tests and measurements.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from native._cpu import ffi, lib

__all__ = [
    "GROUP",
    "PACKED_LAYOUT",
    "TILE_COLUMNS",
    "PackedWeight",
    "QuantisedRows",
    "WeightFormat",
    "aligned_empty",
    "best_variant",
    "bind_multiply",
    "multiply",
    "multiply_argmax",
    "pack_int4",
    "pack_int8",
    "pack_weight",
    "quantise_rows",
    "usable_variants",
]

TILE_COLUMNS = int(lib.LLMOS_TILE_COLUMNS)
GROUP = 128  # inputs that share a second-level scale in W4A8
PACKED_LAYOUT = 1  # of packed bytes, which lie on disk: another number for another order
ALIGNMENT = 64

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int32]


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


def best_variant() -> str:
    """The name of the variant that runs here unless another is asked for: "plain", "avx2", "avx512"."""
    return str(ffi.string(lib.llmos_variant_name(lib.llmos_best_variant())).decode())


ROW_FORMATS = {  # of weights before they are packed
    np.dtype(np.float32): int(WeightFormat.FP32),
    np.dtype(np.float16): int(WeightFormat.FP16),
    np.dtype(np.uint16): int(WeightFormat.BF16),
}


def usable_variants() -> dict[str, int]:
    """The instruction sets that this machine has: name to number, best last."""
    return {ffi.string(lib.llmos_variant_name(i)).decode(): i for i in range(lib.llmos_best_variant() + 1)}


def aligned_empty(size_bytes: int) -> npt.NDArray[np.uint8]:
    """A flat uninitialised byte array that begins at a multiple of 64 bytes."""
    raw = np.empty(size_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size_bytes]


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
                _check_vector(name, vector, n, np.float32)
        self.weight_format, self.n, self.k = weight_format, n, k
        self.data, self.scale, self.bias = data, scale, bias
        self.struct = ffi.new("llmos_weight *")
        self.struct.format, self.struct.n, self.struct.k = int(weight_format), n, k
        self.struct.group = GROUP if weight_format is WeightFormat.W4A8 else 0
        self.struct.data = _pointer("void *", data)
        self.struct.scale = _pointer("float *", scale)
        self.struct.bias = _pointer("float *", bias)

    def unpack(self) -> FloatArray:
        """The weights [n, k] as the kernels see them."""
        rows = np.empty((self.n, self.k), dtype=np.float32)
        lib.llmos_unpack_rows(self.struct, 0, self.n, _pointer("float *", rows), self.k)
        return rows

    def unpack_int8(self) -> npt.NDArray[np.int8]:
        """The integers [n, k] of a quantised format."""
        if not self.weight_format.is_quantised:
            raise ValueError(f"{self.weight_format.name} weights are no integers")
        rows = np.empty((self.n, self.k), dtype=np.int8)
        lib.llmos_unpack_int8(self.struct, 0, self.n, _pointer("int8_t *", rows), self.k)
        return rows


class QuantisedRows:
    """Activations as int8: `values` [m, ld >= k] with zeros from k on, `scale` [m], `sum` [m]."""

    def __init__(self, values: npt.NDArray[np.int8], k: int, scale: FloatArray, sums: IntArray) -> None:
        self.values, self.k, self.scale, self.sum = values, k, scale, sums


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
    _check_matrix("weights", rows, rows.dtype)
    n, k = rows.shape
    data = aligned_empty(packed_bytes(weight_format, n, k))
    scale = np.empty(n, dtype=np.float32) if weight_format.is_quantised else None
    arguments = (_stride(rows), _pointer("void *", data), _pointer("float *", scale))
    chosen = _variant(variant)

    def pack(n0: int) -> None:
        lib.llmos_pack_rows_variant(
            chosen, int(weight_format), k, n0, min(n0 + share, n), row_format,
            _pointer("void *", rows[n0:]), *arguments,
        )  # fmt: skip

    tiles = -(-n // TILE_COLUMNS)
    share = -(-tiles // num_threads) * TILE_COLUMNS
    if num_threads == 1:
        pack(0)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(pack, range(0, n, share)))
    return PackedWeight(weight_format, n, k, data, scale, bias)


def pack_int8(rows: npt.NDArray[np.int8], scale: FloatArray, bias: FloatArray | None = None) -> PackedWeight:
    """Pack integers [n, k] in -127..127 and their scales [n] as W8A8."""
    _check_matrix("weights", rows, np.int8)
    n, k = rows.shape
    data = aligned_empty(packed_bytes(WeightFormat.W8A8, n, k))
    lib.llmos_pack_int8(k, 0, n, _pointer("int8_t *", rows), _stride(rows), _pointer("void *", data))
    return PackedWeight(WeightFormat.W8A8, n, k, data, scale, bias)


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
    _check_matrix("codes", codes, np.uint8)
    n, k = codes.shape
    for name, array in (("scales", group_scale), ("offsets", group_offset)):
        _check_matrix(name, array, np.uint8)
        if array.shape != (n, -(-k // GROUP)) or not array.flags.c_contiguous:
            raise ValueError(f"{name} must be contiguous [{n}, {-(-k // GROUP)}], got {array.shape}")
    if codes.max() > 15 or group_scale.max() > 17:
        raise ValueError("codes are 0..15 and their scales 1..17")
    widest = np.repeat(group_scale.astype(np.int32), GROUP, axis=1)[:, :k] * codes
    if (widest + np.repeat(group_offset.astype(np.int32), GROUP, axis=1)[:, :k]).max() > 255:
        raise ValueError("code * scale + offset leaves 0..255")
    data = aligned_empty(packed_bytes(WeightFormat.W4A8, n, k))
    lib.llmos_pack_int4(
        k, 0, n, _pointer("uint8_t *", codes), _stride(codes), _pointer("uint8_t *", group_scale),
        _pointer("uint8_t *", group_offset), _pointer("void *", data),
    )  # fmt: skip
    return PackedWeight(WeightFormat.W4A8, n, k, data, scale, bias)


def quantise_rows(x: FloatArray, variant: int | None = None) -> QuantisedRows:
    """Rows [m, k] to int8, symmetric, each with its own scale; see quantise.h for the rule."""
    _check_matrix("activations", x, np.float32)
    m, k = x.shape
    # a row more than a multiple of 1024 bytes: rows then fall into different sets of the cache
    values = np.empty((m, (k + 7) // 8 * 8 + 64), dtype=np.int8)
    scale, sums = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.int32)
    lib.llmos_quantise_rows_variant(
        _variant(variant), _pointer("float *", x), _stride(x), m, k,
        _pointer("int8_t *", values), _stride(values),
        _pointer("float *", scale), _pointer("int32_t *", sums),
    )  # fmt: skip
    return QuantisedRows(values, k, scale, sums)


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
    pointer, ldx, xscale, xsum, m = _activations(weight, x)
    n0, n1 = _columns(weight, columns)
    _check_matrix("out", out, np.float32)
    if out.shape != (m, weight.n):
        raise ValueError(f"out must be [{m}, {weight.n}], got {out.shape}")
    scratch = _scratch(weight, m)
    arguments = (
        _variant(variant), weight.struct, pointer, ldx, xscale, xsum, m,
        _pointer("float *", out), _stride(out), int(accumulate), n0, n1, _pointer("void *", scratch),
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
    pointer, ldx, xscale, xsum, m = _activations(weight, x)
    n0, n1 = _columns(weight, columns)
    value, index = np.empty(m, dtype=np.float32), np.empty(m, dtype=np.int32)
    scratch = _scratch(weight, m)
    lib.llmos_gemm_argmax_variant(
        _variant(variant), weight.struct, pointer, ldx, xscale, xsum, m, n0, n1, _pointer("float *", value),
        _pointer("int32_t *", index), _pointer("void *", scratch),
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
            _pointer("void *", x.values), _stride(x.values), _pointer("float *", x.scale),
            _pointer("int32_t *", x.sum), m,
        )  # fmt: skip
    _check_matrix("activations", x, np.float32)
    if x.shape[1] != weight.k:
        raise ValueError(f"rows of {x.shape[1]} for a weight of {weight.k} inputs")
    return _pointer("void *", x), _stride(x), ffi.NULL, ffi.NULL, x.shape[0]


def _columns(weight: PackedWeight, columns: tuple[int, int] | None) -> tuple[int, int]:
    n0, n1 = columns or (0, weight.n)
    if not 0 <= n0 < n1 <= weight.n or n0 % TILE_COLUMNS or (n1 % TILE_COLUMNS and n1 != weight.n):
        raise ValueError(f"columns {n0} to {n1} are not tiles of {TILE_COLUMNS} of {weight.n}")
    return n0, n1


def _scratch(weight: PackedWeight, m: int) -> npt.NDArray[np.uint8]:
    return aligned_empty(int(lib.llmos_gemm_scratch_bytes(weight.struct, m)))


def _variant(variant: int | None) -> int:
    best = int(lib.llmos_best_variant())
    if variant is None:
        return best
    if not 0 <= variant <= best:
        raise ValueError(f"this machine runs variants 0 to {best}, not {variant}")
    return variant


def _stride(array: npt.NDArray[Any]) -> int:
    return array.strides[0] // array.itemsize


def _pointer(kind: str, array: npt.NDArray[Any] | None) -> Any:
    return ffi.NULL if array is None else ffi.cast(kind, array.ctypes.data)


def _check_matrix(name: str, array: npt.NDArray[Any], dtype: type) -> None:
    if array.ndim != 2 or array.dtype != dtype or not array.size:
        raise ValueError(f"{name} must be a matrix of {np.dtype(dtype)}, got {array.dtype} {array.shape}")
    if (array.shape[1] > 1 and array.strides[1] != array.itemsize) or array.strides[0] % array.itemsize:
        raise ValueError(f"rows of {name} must be contiguous")
    if array.shape[0] > 1 and array.strides[0] < array.shape[1] * array.itemsize:
        raise ValueError(f"rows of {name} must not overlap")


def _check_vector(name: str, array: npt.NDArray[Any], size: int, dtype: type) -> None:
    if array.shape != (size,) or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"{name} must be {size} contiguous {np.dtype(dtype)}, got {array.dtype} {array.shape}"
        )
