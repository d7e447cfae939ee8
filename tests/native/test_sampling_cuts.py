"""Cuts in any order, mirostat, given tokens and repeats in C against the readable ones."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from native._cpu import lib

from drivers.model.randomness import uniform
from drivers.model.reference_sampler import choose_token, cut_scores
from native.attention import use_variant
from native.sampling import Choice, Cut, Draw, MirostatDraw, repeats, sample
from native.variant import usable_variants
from tests.native.test_sampling import KINDS, TOLERANCE, logits_of

SIZES = [1, 2, 50, 65, 1000, 4097]


@pytest.fixture(scope="module", autouse=True)
def _best_variant_afterwards() -> Iterator[None]:
    yield
    use_variant(lib.llmos_best_variant())


# Values at which no cut falls exactly between two tokens by a rounding.
cut_lists = st.lists(
    st.one_of(
        st.builds(Cut, st.just("temperature"), st.sampled_from([1e-6, 0.31, 1.0, 1.7, 1e3])),
        st.builds(
            Cut,
            st.just("dynatemp"),
            st.sampled_from([0.31, 1.1]),
            st.sampled_from([0.2, 0.9]),
            st.sampled_from([1.0, 0.6, 3.0]),
        ),
        st.builds(Cut, st.just("top_n_sigma"), st.sampled_from([0.31, 1.13, 2.57])),
        st.builds(Cut, st.just("top_k"), st.sampled_from([1, 2, 7, 64, 3000])),
        st.builds(Cut, st.just("typical_p"), st.sampled_from([0.1117, 0.613, 0.9713])),
        st.builds(Cut, st.just("top_p"), st.sampled_from([1e-9, 0.5113, 0.9517])),
        st.builds(Cut, st.just("min_p"), st.sampled_from([0.0213, 0.511])),
        st.builds(Cut, st.just("xtc"), st.sampled_from([0.00113, 0.1017, 0.317])),
    ),
    max_size=5,
).map(tuple)

mirostats = st.builds(
    MirostatDraw,
    st.sampled_from([1, 2]),
    st.sampled_from([0.5, 3.0, 5.0]),
    st.sampled_from([0.1, 0.9]),
    st.sampled_from([-0.713, 0.313, 3.137, 10.0, 200.0]),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, Draw]:
    """A row, and a way to draw from it by cuts."""
    size = draw(st.sampled_from(SIZES))
    ids = st.lists(st.integers(0, size - 1), max_size=9, unique=True).map(
        lambda x: np.array(x, dtype=np.int64)
    )
    bias = np.array(draw(st.lists(st.integers(0, size - 1), max_size=6)), dtype=np.int64)  # with repetitions
    num_top = draw(st.sampled_from([None, 0, 1, 20]))
    return logits_of(draw(st.sampled_from(KINDS)), size, draw(st.integers(0, 9))), Draw(
        temperature=draw(st.sampled_from([0.0, 1.0, 1.0, 1.0])),
        uniform=uniform(draw(st.integers(0, 10**9)), 0),
        bias_ids=bias,
        bias_values=np.resize(np.array([-100.0, -1.5, 2.0]), len(bias)),
        banned_ids=draw(ids),
        allowed_ids=draw(st.one_of(st.just(np.empty(0, dtype=np.int64)), ids)),
        num_top=num_top,
        cuts=draw(cut_lists),
        mirostat=draw(st.one_of(st.none(), mirostats)),
        is_processed=draw(st.booleans()),
    )


def same(choice: Choice, expected: Choice) -> bool:
    """Equal, but for rounding."""
    mu, expected_mu = choice.mu or 0.0, expected.mu or 0.0
    return (
        (choice.token, choice.num_bad, choice.top_ids, choice.rank, choice.mu is None)
        == (expected.token, 0, expected.top_ids, expected.rank, expected.mu is None)
        and math.isclose(choice.logprob, expected.logprob, rel_tol=1e-11, abs_tol=1e-11)
        and choice.top_logprobs == pytest.approx(expected.top_logprobs, rel=1e-11, abs=1e-11)
        and math.isclose(mu, expected_mu, rel_tol=1e-11, abs_tol=1e-11)
    )


@settings(max_examples=500)
@given(case=cases())
def test_the_same_token_as_the_readable_cuts(case):
    """Token, log-probabilities and mu are the reference's, in every variant with the same bits."""
    logits, draw = case
    expected = choose_token(logits, draw)
    results = []
    for variant in usable_variants().values():
        assert use_variant(variant)
        results.append(sample(logits, draw))
    assert results == [results[0]] * len(results)
    assert same(results[0], expected), (results[0], expected)


@settings(max_examples=200)
@given(case=cases())
def test_tokens_that_are_cut_are_not_drawn_and_others_are(case):
    """A token is drawn where the reference's running sum passes it: just inside each of its two bounds."""
    logits, draw = case
    draw = evolve(draw, temperature=1.0, num_top=None, banned_ids=draw.banned_ids[:0])
    scores = np.array(logits, dtype=np.float64)
    np.add.at(scores, draw.bias_ids, draw.bias_values)
    if len(draw.allowed_ids):
        scores = np.where(np.isin(np.arange(len(scores)), draw.allowed_ids), scores, -np.inf)
    weights = np.exp(cut_scores(scores, draw))
    probabilities = weights / weights.sum()
    reached = np.cumsum(probabilities)
    wide = np.flatnonzero(probabilities > 4 * TOLERANCE)
    for token in {int(wide[0]), int(wide[-1]), int(np.argmax(weights)), int(wide[len(wide) // 2])}:
        below = reached[token - 1] if token else 0.0
        for at in (below + TOLERANCE, reached[token] - TOLERANCE):
            assert sample(logits, evolve(draw, uniform=at)).token == token


@settings(max_examples=100)
@given(
    kind=st.sampled_from(KINDS), size=st.sampled_from(SIZES), seed=st.integers(0, 9), data=st.data(),
    num_top=st.sampled_from([None, 0, 1, 20]),
)  # fmt: skip
def test_a_given_token_is_told_of(kind, size, seed, data, num_top):
    """Nothing is drawn: its log-probability and its rank are told, whatever else the draw says."""
    logits = logits_of(kind, size, seed)
    token = data.draw(st.integers(0, size - 1))
    draw = Draw(1.0, given=token, num_top=num_top, banned_ids=np.array([token]))
    choice = sample(logits, draw)
    assert choice.token == token
    assert len(choice.top_ids) == min(num_top or 0, size)
    assert same(choice, choose_token(logits, draw))


@settings(max_examples=300)
@given(tokens=st.lists(st.integers(0, 2), max_size=40), limit=st.integers(0, 12))
def test_repeats_are_the_longest_common_endings(tokens, limit):
    """Element i counts, by comparing one by one, how far back the text before i equals the end."""
    n = len(tokens)
    expected = []
    for i in range(n):
        k = 0
        while k < min(i, limit) and tokens[i - 1 - k] == tokens[n - 1 - k]:
            k += 1
        expected.append(k)
    assert repeats(np.array(tokens, dtype=np.int32), limit).tolist() == expected


def test_what_makes_no_sense_is_refused():
    """Ids outside, mirostat without cuts, and tokens of another type are named."""
    logits = np.zeros(10, dtype=np.float32)
    with pytest.raises(ValueError, match="given from 10"):
        sample(logits, Draw(given=10, num_top=0))
    with pytest.raises(ValueError, match="allowed_ids from -1"):
        sample(logits, Draw(allowed_ids=np.array([-1])))
    for draw in (Draw(mirostat=MirostatDraw(2, 5.0, 0.1, 10.0)), Draw(is_processed=True)):
        with pytest.raises(ValueError, match="take cuts"):
            sample(logits, draw)
    with pytest.raises(ValueError, match="is not a row of int32"):
        repeats(np.zeros(3), 2)
