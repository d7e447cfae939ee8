"""The sampler against a slow, readable one, and what it promises: a function of the row alone."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers.model.randomness import uniform
from drivers.model.reference_sampler import kept_probabilities
from drivers.model.sampler import Sampler
from llmos.device import Bind
from native.sampling import Draw
from syscalls.sampling import Sampling

VOCAB = 50


def logits_of(seed: int, scale: float = 2.0, vocab_size: int = VOCAB) -> torch.Tensor:
    """One row of seeded Gaussian logits."""
    return torch.randn((1, vocab_size), generator=torch.Generator().manual_seed(seed)) * scale


def sample_one(sampling: Sampling, logits: torch.Tensor, position: int = 3, **bind: object) -> int:
    """The token that a fresh sampler chooses."""
    sampler = Sampler(logits.shape[1])
    settings_of = {"tokens": (1, 2, 3), "num_prompt_tokens": 3} | bind
    sampler.bind(Bind(0, sampling, **settings_of))
    [outcome] = sampler.sample(logits, [(0, position)])
    assert outcome.fault is None
    return outcome.token


def readable_probabilities(
    logits: list[float], sampling: Sampling, prompt: tuple[int, ...], output: tuple[int, ...]
) -> dict[int, float]:
    """Penalties, bias, temperature, top-k, top-p, min-p, one after another, over plain lists."""
    scores = list(logits)
    for token in set(prompt + output):
        scores[token] *= 1 / sampling.repetition_penalty if scores[token] > 0 else sampling.repetition_penalty
        scores[token] -= sampling.frequency_penalty * output.count(token)
        scores[token] -= sampling.presence_penalty * (token in output)
    for token, bias in sampling.logit_bias.items():
        scores[token] += bias
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    weights = {token: math.exp((scores[token] - scores[order[0]]) / sampling.temperature) for token in order}
    if sampling.top_k:
        weights = {token: weights[token] for token in order[: sampling.top_k]}
    total = sum(weights.values())
    nucleus, reached = {}, 0.0
    for token in list(weights):
        if nucleus and reached >= sampling.top_p * total:
            break
        nucleus[token] = weights[token]
        reached += weights[token]
    kept = {token: weight for token, weight in nucleus.items() if weight >= sampling.min_p}
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5, 20, 49, 50, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -1.0]),
    presence_penalty=st.sampled_from([0.0, 0.9]),
    logit_bias=st.dictionaries(
        st.integers(0, VOCAB - 1), st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=3
    ),
    seed=st.integers(-(2**63), 2**63 - 1),
)
token_lists = st.lists(st.integers(0, VOCAB - 1), max_size=12).map(tuple)


@settings(max_examples=200)
@given(sampling=samplings, prompt=token_lists, output=token_lists, seed=st.integers(0, 9))
def test_a_sample_is_the_inverse_of_the_readable_distribution(sampling, prompt, output, seed):
    """The token is where the readable distribution, summed in the order of ids, passes the random number."""
    logits = logits_of(seed)
    expected = readable_probabilities(logits[0].tolist(), sampling, prompt, output)
    position = len(prompt) + len(output)
    token = sample_one(sampling, logits, position, tokens=prompt + output, num_prompt_tokens=len(prompt))
    below = sum(expected.get(other, 0.0) for other in range(token))
    assert token in expected
    assert below - 1e-9 <= uniform(sampling.seed, position) <= below + expected[token] + 1e-9


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=5),
        Sampling(temperature=0.7, top_k=8, seed=6),
        Sampling(temperature=1.3, top_p=0.8, seed=7),
        Sampling(temperature=1.0, min_p=0.1, seed=8),
    ],
)
def test_frequencies_follow_the_distribution(sampling):
    """Over 4 000 positions, Pearson's chi-square against the readable distribution is unremarkable."""
    logits = logits_of(3, scale=1.0, vocab_size=20)
    expected = readable_probabilities(logits[0].tolist(), sampling, (), ())
    sampler = Sampler(20)
    sampler.bind(Bind(0, sampling, (), 0))
    num_draws = 4000
    counts = Counter(sampler.sample(logits, [(0, position)])[0].token for position in range(num_draws))
    assert set(counts) <= set(expected)
    chi_square = sum((counts[t] - num_draws * p) ** 2 / (num_draws * p) for t, p in expected.items())
    degrees = len(expected) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)  # four standard deviations


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_position():
    """Known values stay as they are; numbers fill [0, 1) evenly along seeds and along positions."""
    assert uniform(0, 0) == uniform(2**64, 0)  # seeds count modulo 2^64
    assert uniform(-1, 7) == uniform(2**64 - 1, 7)
    for numbers in (
        [uniform(11, position) for position in range(5000)],
        [uniform(seed, 11) for seed in range(5000)],
        [uniform(seed << 40, seed) for seed in range(5000)],
    ):
        assert len(set(numbers)) == 5000
        assert all(0.0 <= number < 1.0 for number in numbers)
        histogram = np.histogram(numbers, bins=50, range=(0, 1))[0]
        assert ((histogram - 100) ** 2 / 100).sum() < 49 + 4 * math.sqrt(98)
        pairs = np.histogram2d(numbers[:-1], numbers[1:], bins=7, range=((0, 1), (0, 1)))[0]
        assert ((pairs - 4999 / 49) ** 2 / (4999 / 49)).sum() < 48 + 4 * math.sqrt(96)


def test_random_numbers_never_change():
    """A process that is restored after an upgrade continues with the numbers it would have had."""
    assert [uniform(42, position).hex() for position in (0, 1, 100_000)] == [
        "0x1.923e0456550e4p-2", "0x1.829a9147dff88p-3", "0x1.378e4ca4d8ca8p-4",
    ]  # fmt: skip


@settings(max_examples=40)
@given(rows=st.lists(st.tuples(samplings, token_lists), min_size=1, max_size=8), seed=st.integers(0, 5))
def test_company_does_not_change_a_sample(rows, seed):
    """Each row of a batch gets the token that it gets alone."""
    logits = torch.cat([logits_of(seed + i) for i in range(len(rows))])
    sampler = Sampler(VOCAB)
    for asid, (sampling, prompt) in enumerate(rows):
        sampler.bind(Bind(asid, sampling, prompt, len(prompt)))
    together = sampler.sample(logits, [(asid, len(prompt)) for asid, (_, prompt) in enumerate(rows)])
    for asid, (sampling, prompt) in enumerate(rows):
        alone = sample_one(
            sampling, logits[asid : asid + 1], len(prompt), tokens=prompt, num_prompt_tokens=len(prompt)
        )
        assert together[asid].token == alone


def test_seed_and_position_decide():
    """The same seed and position give the same token; others differ, sooner or later."""
    logits = torch.zeros(1, VOCAB)
    by_position = [sample_one(Sampling(temperature=1.0, seed=1), logits, p) for p in range(3, 40)]
    assert by_position == [sample_one(Sampling(temperature=1.0, seed=1), logits, p) for p in range(3, 40)]
    assert len(set(by_position)) > 15
    assert len({sample_one(Sampling(temperature=1.0, seed=s), logits) for s in range(40)}) > 15


def test_greedy_takes_the_lowest_of_equals():
    """Ties are decided by id on every path: plain, with bias, and with top-k 1 at a temperature."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [40, 7, 9]] = 2.0
    assert sample_one(Sampling(), logits) == 7
    assert sample_one(Sampling(logit_bias={7: -1.0}), logits) == 9
    assert sample_one(Sampling(temperature=1.0, top_k=1, seed=3), logits) == 7


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_a_hundred_bans_or_forces(temperature):
    """+100 makes a token certain and -100 impossible, for greedy and for random sampling."""
    logits = logits_of(0)
    best = int(logits.argmax())
    for seed in range(20):
        forced = Sampling(temperature=temperature, seed=seed, logit_bias={13: 100.0})
        banned = Sampling(temperature=temperature, seed=seed, logit_bias={best: -100.0, 10_000: 5.0})
        assert sample_one(forced, logits) == 13
        assert sample_one(banned, logits) != best


def test_extreme_temperatures_do_not_break_the_arithmetic():
    """A tiny temperature is greedy, and huge logits neither overflow nor divide by zero."""
    logits = logits_of(1, scale=1e4)
    best = int(logits.argmax())
    assert sample_one(Sampling(temperature=1e-300, seed=1), logits) == best
    assert sample_one(Sampling(temperature=5e-324, seed=1, top_p=0.5), logits) == best
    weights = kept_probabilities(logits[0].double().numpy(), Draw(temperature=0.5, top_p=1e-9))
    assert np.flatnonzero(weights).tolist() == [best]


def test_counts_advance_by_samples_and_by_later_inputs_once_each():
    """After Bind, a token counts when sampled or when first fed, and never twice."""
    sampling = Sampling(frequency_penalty=1.0, presence_penalty=0.5)
    flat = torch.zeros(1, VOCAB)
    sampler = Sampler(VOCAB)
    sampler.bind(Bind(4, sampling, (8, 9), 2))
    sampler.observe(4, 0, (8, 9))  # the prompt's own rows: known already
    assert [sampler.sample(flat, [(4, 2 + i)])[0].token for i in range(3)] == [0, 1, 2]
    assert sampler.last_token(4) == 2
    sampler.observe(4, 3, (1, 2))  # what was sampled comes back as input
    sampler.observe(4, 5, (3, 3))  # new input
    assert sampler.sample(flat, [(4, 7)])[0].token == 4
    # all of 0 to 4 once, 3 twice; lift them so that only the count of 3 shows
    lifted = flat.clone()
    lifted[0, :5] = 10.0
    sampler.bind(Bind(4, sampling, (8, 9, 0, 1, 2, 3, 3, 4), 2))
    assert sampler.sample(lifted, [(4, 8)])[0].token == 0
    lifted[0, 3] = 10.99
    assert sampler.sample(lifted, [(4, 9)])[0].token == 1
    lifted[0, 3] = 11.01
    assert sampler.sample(lifted, [(4, 10)])[0].token == 3


@settings(max_examples=60)
@given(
    history=st.lists(st.integers(0, 9), min_size=1, max_size=200),
    cut=st.integers(0, 200),
    step=st.integers(1, 9),
)
def test_a_rebound_space_samples_as_one_that_never_moved(history, cut, step):
    """Bind with the full history equals Bind with a part of it, then rows that feed the rest."""
    num_prompt = len(history) // 3
    cut = min(cut, len(history))
    sampling = Sampling(
        temperature=1.0, seed=3, repetition_penalty=1.4, frequency_penalty=0.3, presence_penalty=-0.5
    )
    whole, parts = Sampler(VOCAB), Sampler(VOCAB)
    whole.bind(Bind(0, sampling, tuple(history), num_prompt))
    parts.bind(Bind(0, sampling, tuple(history[:cut]), num_prompt))
    for start in range(max(0, cut - 3), len(history), step):  # overlaps what is known
        parts.observe(0, start, tuple(history[start : start + step]))
    for i in range(3):
        position = len(history) + i
        assert parts.sample(logits_of(i), [(0, position)]) == whole.sample(logits_of(i), [(0, position)])


def test_stop_tokens_wait_for_min_tokens():
    """While fewer than min_tokens were sampled since the prompt, no stop id is chosen; then it may be."""
    logits = torch.zeros(1, VOCAB)
    logits[0, [5, 6]] = 50.0
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=2)):
        sampler = Sampler(VOCAB)
        sampler.bind(Bind(0, sampling, (1, 2), 2, stop_token_ids=(5, 6, 999), min_tokens=3))
        tokens = [sampler.sample(logits, [(0, 2 + i)])[0].token for i in range(4)]
        assert not {5, 6} & set(tokens[:3])
        assert tokens[3] in (5, 6)


def test_no_token_left_is_a_fault():
    """When every token is banned the row faults by name."""
    sampler = Sampler(2)
    sampler.bind(Bind(0, Sampling(), (), 0, stop_token_ids=(0, 1), min_tokens=1))
    [outcome] = sampler.sample(torch.zeros(1, 2), [(0, 0)])
    assert outcome.token is None
    assert outcome.fault == "no token is allowed at position 0"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_fault_their_row_only(bad):
    """NaN or infinity in one row is that row's fault; the others sample as if nothing had happened."""
    sampler = Sampler(VOCAB)
    for asid in range(3):
        sampler.bind(Bind(asid, Sampling(temperature=asid * 0.5, seed=1), (1,), 1))
    logits = torch.cat([logits_of(i) for i in range(3)])
    expected = [sample_one(Sampling(temperature=i * 0.5, seed=1), logits[i : i + 1], 1) for i in range(3)]
    logits[1, 20:22] = bad
    outcomes = sampler.sample(logits, [(asid, 1) for asid in range(3)])
    assert [outcome.token for outcome in outcomes] == [expected[0], None, expected[2]]
    assert outcomes[1].fault == f"2 of {VOCAB} logits are not finite at position 0"
    assert outcomes[0].fault is outcomes[2].fault is None


def test_logprobs_are_of_the_raw_distribution():
    """The sampled token's and the top tokens' log-probabilities ignore bias, temperature and cuts."""
    logits = logits_of(2)
    expected = torch.log_softmax(logits[0].double(), dim=0)
    sampler = Sampler(VOCAB)
    sampler.bind(
        Bind(0, Sampling(temperature=0.5, top_k=3, seed=1, logit_bias={44: 100.0}, logprobs=4), (), 0)
    )
    [outcome] = sampler.sample(logits, [(0, 0)])
    assert outcome.token == 44
    assert outcome.logprobs.logprob == pytest.approx(expected[44].item())
    assert list(outcome.logprobs.top_ids) == expected.topk(4).indices.tolist()
    assert list(outcome.logprobs.top_logprobs) == pytest.approx(expected.topk(4).values.tolist())
    sampler.bind(Bind(0, Sampling(logprobs=0), (), 0))
    [greedy] = sampler.sample(torch.zeros(1, VOCAB), [(0, 0)])
    assert (greedy.token, greedy.logprobs.top_ids) == (0, ())
    assert greedy.logprobs.logprob == pytest.approx(-math.log(VOCAB))
    sampler.bind(Bind(0, Sampling(logprobs=20), (), 0))
    assert sampler.sample(torch.zeros(1, VOCAB), [(0, 0)])[0].logprobs.top_ids == tuple(range(20))


def test_spaces_come_and_go():
    """Unbound spaces fault by name, rebinding replaces, release forgets, and a second release is harmless."""
    sampler = Sampler(VOCAB)
    logits = torch.cat((logits_of(0), logits_of(0)))
    sampler.bind(Bind(7, Sampling(), (3,), 1))
    sampler.bind(Bind(7, Sampling(), (4,), 1))
    assert (sampler.num_spaces, sampler.last_token(7), sampler.last_token(8)) == (1, 4, None)
    sampler.observe(8, 0, (1, 2))
    good, bad = sampler.sample(logits, [(7, 1), (8, 2)])
    assert good.token == int(logits[0].argmax())
    assert bad.fault == "space 8 has no sampling parameters"
    sampler.release(7)
    sampler.release(7)
    assert sampler.num_spaces == 0
    assert sampler.sample(logits[:0], []) == []
