"""Native attention equals an fp64 softmax over the same keys; a token's bits depend on what it sees alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native._cpu import ffi, lib

from native.attention import KVLayout, attend, make_spans, num_items, rope_write_kv, use_variant

VARIANTS = [variant for variant in range(lib.LLMOS_NUM_VARIANTS) if variant <= lib.llmos_best_variant()]
FP_FORMATS = ["fp32", "fp16", "bf16"]
MAX_POSITIONS = 1100


@pytest.fixture(params=VARIANTS, ids=["plain", "avx2", "avx512"][: len(VARIANTS)])
def variant(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every variant that this machine has."""
    assert use_variant(request.param)
    yield request.param
    use_variant(lib.llmos_best_variant())


class Space(NamedTuple):
    """One sequence: unrotated queries, keys and values of all its positions, and its pages."""

    qkv: np.ndarray
    pages: list[int]


class Memory:
    """Pages for keys and values, filled with NaN (a byte pattern that is huge as int8, too)."""

    def __init__(self, layout: KVLayout, num_pages: int) -> None:
        self.layout = layout
        size = num_pages * layout.page_bytes
        self.arrays = [np.full(size + 64, 0xFF, dtype=np.uint8) for _ in range(2)]
        self.views = [array[-array.ctypes.data % 64 :][:size] for array in self.arrays]
        addresses = [ffi.cast("void *", view.ctypes.data) for view in self.views]
        self.kv = layout.bind(*addresses)


def rope_tables(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles as a model has them."""
    angles = np.arange(MAX_POSITIONS)[:, None] * 10000.0 ** -(np.arange(0, dim, 2) / dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: np.ndarray, positions: np.ndarray, dim: int) -> np.ndarray:
    """Rotary embedding as it is done, each operation rounded to fp32: [tokens, heads, dim].

    In fp64 a key would now and then be rounded to another number of a 16-bit format.
    """
    cos, sin = (table[positions][:, None] for table in rope_tables(dim))
    a, b = x[..., : dim // 2], x[..., dim // 2 :]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def as_stored(x: np.ndarray, format: str) -> np.ndarray:
    """Round to what the format keeps."""
    x = x.astype(np.float32)
    if format == "fp16":
        return x.astype(np.float16).astype(np.float64)
    if format == "bf16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)
    if format == "int8":
        largest = np.abs(x).max(axis=-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            numbers = np.where(largest > 0, np.rint(x * (np.float32(127) / largest)), 0)
        return np.clip(numbers, -127, 127).astype(np.float64) * (largest / np.float32(127))
    return x.astype(np.float64)


def reference(layout: KVLayout, space: Space) -> np.ndarray:
    """Outputs of every position in fp64: [tokens, num_heads * dim]."""
    dim, heads, kv_heads = layout.head_dim, layout.num_heads, layout.num_kv_heads
    tokens = len(space.qkv)
    x = space.qkv.reshape(tokens, -1, dim)
    positions = np.arange(tokens)
    q, k = rotate(x[:, :heads], positions, dim), rotate(x[:, heads : heads + kv_heads], positions, dim)
    k, v = as_stored(k, layout.format), as_stored(x[:, heads + kv_heads :], layout.format)
    q = as_stored(q, "int8") if layout.format == "int8" else q.astype(np.float64)
    k, v = np.repeat(k, heads // kv_heads, axis=1), np.repeat(v, heads // kv_heads, axis=1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
    hidden = positions[None, :] > positions[:, None]
    if layout.window is not None:
        hidden |= positions[None, :] <= positions[:, None] - layout.window
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khd->qhd", weights, v).reshape(tokens, -1)


def make_space(layout: KVLayout, num_tokens: int, rng: np.random.Generator, pages: list[int]) -> Space:
    """A sequence of random numbers."""
    width = (layout.num_heads + 2 * layout.num_kv_heads) * layout.head_dim
    return Space(rng.standard_normal((num_tokens, width)).astype(np.float32), pages)


def run(
    memory: Memory, spaces: list[Space], rows: list[tuple[int, int, int]], *, items_at_once: int | None = None
) -> list[np.ndarray]:
    """One step of rows (space, start, num_tokens): what each row's tokens get."""
    layout = memory.layout
    spans, table, parts, first = [], [], [], 0
    for space, start, count in rows:
        spans.append((start, count, first, len(table)))
        num_pages = (start + count - 1) // layout.tokens_per_page + 1
        table += spaces[space].pages[:num_pages]
        parts.append(spaces[space].qkv[start : start + count])
        first += count
    qkv = np.concatenate(parts).copy()
    span_array, page_array = make_spans(spans), np.array(table, dtype=np.int32)
    cos, sin = rope_tables(layout.head_dim)
    rope_write_kv(memory.kv, span_array, page_array, qkv, cos, sin)
    out = np.full((first, layout.num_heads * layout.head_dim), np.nan, dtype=np.float32)
    total = num_items(memory.kv, span_array)
    step = items_at_once or total
    for item in reversed(range(0, total, step)):
        attend(memory.kv, span_array, page_array, qkv, out, (item, min(item + step, total)))
    return [out[begin : begin + count] for _, count, begin, _ in spans]


def num_pages(layout: KVLayout, num_tokens: int) -> int:
    """Pages of so many tokens."""
    return -(-num_tokens // layout.tokens_per_page)


@pytest.mark.parametrize("format", FP_FORMATS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page"),
    [
        (4, 4, 8, 6),
        (8, 2, 64, 64),
        (14, 2, 64, 48),
        (6, 1, 128, 16),
        (3, 3, 40, 1),
        (12, 4, 256, 32),
        (5, 1, 24, 96),
    ],
)
def test_prompt_equals_reference(
    variant: int, format: Any, heads: int, kv_heads: int, dim: int, page: int
) -> None:
    """A prompt of two chunks and more, in scattered pages, agrees with fp64 to 1e-5."""
    layout = KVLayout(format, heads, kv_heads, dim, page)
    count = 530 if dim < 128 else 290
    rng = np.random.default_rng(dim)
    pages = rng.permutation(num_pages(layout, count) + 3)[: num_pages(layout, count)].tolist()
    space = make_space(layout, count, rng, pages)
    memory = Memory(layout, max(pages) + 1)
    (out,) = run(memory, [space], [(0, 0, count)])
    np.testing.assert_allclose(out, reference(layout, space), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "page"), [(4, 4, 8, 6), (8, 2, 64, 64), (6, 1, 128, 16), (5, 1, 24, 96)]
)
def test_int8_keys_and_values(variant: int, heads: int, kv_heads: int, dim: int, page: int) -> None:
    """With int8 keys and values the result is that of the numbers stored, queries and weights rounded."""
    layout = KVLayout("int8", heads, kv_heads, dim, page)
    space = make_space(layout, 290, np.random.default_rng(dim), list(range(num_pages(layout, 290))))
    memory = Memory(layout, len(space.pages))
    (out,) = run(memory, [space], [(0, 0, 290)])
    np.testing.assert_allclose(out, reference(layout, space), rtol=0, atol=2e-4)
    fresh = Memory(layout, len(space.pages))
    parts = [run(fresh, [space], [(0, start, 29)])[0] for start in range(0, 290, 29)]
    assert np.array_equal(np.concatenate(parts), out)


@settings(max_examples=40)
@given(
    data=st.data(),
    format=st.sampled_from([*FP_FORMATS, "int8"]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    dim=st.integers(1, 32).map(lambda n: 8 * n),
    page=st.sampled_from([1, 5, 15, 16, 32, 48, 112]),
    window=st.none() | st.integers(1, 300),
    variant_index=st.sampled_from(VARIANTS),
)
def test_ragged_chunks_equal_reference_and_decode(
    data: st.DataObject,
    format: Any,
    kv_heads: int,
    group: int,
    dim: int,
    page: int,
    window: int | None,
    variant_index: int,
) -> None:
    """Ragged rows of several spaces, cut anywhere, give a lone token's bits, and about those of fp64."""
    use_variant(variant_index)
    try:
        layout = KVLayout(format, group * kv_heads, kv_heads, dim, page, window=window)
        lengths = st.sampled_from([1, max(1, page - 1), page, page + 1]) | st.integers(1, 280)
        rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
        spaces, used = [], 0
        for length in data.draw(st.lists(lengths, min_size=1, max_size=3)):
            pages = list(range(used, used + num_pages(layout, length)))
            used += len(pages)
            spaces.append(make_space(layout, length, rng, pages[::-1]))
        memory, starts = Memory(layout, used), [0] * len(spaces)
        results: list[list[np.ndarray]] = [[] for _ in spaces]
        while any(start < len(space.qkv) for start, space in zip(starts, spaces, strict=True)):
            rows = []
            for index, space in enumerate(spaces):
                left = len(space.qkv) - starts[index]
                if left and (count := data.draw(st.just(left) | st.integers(0, left))):
                    rows.append((index, starts[index], count))
                    starts[index] += count
            if rows:
                at_once = data.draw(st.sampled_from([None, 1, 2]))
                outs = run(memory, spaces, rows, items_at_once=at_once)
                for (index, _, _), out in zip(rows, outs, strict=True):
                    results[index].append(out)
        for space, parts in zip(spaces, results, strict=True):
            whole = np.concatenate(parts)
            atol = 5e-4 if format == "int8" else 2e-5
            np.testing.assert_allclose(whole, reference(layout, space), rtol=0, atol=atol)
            alone = Memory(layout, used)
            last = len(space.qkv) - 1
            for start in range(0, last, 97):
                run(alone, [space], [(0, start, min(97, last - start))])
            (decoded,) = run(alone, [space], [(0, last, 1)])
            assert np.array_equal(decoded[0], whole[-1])
    finally:
        use_variant(lib.llmos_best_variant())


def test_decode_equals_prefill_at_every_position(variant: int) -> None:
    """Token by token and all at once, every position has the same bits, with a window and without."""
    for window in (None, 37):
        layout = KVLayout("fp16", 8, 2, 64, 32, window=window)
        space = make_space(layout, 300, np.random.default_rng(5), list(range(10)))
        (whole,) = run(Memory(layout, 10), [space], [(0, 0, 300)])
        memory = Memory(layout, 10)
        for position in range(300):
            (one,) = run(memory, [space], [(0, position, 1)])
            assert np.array_equal(one[0], whole[position]), position


def test_no_byte_outside_of_pages_is_touched(variant: int) -> None:
    """With a guard page right behind the keys, the values and the output, the last page works."""
    layout = KVLayout("fp16", 2, 1, 24, 16, page_bytes=mmap.PAGESIZE)
    out = ffi.new("void **")
    bases = []
    for _ in range(2):
        assert lib.llmos_reserve(4 * mmap.PAGESIZE, out) == 0
        bases.append(int(ffi.cast("uintptr_t", out[0])))
    fd = os.memfd_create("pages")
    os.ftruncate(fd, 2 * mmap.PAGESIZE)
    try:
        done = ffi.new("size_t *")
        for index, base in enumerate(bases):
            assert (
                lib.llmos_map_frames(ffi.cast("void *", base), mmap.PAGESIZE, fd, 1, [1], [index], done) == 0
            )
        # the layer's numbers end where the page does
        offset = mmap.PAGESIZE - layout.layer_bytes
        kv = layout.bind(*(ffi.cast("void *", base + mmap.PAGESIZE + offset) for base in bases))
        space = make_space(layout, 16, np.random.default_rng(1), [0])
        qkv = space.qkv.copy()
        cos, sin = rope_tables(24)
        spans = make_spans([(0, 16, 0, 0)])
        rope_write_kv(kv, spans, None, qkv, cos, sin)
        result = np.empty((16, 48), dtype=np.float32)
        attend(kv, spans, None, qkv, result)
        np.testing.assert_allclose(result, reference(layout, space), rtol=0, atol=1e-5)
    finally:
        os.close(fd)
        for base in bases:
            lib.llmos_release(ffi.cast("void *", base), 4 * mmap.PAGESIZE)


def test_heads_are_normalised_before_rotation(variant: int) -> None:
    """With norms, queries and keys are those of a model that normalises them itself."""
    layout = KVLayout("fp32", 4, 2, 32, 16)
    rng = np.random.default_rng(3)
    space = make_space(layout, 40, rng, [0, 1, 2])
    q_norm, k_norm = (rng.standard_normal(32).astype(np.float32) for _ in range(2))
    heads = space.qkv.reshape(40, 8, 32).astype(np.float64)
    scaled = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-6)
    normed = np.concatenate((scaled[:, :4] * q_norm, scaled[:, 4:6] * k_norm, heads[:, 6:]), axis=1)
    expected = reference(layout, Space(normed.reshape(40, -1).astype(np.float32), space.pages))
    memory, qkv, spans = Memory(layout, 3), space.qkv.copy(), make_spans([(0, 40, 0, 0)])
    rope_write_kv(memory.kv, spans, None, qkv, *rope_tables(32), q_norm, k_norm, 1e-6)
    out = np.empty((40, 128), dtype=np.float32)
    attend(memory.kv, spans, None, qkv, out)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


def test_a_broken_query_stays_broken_and_alone(variant: int) -> None:
    """NaN in one token's query shows in its output and in no other's."""
    for format in (*FP_FORMATS, "int8"):
        layout = KVLayout(format, 2, 1, 16, 16)
        space = make_space(layout, 30, np.random.default_rng(8), [0, 1])
        (good,) = run(Memory(layout, 2), [space], [(0, 0, 30)])
        space.qkv[29, 3] = np.nan
        (bad,) = run(Memory(layout, 2), [space], [(0, 0, 30)])
        assert np.isnan(bad[29, :16]).all()
        assert np.array_equal(bad[:29], good[:29])


@pytest.mark.parametrize(
    "change",
    [{"head_dim": 12}, {"head_dim": 264}, {"tokens_per_page": 24}, {"num_kv_heads": 3}, {"page_bytes": 64}],
)
def test_other_shapes_are_refused(change: dict[str, int]) -> None:
    """A shape that the kernels cannot serve is a ValueError."""
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "tokens_per_page": 32, **change}
    with pytest.raises(ValueError, match="not a shape"):
        KVLayout("fp16", **shape)
