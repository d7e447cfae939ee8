"""Sampling in C against the readable sampler: the same tokens kept and drawn, the same bits everywhere."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from native._cpu import lib

from drivers.model.randomness import uniform
from drivers.model.reference_sampler import adjust_logits, choose_token, kept_probabilities
from native.attention import use_variant
from native.sampling import Choice, Draw, sample, survey
from native.variant import usable_variants

# 64 logits are looked at together: sizes around that, and around many of them
SIZES = [1, 2, 50, 63, 64, 65, 128, 1000, 4097]
KINDS = ["gauss", "peaked", "flat", "coarse"]
TOLERANCE = 1e-12  # of a probability: two roundings of exp, and sums of as many terms as there are tokens


def logits_of(kind: str, size: int, seed: int) -> np.ndarray:
    """Logits [size] like those of an uncertain model, of a certain one, all equal, or with many ties."""
    rng = np.random.default_rng((seed, size))
    logits = 2.5 * rng.standard_normal(size)
    if kind == "peaked":
        logits[rng.integers(0, size, 5)] += 14.0
    elif kind == "flat":
        logits[:] = logits[0]
    elif kind == "coarse":
        logits = np.round(logits)
    return logits.astype(np.float32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Draw]:
    """A row, and a way to draw from it."""
    size = draw(st.sampled_from(SIZES))
    ids = st.lists(st.integers(0, size - 1), max_size=9, unique=True).map(
        lambda x: np.array(x, dtype=np.int64)
    )
    seen, bias = draw(ids), draw(ids)
    rng = np.random.default_rng(len(seen))
    return logits_of(draw(st.sampled_from(KINDS)), size, draw(st.integers(0, 9))), Draw(
        temperature=draw(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 1.7, 1e3])),
        uniform=uniform(draw(st.integers(0, 10**9)), 0),
        top_k=draw(st.sampled_from([0, 1, 5, 49, 64, 300, 10_000])),
        top_p=draw(st.sampled_from([1.0, 0.95, 0.5, 1e-9])),
        min_p=draw(st.sampled_from([0.0, 0.02, 0.5, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.3, 0.7])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.4, -1.0])),
        presence_penalty=draw(st.sampled_from([0.0, 0.9])),
        seen_ids=seen,
        num_output=rng.integers(0, 4, len(seen)),
        bias_ids=bias,
        bias_values=rng.choice([-100.0, -1.5, 2.0, 100.0], len(bias)),
        banned_ids=draw(ids),
        num_top=draw(st.sampled_from([None, 0, 1, 20])),
    )


@pytest.fixture(scope="module", autouse=True)
def _best_variant_afterwards() -> Iterator[None]:
    yield
    use_variant(lib.llmos_best_variant())


@settings(max_examples=400)
@given(case=cases())
def test_the_same_token_as_the_readable_sampler(case):
    """Token and log-probabilities are the reference's, in every variant with the same bits."""
    logits, draw = case
    expected = choose_token(logits, draw)
    results = []
    for variant in usable_variants().values():
        assert use_variant(variant)
        results.append(sample(logits, draw))
    choice = results[0]
    assert results == [choice] * len(results)
    assert (choice.token, choice.num_bad, choice.top_ids) == (expected.token, 0, expected.top_ids)
    assert choice.logprob == pytest.approx(expected.logprob, rel=TOLERANCE, abs=TOLERANCE)
    assert choice.top_logprobs == pytest.approx(expected.top_logprobs, rel=TOLERANCE, abs=TOLERANCE)


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(1, 300) | st.sampled_from([1000, 4097]),
    kind=st.sampled_from(KINDS),
    bad=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from([math.nan, math.inf, -math.inf])), max_size=4
    ),
    cut=st.integers(0, 70),
)
def test_surveys(size, kind, bad, cut):
    """The largest of each 64, and how many are not finite, are NumPy's, whole and in two pieces."""
    logits = logits_of(kind, size, cut)
    for place, value in bad:
        logits[place % size] = value
    num_bad = int((~np.isfinite(logits)).sum())
    padded = np.full(-(-size // 64) * 64, -np.inf, dtype=np.float32)
    padded[:size] = logits
    pieces = [piece for piece in np.split(logits, [cut * 64]) if len(piece)]
    for variant in usable_variants().values():
        use_variant(variant)
        surveyed, counted = survey(logits)
        assert counted == num_bad == sum(survey(piece)[1] for piece in pieces)
        if not num_bad:
            assert np.array_equal(surveyed, padded.reshape(-1, 64).max(axis=1))
            assert np.array_equal(surveyed, np.concatenate([survey(piece)[0] for piece in pieces]))


@settings(max_examples=150)
@given(case=cases())
def test_kept_tokens_and_their_probabilities(case):
    """A token is drawn where the reference's running sum passes it: just inside each of its two bounds."""
    logits, draw = case
    draw = evolve(draw, temperature=draw.temperature or 0.5, num_top=None)
    scores = adjust_logits(logits.astype(np.float64), draw)
    if not scores.max() > -np.inf:
        assert sample(logits, draw) == Choice(-1)
        return
    kept = kept_probabilities(scores, draw)
    reached = np.cumsum(kept) / kept.sum()
    probabilities = kept / kept.sum()
    wide = np.flatnonzero(probabilities > 4 * TOLERANCE)
    for token in {int(wide[0]), int(wide[-1]), int(np.argmax(kept)), int(wide[len(wide) // 2])}:
        below = reached[token - 1] if token else 0.0
        for at in (below + TOLERANCE, reached[token] - TOLERANCE):
            assert sample(logits, evolve(draw, uniform=at)).token == token


@pytest.mark.parametrize("draw", [
    Draw(temperature=1.0),
    Draw(temperature=0.7, top_k=8),
    Draw(temperature=1.3, top_p=0.8),
    Draw(temperature=1.0, min_p=0.1),
    Draw(1.0, top_k=12, top_p=0.9, min_p=0.02, bias_ids=np.array([3]), bias_values=np.array([1.0])),
])  # fmt: skip
def test_frequencies_follow_the_distribution(draw):
    """Over 4 000 random numbers, Pearson's chi-square against the kept probabilities is unremarkable."""
    logits = np.random.default_rng(3).standard_normal(20).astype(np.float32)
    kept = kept_probabilities(adjust_logits(logits.astype(np.float64), draw), draw)
    expected = 4000 * kept / kept.sum()
    counts = Counter(sample(logits, evolve(draw, uniform=uniform(9, i))).token for i in range(4000))
    assert set(counts) <= set(np.flatnonzero(kept).tolist())
    chi_square = sum((counts[i] - count) ** 2 / count for i, count in enumerate(expected) if count)
    degrees = np.count_nonzero(kept) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)  # four standard deviations


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("places", [[0], [64], [4096], [5, 70, 4000]])
def test_logits_that_are_not_finite_are_counted(bad, places):
    """However a row is drawn, NaN and infinities are counted instead."""
    logits = logits_of("gauss", 4097, 0)
    logits[places] = bad
    for draw in (Draw(), Draw(temperature=1.0, uniform=0.5), Draw(temperature=1.0, top_k=3, num_top=2)):
        assert sample(logits, draw) == Choice(-1, len(places))


@pytest.mark.parametrize("size", [1, 64, 100])
def test_no_token_is_allowed(size):
    """With every token banned there is none; with all but one, it is that one."""
    logits, ids = logits_of("gauss", size, 1), np.arange(size)
    for draw in (
        Draw(num_top=1),
        Draw(temperature=1.0, uniform=0.9),
        Draw(temperature=1.0, top_p=0.9, top_k=3),
    ):
        assert sample(logits, evolve(draw, banned_ids=ids)).token == -1
        assert sample(logits, evolve(draw, banned_ids=ids[: size - 1])).token == size - 1


def test_equal_logits_are_kept_from_the_lowest_id():
    """Of a thousand equal tokens, top-k and top-p keep the first ones, and the draw is even among them."""
    logits = np.full(1000, -3.25, dtype=np.float32)
    for draw in (Draw(temperature=1.0, top_k=100), Draw(temperature=1.0, top_p=0.1)):
        tokens = [sample(logits, evolve(draw, uniform=(i + 0.5) / 100)).token for i in range(100)]
        assert tokens == list(range(100))
    assert sample(logits, Draw(num_top=20)).top_ids == tuple(range(20))


def test_extremes_of_float_neither_overflow_nor_vanish():
    """Logits at the ends of fp32, and temperatures at the ends of fp64, still give the certain token."""
    logits = np.array([-3e38, 3e38, 0.0, 3e38], dtype=np.float32)
    for temperature in (5e-324, 1e-300, 1e-6, 1.0, 1e3):
        for cut in (Draw(), Draw(top_p=0.6), Draw(min_p=0.5), Draw(top_k=2)):
            draw = evolve(cut, temperature=temperature)
            assert [sample(logits, evolve(draw, uniform=u)).token for u in (0.0, 0.49, 0.51, 1 - 2**-53)] == [
                1,
                1,
                3,
                3,
            ]


def test_large_vocabularies_agree():
    """At 128 256 tokens the reference's tokens come out, whichever way leads to them."""
    for kind in KINDS:
        logits = logits_of(kind, 128_256, 2)
        for i, draw in enumerate((
            Draw(temperature=1.0), Draw(temperature=0.8, top_k=50), Draw(temperature=1.0, top_k=5000),
            Draw(temperature=1.0, top_p=0.9), Draw(temperature=0.6, min_p=0.05),
        )):  # fmt: skip
            draw = evolve(draw, uniform=uniform(1, i))
            assert sample(logits, draw).token == choose_token(logits, draw).token


@pytest.mark.parametrize("name", ["seen_ids", "bias_ids", "banned_ids"])
def test_ids_outside_are_refused(name):
    """An id that has no logit is named, and so are logits that are none."""
    logits = np.zeros(10, dtype=np.float32)
    for ids in ([10], [3, -1]):
        with pytest.raises(ValueError, match=name):
            sample(logits, evolve(Draw(), **{name: np.array(ids)}))
    for wrong in (logits.astype(np.float64), logits[:0], logits[::2], logits.reshape(2, 5)):
        with pytest.raises(ValueError, match="is not a row of fp32"):
            sample(wrong, Draw())
