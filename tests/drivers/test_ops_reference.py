"""The reference operations against fp64 formulas, and their row invariance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.ops import tiling
from drivers.ops.reference import ReferenceOps, rotate_halves
from drivers.ops.tiling import TiledLinear, bmm_in_batches, bmm_rows, fold_sum, verified_bmm_rows

OPS = ReferenceOps()
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# one unit in the last place of the result's format, times the depth that rounding of inputs adds up to
TOLERANCE = {"fp32": 2e-5, "fp16": 4e-3, "bf16": 3e-2}
dtypes = st.sampled_from(sorted(DTYPES))


@pytest.fixture(autouse=True)
def threads(request):
    """The number of threads that torch uses, one unless the test says otherwise; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


def normal(*size: int, dtype: str = "fp32", seed: int = 0) -> torch.Tensor:
    """Seeded Gaussian numbers."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def assert_close(got: torch.Tensor, expected: torch.Tensor, dtype: str) -> None:
    """Near the fp64 result, within what the format can hold."""
    assert got.dtype == DTYPES[dtype]
    torch.testing.assert_close(got.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@settings(max_examples=40)
@given(rows=st.integers(1, 6), size=st.integers(1, 700))
def test_fold_sum_adds_every_element_once(rows, size):
    """Sums of small integers, which fp32 holds exactly, come out exactly, whatever the length."""
    x = torch.randint(-50, 50, (rows, size)).float()
    assert torch.equal(fold_sum(x), x.sum(dim=1, keepdim=True))


@settings(max_examples=40)
@given(
    num_tokens=st.integers(1, 150),
    sizes=st.sampled_from([(64, 128), (72, 35), (172, 72), (257, 3)]),
    dtype=dtypes,
    bias=st.booleans(),
    first=st.integers(0, 149),
)
def test_linear(num_tokens, sizes, dtype, bias, first):
    """Products equal fp64 ones within rounding; a row alone, in a slice or in the whole has the same bits."""
    depth, width = sizes
    x, weight = normal(num_tokens, depth, dtype=dtype), normal(width, depth, dtype=dtype, seed=1)
    b = normal(width, dtype=dtype, seed=2) if bias else None
    got = OPS.linear(x, weight, b)
    exact = x.double() @ weight.double().t() / depth**0.5
    assert_close(((got if b is None else got - b).double() / depth**0.5).to(DTYPES[dtype]), exact, dtype)
    first %= num_tokens
    assert torch.equal(OPS.linear(x[first:], weight, b), got[first:])
    assert torch.equal(OPS.linear(x[first : first + 1], weight, b), got[first : first + 1])
    assert torch.equal(OPS.linear(x.flip(0), weight, b), got.flip(0))


@pytest.mark.parametrize("threads", [2], indirect=True)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_linear_on_two_threads(dtype):
    """A wide product split over threads is row-invariant too."""
    x, weight = normal(70, 256, dtype=dtype), normal(1000, 256, dtype=dtype, seed=1)
    got = OPS.linear(x, weight, None)
    for row in (0, 15, 16, 69):
        assert torch.equal(OPS.linear(x[row : row + 1], weight, None), got[row : row + 1])


def test_nan_in_one_row_stays_there():
    """A poisoned row leaves the rows beside it in the same tile untouched."""
    x, weight = normal(16, 64), normal(40, 64, seed=1)
    expected = OPS.linear(x, weight, None)
    x[7] = torch.nan
    got = OPS.linear(x, weight, None)
    others = [row for row in range(16) if row != 7]
    assert torch.equal(got[others], expected[others])
    assert got[7].isnan().all()


def test_a_tile_that_fails_verification_is_not_used(monkeypatch):
    """A library whose large tiles round differently loses those tiles; one that is never even loses all."""
    true_product = tiling._tile_product

    def uneven(x, weight, tiles, *, bad_tiles):
        out = true_product(x, weight, tiles)
        if tiles[0] in bad_tiles:
            out[3] = torch.nextafter(out[3], torch.tensor(torch.inf))
        return out

    weight = normal(48, 64)
    x = normal(37, 64, seed=3)
    monkeypatch.setattr(tiling, "_tile_product", lambda *args: uneven(*args, bad_tiles={64}))
    assert TiledLinear().tiles(weight) == (4, 16)
    monkeypatch.setattr(tiling, "_tile_product", lambda *args: uneven(*args, bad_tiles={16}))
    linear = TiledLinear()
    assert linear.tiles(weight) == (1,)
    got = linear(x, weight)
    torch.testing.assert_close(got, x @ weight.t(), atol=1e-4, rtol=1e-4)
    assert torch.equal(linear(x[5:6], weight), got[5:6])


def test_batched_products_without_a_verified_bmm():
    """The folded product agrees with bmm within rounding, and no row depends on the others."""
    a, b = normal(5, 8, 24), normal(5, 24, 13, seed=1)
    got = bmm_rows(a, b, verified=False)
    torch.testing.assert_close(got, bmm_rows(a, b, verified=True), atol=1e-5, rtol=1e-5)
    assert torch.equal(bmm_rows(a[2:3, 4:5], b[2:3], verified=False), got[2:3, 4:5])


@pytest.mark.parametrize("num_entries", [1, 7, 8, 9, 24])
def test_batched_products_in_calls_of_one_size(num_entries):
    """Cutting a batch into padded calls of eight changes nothing but the calls."""
    a, b = normal(num_entries, 4, 16), normal(num_entries, 16, 32, seed=1)
    assert torch.equal(bmm_in_batches(a, b, 8), torch.bmm(a, b))


def test_bmm_verification_returns_a_prefix():
    """What passed is a leading part of the candidates, and includes the base on this machine's library."""
    passed = verified_bmm_rows(32, 80, (4, 8, 32), torch.device("cpu"))
    assert passed
    assert passed == (4, 8, 32)[: len(passed)]


@settings(max_examples=30)
@given(num_tokens=st.integers(1, 40), size=st.sampled_from([8, 64, 72, 255]), dtype=dtypes)
def test_rms_norm(num_tokens, size, dtype):
    """The norm equals its formula in fp64, for any number of rows, and rows are independent."""
    x, weight = normal(num_tokens, size, dtype=dtype), normal(size, dtype=dtype, seed=1)
    got = OPS.rms_norm(x, weight, 1e-5)
    wide = x.double()
    exact = wide / (wide.square().mean(dim=1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert_close(got, exact, dtype)
    row = num_tokens // 2
    assert torch.equal(OPS.rms_norm(x[row : row + 1], weight, 1e-5), got[row : row + 1])


@settings(max_examples=30)
@given(num_tokens=st.integers(1, 40), size=st.sampled_from([1, 7, 33, 172]), dtype=dtypes)
def test_silu_mul(num_tokens, size, dtype):
    """The gate equals its formula in fp64; an element's bits do not depend on where in memory it lies."""
    x = normal(num_tokens, 2 * size, dtype=dtype) * 4
    got = OPS.silu_mul(x)
    gate, up = x.double().chunk(2, dim=1)
    assert_close(got, gate / (1 + (-gate).exp()) * up, dtype)
    for row in range(num_tokens):
        assert torch.equal(OPS.silu_mul(x[row : row + 1]), got[row : row + 1])


def test_silu_of_extremes_is_finite():
    """Very negative gates give zero and very positive ones themselves, without overflow turning into NaN."""
    x = torch.tensor([[-200.0, -90.0, 200.0, 1.0, 1.0, 1.0]])
    assert torch.equal(
        OPS.silu_mul(x), torch.tensor([[-0.0, -0.0, 200.0]]).abs() * torch.tensor([[1, 1, 1.0]])
    )


def test_exp_does_not_care_where_an_element_lies():
    """The one approximate function in use gives equal bits at every offset, length and stride."""
    x = normal(4096) * 8
    expected = x.exp()
    for length in (1, 2, 3, 7, 15, 16, 17, 31, 33, 100, 1000, 4001):
        for offset in (0, 1, 5, 13):
            part = slice(offset, offset + length)
            assert torch.equal(x[part].exp(), expected[part])
            assert torch.equal(x[part].clone().exp(), expected[part])
    assert torch.equal(x.view(64, 64).t().exp(), expected.view(64, 64).t())


@settings(max_examples=20)
@given(num_tokens=st.integers(1, 20), dtype=dtypes, dim=st.sampled_from([2, 16, 24]))
def test_rope(num_tokens, dtype, dim):
    """Rotation equals complex multiplication of the two halves, and undoes itself with the opposite angle."""
    x = normal(num_tokens, 3, dim, dtype=dtype)
    angles = normal(num_tokens, dim // 2, seed=1) * 10
    got = rotate_halves(x, angles.cos(), angles.sin())
    first, second = x.double().chunk(2, dim=-1)
    rotated = torch.complex(first, second) * torch.polar(torch.ones(()).double(), angles.double())[:, None]
    assert_close(got, torch.cat((rotated.real, rotated.imag), dim=-1), dtype)
    if dtype == "fp32":
        torch.testing.assert_close(rotate_halves(got, angles.cos(), -angles.sin()), x, atol=1e-5, rtol=1e-5)


def test_argmax_takes_the_lowest_of_equals():
    """Ties go to the lowest id, and a row that is not finite is told apart from the others."""
    logits = torch.zeros(5, 300)
    logits[1, 250] = logits[1, 17] = 3.0
    logits[2, 5] = torch.nan
    logits[3, 6] = torch.inf
    logits[4, 299] = 1.0
    ids, num_bad, _ = OPS.draw_tokens(logits, [None] * 5)
    assert num_bad.tolist() == [0, 0, 1, 1, 0]
    assert (ids[0], ids[1], ids[4]) == (0, 17, 299)


def test_embedding_looks_rows_up():
    """Token ids select rows of the table, repeated ones too."""
    table = normal(10, 4)
    assert torch.equal(OPS.embedding(torch.tensor([3, 0, 3]), table), table[[3, 0, 3]])
