"""Transparency of the forward pass: company, chunking and stale memory change no bit of a row."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from model_zoo import Memory, random_model

from llmos.device import Row

model_of = functools.cache(random_model)
NUM_SPACES = 33


def tokens_of(seed: int, num_tokens: int) -> tuple[int, ...]:
    """Pseudo-random token ids."""
    return tuple(torch.randint(101, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist())


@pytest.fixture(autouse=True)
def threads(request):
    """The number of threads that torch uses, one unless the test says otherwise; restored afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


# two threads on busy cores are slow: they get the formats whose products take different library paths
FORMATS = pytest.mark.parametrize(
    ("dtype", "kv", "native_threads", "threads"),
    [
        *((dtype, None, 0, 1) for dtype in ("fp32", "bf16", "fp16")),
        *((dtype, None, 0, 2) for dtype in ("fp32", "bf16")),
        *((dtype, None, 1, 1) for dtype in ("fp32", "bf16", "fp16", "w8a8", "w4a8")),
        *((dtype, None, 2, 1) for dtype in ("fp32", "fp16", "w8a8", "w4a8")),
        *(("bf16", None, 3, 1), ("w8a8", "int8", 1, 1), ("w4a8", "int8", 2, 1), ("fp32", "int8", 2, 1)),
    ],
    indirect=["threads"],
)
NATIVE = pytest.mark.parametrize("native_threads", [0, 2], ids=["torch", "native"])


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal and, where they are floats, finite everywhere."""
    assert torch.isfinite(expected).all()
    assert torch.equal(got, expected)


@functools.cache
def quiet_run(
    dtype: str, kv: str | None, native_threads: int, threads: int, seed: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and memory of a prompt that runs alone and in one piece, on one native thread if on any."""
    memory = Memory(model_of(dtype, native_threads=min(1, native_threads), kv=kv), 1)
    logits = memory.run(Row(0, 0, tokens_of(seed, num_tokens), True))[0]
    return logits, memory.contents(0, num_tokens)


neighbours = st.lists(
    st.tuples(st.integers(0, 200), st.sampled_from([1, 1, 1, 2, 7, 33])), max_size=NUM_SPACES - 1
)
cuts = st.one_of(
    st.sampled_from([[1], [7], [64], [150]]), st.lists(st.integers(1, 70), min_size=1, max_size=6)
)


@FORMATS
def test_chunks_and_company_change_no_bit(dtype, kv, native_threads, threads):
    """Logits, keys and values of a prompt are those of a quiet run, whatever rides along and however cut."""

    @settings(max_examples=40 if threads == 1 else 10)
    @given(num_tokens=st.integers(1, 150), cut=cuts, company=neighbours, place=st.integers(0, 32))
    @example(num_tokens=40, cut=[1], company=[(100, 1)] * 3, place=0)
    @example(num_tokens=70, cut=[7], company=[(15, 2), (16, 1), (17, 33)], place=2)
    @example(num_tokens=130, cut=[64], company=[(0, 33)] * 4, place=4)
    def check(num_tokens: int, cut: list[int], company: list[tuple[int, int]], place: int) -> None:
        seed = num_tokens % 5
        tokens = tokens_of(seed, num_tokens)
        memory = Memory(model_of(dtype, native_threads=native_threads, kv=kv), NUM_SPACES, seed=1)
        start = step = 0
        while start < num_tokens:
            size = min(cut[step % len(cut)], num_tokens - start)
            row = Row(0, start, tokens[start : start + size], start + size == num_tokens)
            # the neighbours read pages that were never written: NaN rides along in the same products
            others = [Row(1 + i, at, tokens_of(i, n), i % 2 == 0) for i, (at, n) in enumerate(company)]
            others.insert(min(place, len(others)), row)
            logits = memory.run(*others)
            start, step = start + size, step + 1
        index = sum(other.sample for other in others[: others.index(row)])
        expected_logits, expected_memory = quiet_run(dtype, kv, native_threads, threads, seed, num_tokens)
        assert_same_bits(logits[index], expected_logits)
        assert_same_bits(memory.contents(0, num_tokens), expected_memory)

    check()


@FORMATS
def test_thirty_two_rows_at_once_equal_thirty_two_alone(dtype, kv, native_threads, threads):
    """Prefills and decodes of 32 spaces in one step give each the bits of its own step."""
    model = model_of(dtype, native_threads=native_threads, kv=kv)
    sizes = [(5 * i % 90 + 1, 1 if i % 3 else 5 + i) for i in range(32)]  # (history, new tokens)
    together, alone = Memory(model, 32), Memory(model, 32, seed=9)
    rows = []
    for asid, (history, size) in enumerate(sizes):
        tokens = tokens_of(asid, history + size)
        for memory in (together, alone):
            memory.run(Row(asid, 0, tokens[:history], False))
        rows.append(Row(asid, history, tokens[history:], True))
    logits = together.run(*rows)
    for asid, row in enumerate(rows):
        assert_same_bits(logits[asid], alone.run(row)[0])


@NATIVE
@pytest.mark.parametrize("tokens_per_page", [5, 16, 80, 256])
def test_decoding_equals_prefilling(tokens_per_page, native_threads):
    """Whatever the page size, each decode step's logits are those of a prefill that ends there."""
    model = model_of("fp32", native_threads=native_threads)
    tokens = tokens_of(3, 170)
    decoding = Memory(model, 1, tokens_per_page)
    decoding.run(Row(0, 0, tokens[:150], False))
    for position in range(150, 170):
        got = decoding.run(Row(0, position, tokens[position : position + 1], True))
        if position % 6 == 0:
            prefilling = Memory(model, 1, tokens_per_page)
            assert_same_bits(got, prefilling.run(Row(0, 0, tokens[: position + 1], True)))


@NATIVE
def test_a_window_is_transparent_too(native_threads):
    """With a sliding window shorter than the prompt, chunks of 1, 7 and 64 give the bits of one piece."""
    model = random_model(window=21, native_threads=native_threads)
    tokens = tokens_of(4, 140)
    expected = Memory(model).run(Row(0, 0, tokens, True))
    unlimited = Memory(model_of("fp32", native_threads=native_threads))
    assert not torch.equal(expected, unlimited.run(Row(0, 0, tokens, True)))
    for size in (1, 7, 64):
        memory = Memory(model)
        for chunk in range(math.ceil(len(tokens) / size)):
            start = chunk * size
            got = memory.run(Row(0, start, tokens[start : start + size], start + size >= len(tokens)))
        assert_same_bits(got, expected)


@NATIVE
def test_long_contexts_join_many_waves(native_threads):
    """A context of more key blocks than are joined at once is transparent too."""
    model = model_of("fp32", native_threads=native_threads)
    tokens = tokens_of(5, 400)
    expected = Memory(model, 1, 16).run(Row(0, 0, tokens, True))  # 25 blocks, 16 to a wave
    memory = Memory(model, 1, 16)
    for start, end in ((0, 255), (255, 257), (257, 399), (399, 400)):
        got = memory.run(Row(0, start, tokens[start:end], end == 400))
    assert_same_bits(got, expected)


def test_a_row_that_cannot_run_is_explained():
    """Tokens outside the vocabulary and positions outside the context are named; good rows pass."""
    model = model_of("fp32")
    assert model.explain_bad_row(Row(0, 0, (0, 100), True)) is None
    assert model.explain_bad_row(Row(0, 511, (1,), True)) is None
    assert "vocabulary of 101" in model.explain_bad_row(Row(0, 0, (101,), True))
    assert "vocabulary of 101" in model.explain_bad_row(Row(0, 0, (-1,), True))
    assert "context of 512" in model.explain_bad_row(Row(0, 511, (1, 2), True))
    assert "positions -1" in model.explain_bad_row(Row(0, -1, (1,), True))


@NATIVE
def test_nothing_sampled_gives_no_logits(native_threads):
    """A step without sampling rows returns an empty [0, vocab_size] tensor."""
    model = model_of("fp32", native_threads=native_threads)
    assert Memory(model).run(Row(0, 0, (1, 2, 3), False)).shape == (0, 101)
