"""Paged attention against a naive fp64 softmax, over ragged rows, page sizes, windows and stale memory."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivers.ops import attention as attention_module
from drivers.ops.attention import key_block_tokens, paged_attention, plan_attention
from drivers.ops.batch import build_batch
from drivers.ops.interface import AttentionShape
from llmos.device import Row

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 2e-2}  # rounding of the result; sums are fp32 throughout


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@frozen(eq=False)
class Problem:
    """Rows with random queries, and pages of one layer in which only written slots are not NaN."""

    shape: AttentionShape
    dtype: str
    tokens_per_page: int
    rows: tuple[tuple[int, int], ...]  # (start, num_tokens)

    def tensor(self, asid: int, role: int, num_tokens: int, heads: int) -> torch.Tensor:
        """The queries, keys or values of a space at positions 0 to num_tokens."""
        generator = torch.Generator().manual_seed(asid * 3 + role)
        return torch.randn((600, heads, self.shape.head_dim), generator=generator)[:num_tokens].to(
            DTYPES[self.dtype]
        )

    def attend(self, asids: tuple[int, ...]) -> list[torch.Tensor]:
        """Run the rows of these spaces as one batch: for each [num_tokens, heads, head_dim]."""
        per_space = 600 // self.tokens_per_page + 1
        size = (
            len(self.rows) * per_space,
            self.tokens_per_page,
            self.shape.num_kv_heads,
            self.shape.head_dim,
        )
        # pages lie apart, as they do when a frame holds all layers
        strides = (2 * size[1] * size[2] * size[3], size[2] * size[3], size[3], 1)
        k_pages, v_pages = (
            torch.full((size[0] * strides[0],), torch.nan, dtype=DTYPES[self.dtype]).as_strided(
                size, strides, 3
            )
            for _ in "kv"
        )
        frames = torch.randperm(size[0], generator=torch.Generator().manual_seed(1)).tolist()

        def page_index(asid: int, vpn: int) -> int:
            return frames[asid * per_space + vpn]

        queries, rows = [], []
        for asid in asids:
            start, num_tokens = self.rows[asid]
            end = start + num_tokens
            history = build_batch([Row(asid, 0, (0,) * end, False)], page_index, self.tokens_per_page)
            k, v = (self.tensor(asid, role, end, self.shape.num_kv_heads) for role in (1, 2))
            for pages, numbers in ((k_pages, k), (v_pages, v)):
                pages[history.pages, history.slots] = numbers
            queries.append(self.tensor(asid, 0, end, self.shape.num_heads)[start:])
            rows.append(Row(asid, start, (0,) * num_tokens, True))
        plan = plan_attention(build_batch(rows, page_index, self.tokens_per_page), self.shape)
        out = paged_attention(torch.cat(queries), k_pages, v_pages, plan)
        return list(out.split([self.rows[asid][1] for asid in asids]))

    def naive(self, asid: int) -> torch.Tensor:
        """The same by the textbook, in fp64."""
        start, num_tokens = self.rows[asid]
        end = start + num_tokens
        q = self.tensor(asid, 0, end, self.shape.num_heads)[start:].double()
        k, v = (
            self.tensor(asid, role, end, self.shape.num_kv_heads)
            .double()
            .repeat_interleave(self.shape.group_size, dim=1)
            for role in (1, 2)
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.shape.head_dim**0.5
        positions = torch.arange(start, end)[:, None]
        keys = torch.arange(end)[None]
        visible = keys <= positions
        if self.shape.window is not None:
            visible &= keys > positions - self.shape.window
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v)


problems = st.builds(
    Problem,
    shape=st.builds(
        lambda kv_heads, group, dim, window: AttentionShape(kv_heads * group, kv_heads, dim, window),
        st.integers(1, 3),
        st.sampled_from([1, 2, 3, 7]),
        st.sampled_from([8, 24, 64]),
        st.none() | st.sampled_from([1, 15, 100]),
    ),
    dtype=st.sampled_from(sorted(DTYPES)),
    tokens_per_page=st.sampled_from([1, 5, 13, 16, 80, 192]),
    rows=st.lists(
        st.tuples(st.integers(0, 330), st.sampled_from([1, 1, 2, 15, 16, 17, 33])), min_size=1, max_size=5
    ).map(tuple),
)
LONG = Problem(AttentionShape(4, 2, 32), "fp32", 16, ((500, 1), (0, 260), (255, 1), (256, 1), (257, 40)))


@settings(max_examples=40)
@given(problem=problems)
@example(LONG)
def test_attention_equals_softmax_and_rows_are_independent(problem):
    """Every row agrees with a naive fp64 softmax, and has the same bits alone as in the batch."""
    together = problem.attend(tuple(range(len(problem.rows))))
    tolerance = TOLERANCE[problem.dtype]
    for asid, got in enumerate(together):
        torch.testing.assert_close(got.double(), problem.naive(asid), atol=tolerance, rtol=tolerance)
        assert torch.equal(problem.attend((asid,))[0], got)


def test_folded_products_serve_where_bmm_does_not(monkeypatch):
    """With a bmm that no tile passed on, attention is still right and independent of the batch."""
    monkeypatch.setattr(attention_module, "_verified_tiles", lambda *_: ((1, 16), False))
    problem = Problem(AttentionShape(4, 2, 8), "fp32", 13, ((40, 1), (3, 30)))
    for asid, got in enumerate(problem.attend((0, 1))):
        torch.testing.assert_close(got.double(), problem.naive(asid), atol=2e-5, rtol=2e-5)
        assert torch.equal(problem.attend((asid,))[0], got)


def test_long_prefills_are_cut_into_groups(monkeypatch):
    """A prefill whose keys would not fit the scratch memory runs in groups, with the same bits."""
    expected = LONG.attend((1, 4))
    monkeypatch.setattr(attention_module, "MAX_GROUP_BYTES", 1)
    for got, want in zip(LONG.attend((1, 4)), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("page", "block"), [(1, 1), (16, 16), (80, 80), (128, 128), (192, 96), (131, 1), (3264, 96), (250, 125)]
)
def test_key_blocks_divide_pages(page, block):
    """A block divides its page, holds at most 128 keys, and is a multiple of 16 when the page is."""
    assert key_block_tokens(page) == block
