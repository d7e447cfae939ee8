"""Products with packed weights: against NumPy, bit by bit where the arithmetic is exact."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.gemm import multiply, multiply_argmax
from native.pack import GROUP, PackedWeight, WeightFormat, pack_int4, pack_int8, pack_weight
from native.quantise import QuantisedRows, quantise_rows
from native.variant import usable_variants

VARIANTS = usable_variants()
FORMATS = list(WeightFormat)
FLOATS = [f for f in WeightFormat if not f.is_quantised]
every_variant = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
every_format = pytest.mark.parametrize("weight_format", FORMATS, ids=[f.name for f in FORMATS])

# around the sizes of register tiles, of column tiles, of groups of k, and of the depth that is kept in cache
rows = st.integers(1, 13) | st.sampled_from([22, 24, 25, 31, 64])
columns = st.integers(1, 9) | st.sampled_from([15, 16, 17, 63, 64, 65, 80, 128, 200])
depths = st.integers(1, 17) | st.sampled_from([64, 120, 127, 128, 129, 136, 256, 511, 512, 513, 700, 1100])
seeds = st.integers(0, 2**32 - 1)


def draw_operands(
    weight_format: WeightFormat, m: int, n: int, k: int, seed: int
) -> tuple[PackedWeight, np.ndarray]:
    """A packed weight with a bias, and fp32 activations."""
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((n, k), dtype=np.float32) * np.float32(0.1)
    bias = rng.standard_normal(n, dtype=np.float32)
    return pack_weight(weight_format, dense, bias), rng.standard_normal((m, k), dtype=np.float32)


def activations(weight: PackedWeight, x: np.ndarray) -> np.ndarray | QuantisedRows:
    """What the weight's format takes."""
    return quantise_rows(np.ascontiguousarray(x)) if weight.weight_format.is_quantised else x


def integer_reference(weight: PackedWeight, x: QuantisedRows) -> np.ndarray:
    """The quantised product with one rounding for each operation after the exact sum."""
    assert weight.scale is not None
    exact = x.values[:, : x.k].astype(np.int64) @ weight.unpack_int8().astype(np.int64).T
    assert np.abs(exact).max() < 2**31
    return exact.astype(np.int32).astype(np.float32) * (weight.scale * x.scale[:, None])


@every_variant
@pytest.mark.parametrize("weight_format", FLOATS, ids=[f.name for f in FLOATS])
@settings(max_examples=60)
@given(m=rows, n=columns, k=depths, seed=seeds)
def test_float_products(variant: int, weight_format: WeightFormat, m: int, n: int, k: int, seed: int) -> None:
    """A product of unquantised weights is the exact one within the rounding of k fp32 additions."""
    weight, x = draw_operands(weight_format, m, n, k, seed)
    exact = x.astype(np.float64) @ weight.unpack().astype(np.float64).T + weight.bias
    bound = (
        (np.abs(x).astype(np.float64) @ np.abs(weight.unpack()).T + np.abs(weight.bias)) * (k + 2) * 2.0**-24
    )
    assert np.all(np.abs(multiply(weight, x, variant=variant) - exact) <= bound)


@every_variant
@settings(max_examples=60)
@given(m=rows, n=columns, k=depths, seed=seeds, extreme=st.booleans())
def test_w8a8_equals_numpy(variant: int, m: int, n: int, k: int, seed: int, extreme: bool) -> None:
    """W8A8 equals exact integers times the scales, bit by bit, extreme values included."""
    rng = np.random.default_rng(seed)
    choices = [-127, 127] if extreme else np.arange(-127, 128)
    weight = pack_int8(rng.choice(choices, (n, k)).astype(np.int8), rng.random(n, dtype=np.float32))
    values = np.zeros((m, (k + 7) // 8 * 8), dtype=np.int8)
    values[:, :k] = rng.choice([-127, 127, 127] if extreme else choices, (m, k))
    x = QuantisedRows(values, k, rng.random(m, dtype=np.float32), values.sum(1, dtype=np.int32))
    assert np.array_equal(multiply(weight, x, variant=variant), integer_reference(weight, x))


@every_variant
@settings(max_examples=60)
@given(m=rows, n=columns, k=depths, seed=seeds)
def test_w4a8_equals_numpy(variant: int, m: int, n: int, k: int, seed: int) -> None:
    """W4A8 equals exact integers times the scales, bit by bit, for every scale and offset that is allowed."""
    rng = np.random.default_rng(seed)
    groups = -(-k // GROUP)
    group_scale = rng.integers(1, 18, (n, groups))
    group_offset = rng.integers(0, 256 - 15 * group_scale, dtype=np.int64)
    codes = rng.integers(0, 16, (n, k))
    weight = pack_int4(
        codes.astype(np.uint8), group_scale.astype(np.uint8), group_offset.astype(np.uint8),
        rng.random(n, dtype=np.float32),
    )  # fmt: skip
    wide = [np.repeat(a, GROUP, axis=1)[:, :k] for a in (group_scale, group_offset)]
    assert np.array_equal(weight.unpack_int8(), codes * wide[0] + wide[1] - 128)
    x = quantise_rows(rng.standard_normal((m, k), dtype=np.float32))
    assert np.array_equal(multiply(weight, x, variant=variant), integer_reference(weight, x))


@every_variant
def test_every_code(variant: int) -> None:
    """Each code with each scale and offset gives the integer it stands for: one-hot rows read them all."""
    codes = np.tile(np.arange(16, dtype=np.uint8), (17 * 4, 1))
    group_scale = np.repeat(np.arange(1, 18, dtype=np.uint8), 4)[:, None]
    last = (255 - 15 * group_scale[::4, 0].astype(int))[:, None]
    group_offset = np.hstack([0 * last, last // 3, last // 2, last]).reshape(-1, 1).astype(np.uint8)
    weight = pack_int4(codes, group_scale, group_offset, np.ones(68, dtype=np.float32))
    eye = np.eye(16, dtype=np.int8)
    x = QuantisedRows(eye, 16, np.ones(16, dtype=np.float32), np.ones(16, dtype=np.int32))
    expected = codes.astype(int) * group_scale + group_offset.astype(int) - 128
    assert np.array_equal(multiply(weight, x, variant=variant), expected.T)


def test_longest_sum() -> None:
    """At the largest k that is allowed, extreme values on one side do not overflow."""
    k = 65536
    weight = pack_int8(np.full((64, k), 127, dtype=np.int8), np.ones(64, dtype=np.float32))
    values = np.full((2, k), 127, dtype=np.int8)
    values[1] = -127
    x = QuantisedRows(values, k, np.ones(2, dtype=np.float32), values.sum(1, dtype=np.int32))
    for variant in VARIANTS.values():
        assert np.array_equal(multiply(weight, x, variant=variant), integer_reference(weight, x))
    with pytest.raises(ValueError, match="no W8A8 form"):
        pack_int8(np.zeros((1, k + 1), dtype=np.int8), np.ones(1, dtype=np.float32))


@every_variant
def test_largest_codes(variant: int) -> None:
    """Sums of the largest codes, scales and activations pass through narrower numbers without loss."""
    n, k = 70, 1160
    groups = -(-k // GROUP)
    codes, scales = np.full((n, k), 15, dtype=np.uint8), np.full((n, groups), 17, dtype=np.uint8)
    weight = pack_int4(codes, scales, np.zeros_like(scales), np.ones(n, dtype=np.float32))
    for m in (1, 2, 3, 11, 30):
        values = np.full((m, k), 127, dtype=np.int8)
        values[::2] = -127
        x = QuantisedRows(values, k, np.ones(m, dtype=np.float32), values.sum(1, dtype=np.int32))
        assert np.array_equal(multiply(weight, x, variant=variant), integer_reference(weight, x))


@every_variant
@every_format
@settings(max_examples=40)
@given(m=st.integers(2, 40), n=columns, k=depths, seed=seeds, data=st.data())
def test_rows_are_independent(
    variant: int, weight_format: WeightFormat, m: int, n: int, k: int, seed: int, data: st.DataObject
) -> None:
    """A row has the same bits alone, among others, and computed tile by tile."""
    weight, x = draw_operands(weight_format, m, n, k, seed)
    together = multiply(weight, activations(weight, x), variant=variant)
    count = data.draw(st.integers(1, m))
    first = data.draw(st.integers(0, m - count))
    some = activations(weight, x[first : first + count])
    tiles = np.zeros((count, n), dtype=np.float32)
    for n0 in range(0, n, 64):
        multiply(weight, some, out=tiles, columns=(n0, min(n0 + 64, n)), variant=variant)
    assert np.array_equal(tiles, together[first : first + count])


@every_variant
@every_format
@settings(max_examples=30)
@given(m=rows, n=columns, k=depths, seed=seeds)
def test_accumulate(variant: int, weight_format: WeightFormat, m: int, n: int, k: int, seed: int) -> None:
    """Accumulating adds the product with its bias, in one rounding, and touches nothing else."""
    weight, x = draw_operands(weight_format, m, n, k, seed)
    x = activations(weight, x)
    product = multiply(weight, x, variant=variant)
    wide = np.random.default_rng(seed).standard_normal((m, n + 24), dtype=np.float32)
    expected = wide.copy()
    expected[:, :n] += product
    multiply(weight, x, out=wide[:, :n], accumulate=True, variant=variant)
    assert np.array_equal(wide, expected)


@every_format
@settings(max_examples=20)
@given(m=rows, n=columns, k=depths, seed=seeds)
def test_variants_agree(weight_format: WeightFormat, m: int, n: int, k: int, seed: int) -> None:
    """Every variant has the same integers; fused and unfused floats differ by rounding only."""
    weight, x = draw_operands(weight_format, m, n, k, seed)
    plain, *others = [multiply(weight, activations(weight, x), variant=v) for v in VARIANTS.values()]
    for other in others:
        if weight_format.is_quantised:
            assert np.array_equal(other, plain)
        else:
            assert np.allclose(other, plain, rtol=1e-4, atol=1e-4)


@every_variant
@every_format
@settings(max_examples=30)
@given(
    m=rows,
    n=columns | st.sampled_from([512, 600, 1100]),
    k=st.integers(1, 20),
    seed=seeds,
    ties=st.booleans(),
)
def test_argmax(
    variant: int, weight_format: WeightFormat, m: int, n: int, k: int, seed: int, ties: bool
) -> None:
    """The fused argmax is NumPy's of the product over any slice of columns; the lowest of equals wins."""
    weight, x = draw_operands(weight_format, m, n, k, seed)
    if ties:
        dense = np.zeros((n, k), dtype=np.float32)
        weight = pack_weight(weight_format, dense, np.round(weight.bias))
    x = activations(weight, x)
    product = multiply(weight, x, variant=variant)
    for n0 in {0, (n - 1) // 64 * 64}:
        value, index = multiply_argmax(weight, x, columns=(n0, n), variant=variant)
        assert np.array_equal(index, product[:, n0:].argmax(1) + n0)
        assert np.array_equal(value, product[:, n0:].max(1))


@every_variant
def test_argmax_of_nan(variant: int) -> None:
    """NaN is never the largest; a row of nothing else says minus infinity at the first column."""
    dense = np.zeros((700, 2), dtype=np.float32)
    dense[:, 0] = 1
    dense[650, 0] = 3
    dense[[100, 649, 651], 1] = np.nan
    weight = pack_weight(WeightFormat.FP32, dense)
    x = np.array([[1, 0], [np.nan, 1]], dtype=np.float32)
    value, index = multiply_argmax(weight, x, variant=variant)
    assert index.tolist() == [650, 0]
    assert value.tolist() == [3, -np.inf]


@every_format
@settings(max_examples=40)
@given(n=columns, k=depths, seed=seeds)
def test_packing_keeps_values(weight_format: WeightFormat, n: int, k: int, seed: int) -> None:
    """What is unpacked is what was packed, within half a step of the format; floats round to nearest even."""
    rng = np.random.default_rng(seed)
    dense = (rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-9, 4, (n, k))).astype(np.float32)
    weight = pack_weight(weight_format, dense)
    unpacked = weight.unpack()
    if weight_format is WeightFormat.FP32:
        assert np.array_equal(unpacked, dense)
    elif weight_format is WeightFormat.FP16:
        assert np.array_equal(unpacked, dense.astype(np.float16).astype(np.float32))
    elif weight_format is WeightFormat.BF16:
        bits = dense.view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        assert np.array_equal(unpacked, rounded.astype(np.uint32).view(np.float32))
    elif weight_format is WeightFormat.W8A8:
        assert np.all(np.abs(unpacked - dense) <= weight.scale[:, None] * 0.5001)
    else:
        # a group's step is up to two less than a fifteenth of its range, and what is beyond its codes is cut
        assert weight.unpack_int8().max() <= 127
        assert np.all(np.abs(unpacked - dense) <= weight.scale[:, None] * (17 / 2 + 2 * 15))


@every_variant
@every_format
@settings(max_examples=30)
@given(n=columns, k=depths, seed=seeds, kind=st.sampled_from([np.float32, np.float16, np.uint16]))
def test_packing_by_variant(
    variant: int, weight_format: WeightFormat, n: int, k: int, seed: int, kind: type
) -> None:
    """Packed bytes and scales are those of plain C from the same numbers in fp32."""
    rng = np.random.default_rng(seed)
    dense = (rng.standard_normal((n, k)) * 10.0 ** rng.uniform(-4, 1, (n, 1))).astype(np.float32)
    rows = (dense.view(np.uint32) >> 16).astype(np.uint16) if kind is np.uint16 else dense.astype(kind)
    wide = (rows.astype(np.uint32) << 16).view(np.float32) if kind is np.uint16 else rows.astype(np.float32)
    packed = pack_weight(weight_format, rows, variant=variant, num_threads=2)
    expected = pack_weight(weight_format, wide, variant=VARIANTS["plain"])
    assert np.array_equal(packed.data, expected.data)
    if weight_format.is_quantised:
        assert np.array_equal(packed.scale, expected.scale)


@every_variant
@pytest.mark.parametrize("weight_format", [WeightFormat.W8A8, WeightFormat.W4A8], ids=["W8A8", "W4A8"])
def test_packing_what_is_not_finite(variant: int, weight_format: WeightFormat) -> None:
    """A row with an infinity or a NaN, wherever it stands, has the scale NaN and zeros; other rows do not."""
    for position in (0, 15, 16, 127, 128, 139):
        for value in (np.inf, -np.inf, np.nan):
            rows = np.ones((66, 140), dtype=np.float32)
            rows[1, position] = rows[65, position] = value
            weight = pack_weight(weight_format, rows, variant=variant)
            assert np.flatnonzero(np.isnan(weight.scale)).tolist() == [1, 65]
            assert not weight.unpack_int8()[[1, 65]].any()
            assert np.allclose(weight.unpack()[[0, 2, 64]], 1)


def test_packing_the_smallest_numbers() -> None:
    """Numbers of which the reciprocal is infinite are packed as zeros, or near them."""
    rows = np.full((1, 8), 1e-40, dtype=np.float32)
    for weight_format in FORMATS:
        assert np.abs(pack_weight(weight_format, rows).unpack()).max() <= np.float32(1e-40)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 6e-8, 3e-8, 2.9e-8, -1e-7, 65504, 65519, 65520, 1e9, np.inf, -np.inf]
)
def test_fp16_edges(value: float) -> None:
    """Subnormals, the largest number and what rounds past it, infinities: as NumPy rounds them."""
    dense = np.full((1, 1), value, dtype=np.float32)
    with np.errstate(over="ignore"):
        expected = dense.astype(np.float16).astype(np.float32)
    assert np.array_equal(pack_weight(WeightFormat.FP16, dense).unpack(), expected)


def test_w4a8_error() -> None:
    """Codes lose no more than the best of all choices, 0.0084 of a Gaussian's variance, and 4 %."""
    dense = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    error = pack_weight(WeightFormat.W4A8, dense).unpack() - dense
    assert np.mean(error**2) < 0.00875


def test_zero_and_constant_rows() -> None:
    """Rows of zeros stay zeros, constant rows constant, in every format."""
    dense = np.zeros((3, 200), dtype=np.float32)
    dense[1], dense[2] = 0.5, -2
    for weight_format in FORMATS:
        unpacked = pack_weight(weight_format, dense).unpack()
        assert np.allclose(unpacked, dense, rtol=1e-6)


def guarded(array: np.ndarray) -> np.ndarray:
    """The same array, its last byte before a page that cannot be touched: one element too far is SIGSEGV."""
    size = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, size + mmap.PAGESIZE), dtype=np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    assert libc.mprotect(memory.ctypes.data + size, mmap.PAGESIZE, 0) == 0
    copy = memory[size - array.nbytes : size].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@every_variant
@every_format
@pytest.mark.parametrize(("m", "n", "k"), [(1, 65, 9), (7, 70, 130), (13, 3, 257), (2, 64, 128)])
def test_no_access_past_the_end(variant: int, weight_format: WeightFormat, m: int, n: int, k: int) -> None:
    """Every operand may end where memory ends."""
    dense, x = draw_operands(weight_format, m, n, k, seed=m)
    weight = PackedWeight(
        weight_format, n, k, guarded(dense.data),
        None if dense.scale is None else guarded(dense.scale), guarded(dense.bias),
    )  # fmt: skip
    rows = activations(weight, guarded(x))
    if isinstance(rows, QuantisedRows):
        padded = (k + 7) // 8 * 8
        rows = QuantisedRows(guarded(rows.values[:, :padded]), k, guarded(rows.scale), guarded(rows.sum))
    else:
        rows = guarded(x)
    out = guarded(np.zeros((m, n), dtype=np.float32))
    expected = multiply(dense, activations(dense, x), variant=variant)
    assert np.array_equal(multiply(weight, rows, out=out, variant=variant), expected)
    assert np.array_equal(multiply_argmax(weight, rows, variant=variant)[1], expected.argmax(1))


def test_wrong_arguments() -> None:
    """Shapes, types and ranges that do not fit are refused before the kernels see them."""
    weight = pack_weight(WeightFormat.FP32, np.zeros((130, 8), dtype=np.float32))
    x = np.zeros((2, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="rows of 7"):
        multiply(weight, x[:, :7])
    with pytest.raises(ValueError, match="does not take"):
        multiply(weight, quantise_rows(x))
    with pytest.raises(ValueError, match="tiles of 64"):
        multiply(weight, x, columns=(0, 100))
    with pytest.raises(ValueError, match="out must be"):
        multiply(weight, x, out=np.zeros((2, 129), dtype=np.float32))
    with pytest.raises(ValueError, match="variants 0 to"):
        multiply(weight, x, variant=99)
    with pytest.raises(ValueError, match="weights must be float32"):
        pack_weight(WeightFormat.FP32, np.zeros((1, 8)))
    with pytest.raises(ValueError, match="matrix of float32"):
        multiply(weight, x.astype(np.float64))
    with pytest.raises(ValueError, match=r"leaves 0\.\.255"):
        pack_int4(*(np.full((1, 1), v, dtype=np.uint8) for v in (15, 17, 1)), np.ones(1, dtype=np.float32))
