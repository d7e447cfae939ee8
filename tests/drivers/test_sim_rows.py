"""Rows that a simulated device computes together come to what each comes to alone, and are checked too."""

from __future__ import annotations

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import ProtocolViolation, SimDriver, SimModel
from drivers.sim_hash import mix_lanes, pack_lanes, unpack_lanes
from drivers.sim_model import mix
from drivers.sim_rows import work_of
from llmos.cost import StepWork
from llmos.device import Bind, Copy, Edit, Load, Map, Place, Reserve, Row, Sampling, Step, StepDone

LOAD = Load(
    "/models/sim", "sim", "auto", "auto", None, None, max_spaces=8, max_model_len=None, max_step_tokens=256,
    host_bytes=1 << 16,
)  # fmt: skip
NUM_DECODES = 20  # of each space: over the end of a page
NUM_PAGES = 3

words = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=40))
def test_lanes_are_mixed_as_one_by_one(pairs: list[tuple[int, int]]) -> None:
    """Whatever is in the lanes beside it, each comes to what `mix` says."""
    states, values = pack_lanes([state for state, _ in pairs]), pack_lanes([value for _, value in pairs])
    mixed = unpack_lanes(mix_lanes(states, values, len(pairs)), len(pairs))
    assert mixed == [mix(state, value) for state, value in pairs]


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 5)), max_size=8))
def test_work_is_that_of_all_rows(shapes: list[tuple[int, int]]) -> None:
    """A step's work is what its rows add to it, one after the other."""
    rows = [Row(asid, start, (1,) * count, True) for asid, (start, count) in enumerate(shapes)]
    expected = StepWork()
    for row in rows:
        expected = expected.with_row(row.start, row.num_tokens)
    assert work_of(rows) == expected


@attrs.frozen
class Space:
    """A space that is driven beside others."""

    prompt: tuple[int, ...]
    sampling: Sampling
    min_tokens: int
    fed: tuple[int, ...]  # decodes whose token the kernel sends, since it knows it


spaces = st.builds(
    Space,
    prompt=st.lists(st.integers(0, 60), min_size=1, max_size=20).map(tuple),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 9),
        presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
        logprobs=st.sampled_from([None, None, 1]),
    ),
    min_tokens=st.integers(0, 8),
    fed=st.lists(st.integers(1, NUM_DECODES - 1), max_size=4).map(tuple),
)


@settings(max_examples=40)
@given(st.lists(spaces, min_size=1, max_size=5))
def test_spaces_beside_each_other_give_the_expected_tokens(members: list[Space]) -> None:
    """Ordinary rows and others in one step, pages that begin and end: each space has its own tokens."""
    model = SimModel(vocab_size=61, eos_token_ids=(3, 4), eos_every=6)
    stops = (3, 9, 10)

    async def main() -> list[list[int]]:
        driver = SimDriver(model=model)
        await driver.receive()
        await driver.send(LOAD)
        await driver.receive()
        emitted: list[list[int]] = [[] for _ in members]
        for decode in range(NUM_DECODES):
            edits: list[Edit] = []
            rows = []
            for asid, member in enumerate(members):
                length = len(member.prompt)
                if decode:
                    tokens = (emitted[asid][-1],) if decode in member.fed else ()
                    rows.append(Row(asid, length + decode - 1, tokens, True))
                    continue
                first = asid * NUM_PAGES * 2
                edits.append(Reserve(asid))
                edits += [Map(asid, vpn, (first + 2 * vpn, first + 2 * vpn + 1)) for vpn in range(NUM_PAGES)]
                edits.append(Bind(asid, member.sampling, member.prompt, length, stops, member.min_tokens))
                rows.append(Row(asid, 0, member.prompt, True))
            await driver.send(Step(decode + 1, tuple(edits), tuple(rows)))
            done = await driver.receive()
            assert isinstance(done, StepDone)
            for tokens_of_space, token in zip(emitted, done.tokens, strict=True):
                assert token is not None
                tokens_of_space.append(token)
        return emitted

    for member, emitted in zip(members, trio.run(main, clock=MockClock(autojump_threshold=0)), strict=True):
        expected = model.expected_tokens(
            member.prompt, NUM_DECODES, member.sampling, stops, member.min_tokens
        )
        # The quiet run ends with the first stop token; a device goes on until it is told.
        assert tuple(emitted[: len(expected)]) == expected


PROMPT = (5, 6, 7, 8)
COPY = Copy(1, Place("device", (0, 1)), Place("host", (0, 1)))


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        ((Reserve(1), Map(1, 0, (0, 1))), "copy-on-write was missed"),
        ((Map(0, 0, (2, 3)),), "was never computed: frame 2"),
        ((Map(0, 0, (1, 0)),), "holds data of segment"),
        ((Bind(0, Sampling(), PROMPT, 4),), "its sampler knows 4"),
    ],
)
async def test_ordinary_rows_are_checked(
    edits: tuple[Edit, ...], named: str, autojump_clock: MockClock
) -> None:
    """What goes wrong under a space in the middle of its decoding is found as at its beginning."""
    driver = await decoding_driver()
    with pytest.raises(ProtocolViolation, match=named):
        await driver.send(Step(5, edits, (Row(0, 7, (), True),)))


async def test_a_frame_that_is_copied_is_not_written(autojump_clock: MockClock) -> None:
    """A row in the middle of its decoding may not write to a page that a copy still reads."""
    driver = await decoding_driver()
    await driver.send(COPY)
    with pytest.raises(ProtocolViolation, match="is written while a copy uses it"):
        await driver.send(Step(5, (), (Row(0, 7, (), True),)))


async def decoding_driver() -> SimDriver:
    """A driver whose space 0 has computed a prompt and three tokens behind it, and sampled a fourth."""
    driver = SimDriver()
    await driver.receive()
    await driver.send(LOAD)
    await driver.receive()
    await driver.send(
        Step(1, (Reserve(0), Map(0, 0, (0, 1)), Bind(0, Sampling(), PROMPT, 4)), (Row(0, 0, PROMPT, True),))
    )
    for position in range(4, 7):
        await driver.send(Step(position - 2, (), (Row(0, position, (), True),)))
    for _ in range(4):
        assert isinstance(await driver.receive(), StepDone)
    return driver
