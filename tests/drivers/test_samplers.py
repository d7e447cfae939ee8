"""DRY, XTC, bad words, mirostat and the rest: from parameters to a draw, against rules over plain lists."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.model.randomness import XTC, uniform
from drivers.model.reference_sampler import choose_token
from drivers.model.sampler import Sampler
from drivers.model.sampling_state import SamplingState, list_cuts
from drivers.model.token_history import BadWords, DryPenalty, TokenHistory
from llmos.device import Bind
from native.sampling import Cut, sample
from syscalls.sampling import CUTS, Dry, Dynatemp, Mirostat, Sampling, Xtc

VOCAB = 12
FEW = st.lists(st.integers(0, 3), max_size=30)  # few tokens, so that they repeat


def history_of(tokens: list[int]) -> TokenHistory:
    """A history of these tokens, in two parts."""
    history = TokenHistory(VOCAB)
    history.add(tokens[: len(tokens) // 2])
    history.add(tokens[len(tokens) // 2 :])
    return history


def readable_dry(tokens: list[int], dry: Dry) -> dict[int, float]:
    """For each token the longest text that it followed and would follow again, without a breaker in it."""
    if dry.last_n >= 0:
        tokens = tokens[max(0, len(tokens) - dry.last_n) :]
    longest: dict[int, int] = {}
    for i in range(1, len(tokens)):
        length = 0
        while length < i and tokens[i - 1 - length] == tokens[-1 - length] not in dry.breakers:
            length += 1
        if length >= dry.allowed_length and tokens[i] not in dry.breakers:
            longest[tokens[i]] = max(length, longest.get(tokens[i], 0))
    return {
        token: dry.multiplier * dry.base ** (length - dry.allowed_length) for token, length in longest.items()
    }


@settings(max_examples=300)
@given(
    tokens=FEW,
    dry=st.builds(
        Dry,
        st.just(0.8),
        st.just(1.75),
        st.integers(1, 4),
        st.sampled_from([-1, 0, 5, 17]),
        st.sets(st.integers(0, 3), max_size=1).map(tuple),
    ),
)
def test_dry_is_the_readable_one(tokens: list[int], dry: Dry) -> None:
    """The same tokens lose the same."""
    ids, biases = DryPenalty(dry, VOCAB).biases(history_of(tokens))
    assert dict(zip(ids.tolist(), (-biases).tolist(), strict=True)) == pytest.approx(
        readable_dry(tokens, dry)
    )


def test_dry_of_an_endless_repetition_stays_a_number() -> None:
    """A power that overflows is a very large penalty."""
    history = TokenHistory(VOCAB)
    history.add([1] * 5000)
    ids, biases = DryPenalty(Dry(1.0, 100.0), VOCAB).biases(history)
    assert (ids.tolist(), biases.tolist()) == ([1], [-1e30])


@settings(max_examples=200)
@given(tokens=FEW, words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=4))
def test_bad_words_are_never_completed(tokens: list[int], words: list[list[int]]) -> None:
    """The last token of each word whose others the text ends with is banned, and nothing else."""
    expected = {word[-1] for word in words if tokens[len(tokens) - len(word) + 1 :] == word[:-1]
                and len(word) - 1 <= len(tokens)}  # fmt: skip
    assert set(BadWords(words).banned(history_of(tokens))) == expected


@settings(max_examples=100)
@given(
    tokens=FEW,
    words=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple), max_size=3).map(tuple),
    last_n=st.sampled_from([-1, 0, 3]),
    min_tokens=st.integers(0, 1),
)
def test_only_words_of_several_tokens_look_back(
    tokens: list[int], words: tuple[tuple[int, ...], ...], last_n: int, min_tokens: int
) -> None:
    """Others are banned whatever came before, as ends are; penalties do not look back."""
    sampling = Sampling(1.0, bad_words=words, frequency_penalty=0.5, repeat_last_n=last_n)
    bind = Bind(0, sampling, tuple(tokens), len(tokens), stop_token_ids=(9,), min_tokens=min_tokens)
    state = SamplingState(bind, VOCAB)
    draw = state.draw(len(tokens))
    assert draw is not None
    expected = {word[-1] for word in words if tuple(tokens[len(tokens) - len(word) + 1 :]) == word[:-1]}
    assert set(draw.banned_ids.tolist()) == expected | ({9} if min_tokens else set())
    assert state.looks_back == any(len(word) > 1 for word in words)
    assert (draw.tally is None) == (last_n == 0)


@settings(max_examples=200)
@given(prompt=FEW, output=FEW, last_n=st.integers(1, 40))
def test_penalties_look_at_the_last_tokens_only(prompt: list[int], output: list[int], last_n: int) -> None:
    """Counts are those of the last n tokens; of the output's, where only those count."""
    tokens = prompt + output
    window = list(enumerate(tokens))[-last_n:]
    expected = {token: sum(other == token and i >= len(prompt) for i, other in window) for _, token in window}
    ids, num_output = history_of(tokens).count_last(last_n, len(prompt))
    assert dict(zip(ids.tolist(), num_output.tolist(), strict=True)) == expected


def test_cuts_come_in_the_order_asked_for() -> None:
    """Only those that do something, in their order; a dynamic temperature in the temperature's place."""
    sampling = Sampling(
        0.5, 40, 0.9, 0.1, typical_p=0.8, top_n_sigma=2.0, xtc=Xtc(1.0, 0.2), seed=1
    )  # fmt: skip
    assert [cut.kind for cut in list_cuts(sampling, 5)] == list(CUTS)
    ordered = Sampling(0.5, 40, dynatemp=Dynatemp(0.25, 2.0), cuts=("top_k", "temperature"))
    assert list_cuts(ordered, 5) == (Cut("top_k", 40), Cut("dynatemp", 0.5, 0.25, 2.0))
    assert [cut.kind for cut in list_cuts(Sampling(0.5, 40, mirostat=Mirostat(2)), 5)] == ["temperature"]


def test_xtc_happens_as_often_as_asked_for_and_by_position() -> None:
    """Of 2 000 positions about a third; which ones, the seed decides, apart from the sample's own number."""
    sampling = Sampling(1.0, xtc=Xtc(0.3), seed=4)
    happens = [len(list_cuts(sampling, position)) == 2 for position in range(2000)]
    assert abs(sum(happens) - 600) < 4 * math.sqrt(2000 * 0.3 * 0.7)
    assert happens == [uniform(4, position, XTC) < 0.3 for position in range(2000)]
    own = np.array([uniform(4, position) for position in range(2000)])
    assert abs(np.corrcoef(own, happens)[0, 1]) < 0.1


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.9113]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-1.5, 2.0]), max_size=2),
    seed=st.integers(0, 99),
    logprobs=st.sampled_from([None, 3]),
    typical_p=st.sampled_from([1.0, 0.8113]),
    top_n_sigma=st.sampled_from([None, 1.13]),
    repeat_last_n=st.sampled_from([-1, 0, 4]),
    dry=st.sampled_from([None, Dry(0.8, breakers=(2,))]),
    xtc=st.sampled_from([None, Xtc(0.5, 0.0513)]),
    dynatemp=st.sampled_from([None, Dynatemp(0.3)]),
    mirostat=st.sampled_from([None, None, Mirostat(1, 2.0, 0.3), Mirostat(2, 2.0, 0.3)]),
    bad_words=st.sampled_from([(), ((1, 2), (3,))]),
    allowed_token_ids=st.sampled_from([(), (1, 2, 4, 5)]),
    processed_logprobs=st.booleans(),
)


@settings(max_examples=150)
@given(sampling=samplings, prompt=st.lists(st.integers(0, VOCAB - 1), max_size=8), cut=st.integers(0, 12))
def test_a_process_that_moves_samples_as_one_that_stays(
    sampling: Sampling, prompt: list[int], cut: int
) -> None:
    """Bound anew in the middle with its tokens and its mu, a space goes on as if nothing had happened."""
    rng = np.random.default_rng(len(prompt))
    logits = torch.from_numpy(2 * rng.standard_normal((12, VOCAB)).astype(np.float32))
    stays, moves = Sampler(VOCAB), Sampler(VOCAB)
    for sampler in (stays, moves):
        sampler.bind(Bind(0, sampling, tuple(prompt), len(prompt)))
    tokens, mu = list(prompt), None
    for i in range(12):
        if i == cut:
            moves.release(0)
            moves.bind(Bind(0, sampling, tuple(tokens), len(prompt), mu=mu))
        row = [(0, len(tokens))]
        [expected] = stays.sample(logits[i : i + 1], row)
        [got] = moves.sample(logits[i : i + 1], row)
        assert got == expected
        assert got.fault is None
        tokens.append(got.token)
        mu = got.mu
    if sampling.allowed_token_ids:
        assert set(tokens[len(prompt) :]) <= set(sampling.allowed_token_ids)


@settings(max_examples=100)
@given(sampling=samplings, prompt=st.lists(st.integers(0, VOCAB - 1), max_size=8), seed=st.integers(0, 9))
def test_both_samplers_carry_every_draw_out(sampling: Sampling, prompt: list[int], seed: int) -> None:
    """What the state asks for, C and the readable sampler answer alike."""
    state = SamplingState(Bind(0, sampling, tuple(prompt), len(prompt) // 2), VOCAB)
    draw = state.draw(len(prompt))
    if draw is None:
        return
    logits = 2 * np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
    assert sample(logits, draw).token == choose_token(logits, draw).token


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_the_surprise_near_its_target(version: int) -> None:
    """Over 600 tokens of a model whose own surprise is 8 bits, the average comes to tau."""
    logits = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 400)).astype(np.float32))
    sampler = Sampler(400)
    sampler.bind(
        Bind(
            0,
            Sampling(1.0, seed=2, logprobs=0, processed_logprobs=True, mirostat=Mirostat(version, 4.0)),
            (),
            0,
        )
    )
    outcomes = [sampler.sample(logits, [(0, position)])[0] for position in range(600)]
    surprises = [-outcome.logprobs.logprob / math.log(2) for outcome in outcomes[100:]]
    assert np.mean(surprises) == pytest.approx(4.0, abs=0.35)


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [
        (Sampling(typical_p=0.0), "typical_p is 0.0"),
        (Sampling(top_n_sigma=-1.0), "top_n_sigma is -1.0"),
        (Sampling(repeat_last_n=-2), "repeat_last_n is -2"),
        (Sampling(dry=Dry(-1.0)), "dry.multiplier is -1.0"),
        (Sampling(xtc=Xtc(1.5)), "xtc.probability is 1.5"),
        (Sampling(dynatemp=Dynatemp(3.0)), "dynatemp.spread is 3.0"),
        (Sampling(mirostat=Mirostat(3)), "mirostat.version is 3"),
        (Sampling(cuts=("top_k", "top_k")), r"cuts is \['top_k', 'top_k'\]"),
        (Sampling(bad_words=((),)), r"bad_words is \[\(\)\]"),
        (Sampling(dry=Dry(1.0, base=math.nan)), "dry.base is nan"),
    ],
)
def test_bad_values_are_named(sampling: Sampling, complaint: str) -> None:
    """With their limit."""
    assert re.match(complaint + "; the limit is ", sampling.explain_invalid() or "")
