"""Sampling on the device, in triton, against the host's readable sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from hypothesis import example, given, settings
from hypothesis import strategies as st
from triton_device import DEVICE

from drivers.model.reference_sampler import adjust_logits, choose_token, choose_tokens, cut_scores
from native.sampling import Cut, Draw, MirostatDraw
from native.sampling import sample as sample_by_host

pytest.importorskip("triton", reason="triton is not installed (extra: cuda)")

from drivers.ops.counted import NOTHING, OUTPUT, SEEN, Counted, count_seen
from drivers.ops.drawn import MU
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.sample import BLOCK, NUM_NUMBERS, can_draw, draw_limits, draw_numbers, sample
from drivers.triton_ops.scores import score

OPS = TritonOps()
IDS = st.lists(st.integers(0, 9), max_size=9).map(lambda ids: np.unique(ids).astype(np.int64))


def build_draw(
    seen: dict[int, int], biases: list[tuple[int, float]], has_scores: bool, **fields: object
) -> Draw:
    """A draw with penalties for tokens that were seen, so often in the output, and biases, some twice."""
    draw = Draw(**fields)  # type: ignore[arg-type]
    if not has_scores:
        return draw
    return evolve(
        draw,
        seen_ids=np.array(list(seen), dtype=np.int64),
        num_output=np.array(list(seen.values()), dtype=np.int64),
        bias_ids=np.array([token for token, _ in biases], dtype=np.int64),
        bias_values=np.array([value for _, value in biases], dtype=np.float64),
    )


DRAWS = st.builds(
    build_draw,
    seen=st.dictionaries(st.integers(0, 9), st.integers(0, 3), max_size=9),
    biases=st.lists(st.tuples(st.integers(0, 9), st.sampled_from([-100.0, -0.3, 1.7, 4.0])), max_size=5),
    has_scores=st.booleans(),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.9, -0.4]),
    presence_penalty=st.sampled_from([0.0, 1.1]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    uniform=st.floats(0, 1, exclude_max=True),
    top_k=st.sampled_from([0, 1, 2, 7, 40, 3000]),
    top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    allowed_ids=IDS,
    banned_ids=IDS,
)


def logits_of(num_rows: int, size: int, levels: int, seed: int) -> torch.Tensor:
    """Normal numbers; with levels, as many different ones at most, so that many are equal."""
    logits = torch.randn(num_rows, size, generator=torch.Generator().manual_seed(seed)) * 3
    return (logits * levels / 9).round() * 9 / levels if levels else logits


def draw_all(logits: torch.Tensor, draws: list[Draw | None]) -> list[int]:
    """Tokens by the kernel."""
    assert all(map(can_draw, draws))
    ids, num_bad, _ = OPS.draw_tokens(logits.to(DEVICE), draws)
    assert not num_bad.any()
    return ids.tolist()


@settings(max_examples=15)
@given(
    draws=st.lists(DRAWS, min_size=1, max_size=2),
    size=st.one_of(st.integers(10, 60), st.integers(BLOCK - 1, BLOCK + 9)),
    levels=st.sampled_from([0, 0, 2, 5]),
    seed=st.integers(0, 99),
)
@example(draws=[Draw(1.0, 0.999999, top_k=3, top_p=0.5)], size=12, levels=1, seed=0)
@example(draws=[Draw(allowed_ids=np.array([3, 7]), banned_ids=np.array([3, 7]))], size=12, levels=0, seed=0)
@example(draws=[Draw(1.0, 0.3, top_k=5, allowed_ids=np.array([2, 8]))], size=13, levels=2, seed=1)
@example(draws=[Draw(1.0, 0.5, top_p=0.5), Draw(1.0, 0.99, top_p=0.26)], size=BLOCK + 5, levels=1, seed=3)
def test_tokens_are_the_references(draws: list[Draw], size: int, levels: int, seed: int) -> None:
    """Same cuts and limits, ties included: the same token; alone a row has the token of one in company."""
    logits = logits_of(len(draws), size, levels, seed)
    got = draw_all(logits, list(draws))
    assert got == [choose_token(row.numpy(), draw).token for row, draw in zip(logits, draws, strict=True)]
    assert draw_all(logits[-1:], [draws[-1]]) == got[-1:]


@settings(max_examples=4)
@given(draw=DRAWS, levels=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_every_random_number_lands_where_the_references_does(draw: Draw, levels: int, seed: int) -> None:
    """Eight numbers across the whole of what is kept: its ends show the cuts themselves."""
    numbers = [0.0, 1e-9, 0.2, 0.5, 0.8, 0.99, 1 - 1e-9, 1 - 2**-53]
    logits = logits_of(1, 50, levels, seed).expand(8, 50).contiguous()
    draws = [evolve(draw, uniform=number) for number in numbers]
    wanted = [choose_token(row.numpy(), each).token for row, each in zip(logits, draws, strict=True)]
    assert draw_all(logits, list(draws)) == wanted


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_counted(bad: float) -> None:
    """Of its row alone; the id is one of the vocabulary all the same."""
    logits = logits_of(3, 30, 0, 1)
    logits[1, 4:7] = bad
    logits[2] = bad
    numbers = torch.from_numpy(draw_numbers([Draw(1.0, 0.5)] * 3)).to(DEVICE)
    ids, num_bad = sample(logits.to(DEVICE), numbers)
    assert num_bad.tolist() == [0, 3, 30]
    assert all(0 <= token < 30 for token in ids.tolist())


CUTS = st.lists(
    st.one_of(
        st.builds(Cut, st.just("temperature"), st.sampled_from([0.3, 0.8, 2.0])),
        st.builds(
            Cut, st.just("dynatemp"), st.sampled_from([0.4, 1.0]), st.sampled_from([0.3, 0.6]),
            st.sampled_from([0.7, 1.0, 2.0]),
        ),
        st.builds(Cut, st.just("top_n_sigma"), st.sampled_from([0.5, 1.0, 2.5])),
        st.builds(Cut, st.just("top_k"), st.sampled_from([1, 3, 9, 3000])),
        st.builds(Cut, st.just("typical_p"), st.sampled_from([0.1, 0.5, 0.95])),
        st.builds(Cut, st.just("top_p"), st.sampled_from([0.0, 0.2, 0.6, 0.99])),
        st.builds(Cut, st.just("min_p"), st.sampled_from([0.01, 0.2, 1.0])),
        st.builds(Cut, st.just("xtc"), st.sampled_from([0.02, 0.1, 0.4])),
    ),
    max_size=4,
)  # fmt: skip


@settings(max_examples=15)
@given(
    draw=DRAWS,
    cuts=CUTS,
    size=st.one_of(st.integers(10, 40), st.just(BLOCK + 3)),
    levels=st.sampled_from([0, 0, 3]),
    seed=st.integers(0, 99),
)
def test_cuts_in_any_order_leave_what_the_references_do(
    draw: Draw, cuts: list[Cut], size: int, levels: int, seed: int
) -> None:
    """The same tokens, and their scores to the last few bits; so the same token for any random number."""
    draw = evolve(draw, cuts=() if draw.temperature == 0.0 else tuple(cuts))
    logits = logits_of(1, size, levels, seed)
    scores = adjust_logits(logits[0].numpy().astype(np.float64), draw)
    packed = draw_limits([draw], size)
    limits = None if packed is None else torch.from_numpy(packed).to(DEVICE)
    made = score(logits.to(DEVICE), [draw], count_seen([draw], size, DEVICE), limits)
    assert made is not None
    found = made.values[0].cpu().numpy()
    if scores.max() > -np.inf:
        wanted = cut_scores(scores, draw)
        assert np.array_equal(found > -np.inf, wanted > -np.inf)
        np.testing.assert_allclose(found - found.max(), wanted, rtol=1e-9, atol=1e-12)
    assert draw_all(logits, [draw]) == [choose_token(logits[0].numpy(), draw).token]


MIROSTATS = st.builds(
    MirostatDraw, st.sampled_from([1, 2]), st.sampled_from([1.0, 4.0]), st.sampled_from([0.1, 1.0]),
    st.sampled_from([-1.0, 0.02, 0.9, 2.3, 5.1, 40.0, 2000.0]),
)  # fmt: skip


@settings(max_examples=12)
@given(
    draws=st.lists(DRAWS, min_size=2, max_size=3),
    mirostats=st.lists(st.one_of(st.none(), MIROSTATS, MIROSTATS), min_size=3, max_size=3),
    tops=st.lists(st.sampled_from([None, 0, 2, 30]), min_size=3, max_size=3),
    size=st.one_of(st.integers(10, 40), st.just(BLOCK + 3)),
    levels=st.sampled_from([0, 0, 3]),
    seed=st.integers(0, 99),
)
def test_what_is_told_is_what_the_reference_tells(
    draws: list[Draw],
    mirostats: list[MirostatDraw | None],
    tops: list[int | None],
    size: int,
    levels: int,
    seed: int,
) -> None:
    """Mirostat's token and next mu, log-probabilities of what is left; a row alone has the same bits."""
    for i, (draw, mirostat, num_top) in enumerate(zip(draws, mirostats, tops, strict=False)):
        is_random = draw.temperature > 0.0
        draws[i] = evolve(
            draw, cuts=(Cut("temperature", draw.temperature),) if is_random else (),
            mirostat=mirostat if is_random else None, num_top=num_top, is_processed=num_top is not None,
        )  # fmt: skip
    logits = logits_of(len(draws), size, levels, seed)
    found = choose_tokens(logits.to(DEVICE), draws, OPS)
    for row, draw, choice in zip(logits, draws, found, strict=True):
        wanted = choose_token(row.numpy(), draw)
        assert (choice.token, choice.num_bad, choice.top_ids) == (wanted.token, 0, wanted.top_ids)
        assert (choice.mu is None) == (wanted.mu is None)
        near = pytest.approx((wanted.logprob, *wanted.top_logprobs, wanted.mu or 0.0), rel=1e-9, abs=1e-9)
        assert (choice.logprob, *choice.top_logprobs, choice.mu or 0.0) == near
        assert choose_tokens(row[None].to(DEVICE), [draw], OPS) == [choice]


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_of_a_row_without_a_token_stays(version: int) -> None:
    """Where nothing is allowed, or a logit is not finite, mu is what it was, and neighbours go on."""
    logits = logits_of(3, 30, 0, 1)
    logits[1, 4] = torch.nan
    draw = Draw(0.7, 0.3, cuts=(Cut("temperature", 0.7),), mirostat=MirostatDraw(version, 3.0, 0.1, 5.0))
    every = np.arange(30)
    draws = [draw, draw, evolve(draw, banned_ids=every)]
    drawn = OPS.draw_tokens(logits.to(DEVICE), draws)
    assert drawn.num_bad.tolist() == [0, 1, 0]
    assert drawn.ids[2] == -1
    assert drawn.told is not None
    mus = drawn.told.numbers[:, MU].tolist()
    assert mus[1:] == [5.0, 5.0]
    assert mus[0] != 5.0


@settings(max_examples=8)
@given(draws=st.lists(DRAWS, min_size=3, max_size=3), seed=st.integers(0, 99))
def test_scores_are_the_hosts_to_the_bit(draws: list[Draw], seed: int) -> None:
    """Penalties and biases of each row that has some, in fp64; a row alone has the same."""
    logits = logits_of(3, BLOCK + 7, 0, seed)
    packed = draw_limits(draws, BLOCK + 7)
    limits = None if packed is None else torch.from_numpy(packed).to(DEVICE)
    made = score(logits.to(DEVICE), draws, count_seen(draws, BLOCK + 7, DEVICE), limits)
    scored = [row for row, draw in enumerate(draws) if draw.is_scored]
    assert (made is None) == (not scored)
    for place, row in enumerate(scored):
        assert made is not None
        wanted = adjust_logits(logits[row].numpy().astype(np.float64), draws[row])
        assert made.values[place].cpu().numpy().tobytes() == wanted.tobytes()


@settings(max_examples=4)
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.0, 1.3]))
def test_a_token_that_is_drawn_is_counted(seed: int, temperature: float) -> None:
    """Where it is asked for: draws that follow each other need nothing of the host, as tokens need not."""
    size, num_draws = 12, 5
    logits = logits_of(3, size, 4, seed)
    logits[2, 3] = torch.nan
    counts = torch.zeros(3, size, dtype=torch.int32, device=DEVICE)
    counts[:, 4] = 1  # in the prompt
    known = [{4: 0}, {4: 0}]
    for i in range(num_draws):
        draws = [
            build_draw(
                seen, [], True, temperature=temperature, uniform=(0.3 + 0.37 * i) % 1,
                repetition_penalty=1.2, frequency_penalty=0.9, presence_penalty=0.2,
            )
            for seen in known
        ]  # fmt: skip
        wanted = [choose_token(row.numpy(), draw).token for row, draw in zip(logits[:2], draws, strict=True)]
        nothing = [evolve(draw, seen_ids=draw.seen_ids[:1], num_output=draw.num_output[:1]) for draw in draws]
        counted = Counted(counts, [2, 0, 1], [OUTPUT, SEEN if i % 2 else NOTHING, OUTPUT])
        ids, _, _ = OPS.draw_tokens(logits.to(DEVICE), [*nothing, nothing[0]], counted)
        assert ids[:2].tolist() == wanted
        known[0][wanted[0]] = known[0].get(wanted[0], 0) + 1
        if i % 2:
            known[1].setdefault(wanted[1], 0)
    assert counts[2].tolist() == [1 + known[0][token] if token in known[0] else 0 for token in range(size)]
    assert counts[0].tolist() == [int(token in known[1]) for token in range(size)]
    assert counts[1].tolist() == [int(token == 4) for token in range(size)]  # of a row that is bad: nothing


def test_the_host_decides_what_the_device_cannot() -> None:
    """Given tokens, and log-probabilities of raw logits, take a copy of the logits."""
    some = np.array([3], dtype=np.int64)
    by_host = [
        Draw(given=3, num_top=1), Draw(given=3), Draw(1.0, 0.5, num_top=2),
        Draw(1.0, 0.5, num_top=2, allowed_ids=some),
    ]  # fmt: skip
    assert not any(map(can_draw, by_host))
    assert can_draw(None)
    assert can_draw(by_host[-1].untold)  # only what is told is the host's
    draws = [None, *by_host, Draw(0.7, 0.3, top_k=5, banned_ids=some)]
    logits = logits_of(len(draws), 40, 0, 2)
    choices = choose_tokens(logits.to(DEVICE), draws, TritonOps())
    rows = [row.numpy() for row in logits]
    assert choices == [sample_by_host(row, draw or Draw()) for row, draw in zip(rows, draws, strict=True)]
    wanted = [choose_token(row, draw or Draw()).token for row, draw in zip(rows, draws, strict=True)]
    assert [choice.token for choice in choices] == wanted
    assert len(choices[3].top_ids) == 2


def test_numbers_of_another_shape_are_refused() -> None:
    """The error shows the shapes."""
    with pytest.raises(ValueError, match=r"limits \[1, 2\]"):
        sample(
            torch.zeros(1, 3),
            torch.zeros(NUM_NUMBERS, 1, dtype=torch.float64),
            torch.zeros(1, 2, dtype=torch.uint8),
        )
    with pytest.raises(ValueError, match=r"numbers \[7, 2\]"):
        sample(torch.zeros(1, 3), torch.zeros(NUM_NUMBERS, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="contiguous fp32"):
        sample(torch.zeros(1, 3, dtype=torch.float16), torch.zeros(NUM_NUMBERS, 1, dtype=torch.float64))
