"""The simulated driver agrees with its ten-line model, keeps time, and names what a wrong kernel does."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import DEFAULT_KV, ProtocolViolation, SimDriver, SimFaults, SimModel
from llmos.cost import CostModel
from llmos.device import (
    Bind,
    CopyPage,
    DriverLost,
    Edit,
    Failed,
    Hello,
    KVFormat,
    Load,
    Loaded,
    Map,
    Release,
    Reserve,
    Row,
    Sampling,
    Segment,
    Step,
    StepDone,
    StopDriver,
)  # fmt: skip

LOAD = Load("/models/sim", "sim", "auto", "auto", None, None, 8, None, 256)
PROMPT = (5, 6, 7, 8)


async def loaded(**options: object) -> SimDriver:
    """A simulated driver that has said hello and loaded."""
    driver = SimDriver(**options)  # type: ignore[arg-type]
    assert isinstance(await driver.receive(), Hello)
    await driver.send(LOAD)
    assert isinstance(await driver.receive(), Loaded)
    return driver


async def run_step(driver: SimDriver, edits: tuple[Edit, ...], rows: tuple[Row, ...]) -> StepDone:
    """Send one step and wait for its answer."""
    await driver.send(Step(1, edits, rows))
    done = await driver.receive()
    assert isinstance(done, StepDone)
    return done


def opened(
    asid: int = 0, prompt: tuple[int, ...] = PROMPT, pfns: tuple[int, int] = (0, 1)
) -> tuple[Edit, ...]:
    """Edits that open a space with one page and bind its sampler."""
    return (Reserve(asid), Map(asid, 0, pfns), Bind(asid, Sampling(), prompt, len(prompt)))


@settings(max_examples=30)
@given(
    prompt=st.lists(st.integers(0, 511), min_size=1, max_size=40).map(tuple),
    cuts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    sampling=st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.7]),
        seed=st.integers(0, 9),
        presence_penalty=st.sampled_from([0.0, 1.0]),
    ),
    bind_late=st.booleans(),
)
def test_chunks_and_steps_in_flight_give_the_expected_tokens(
    prompt: tuple[int, ...], cuts: list[int], sampling: Sampling, bind_late: bool
) -> None:
    """However a prompt is cut, and with every decode row sent before its token is known, tokens agree."""

    async def main() -> None:
        driver = await loaded(model=SimModel(eos_token_ids=(3,), eos_every=5))
        num_pages = driver.kv.num_pages(len(prompt) + 10)
        bind = Bind(0, sampling, prompt, len(prompt))
        edits: tuple[Edit, ...] = (Reserve(0), *(Map(0, v, (2 * v, 2 * v + 1)) for v in range(num_pages)))
        if not bind_late:
            edits = (*edits, bind)
        start, num_sent = 0, 0
        while start < len(prompt):
            chunk = prompt[start : start + cuts[num_sent % len(cuts)]]
            start += len(chunk)
            last = start == len(prompt)
            edits = (*edits, bind) if last and bind_late else edits
            await driver.send(Step(num_sent, edits, (Row(0, start - len(chunk), chunk, last),)))
            edits, num_sent = (), num_sent + 1
        for position in range(len(prompt), len(prompt) + 9):
            await driver.send(Step(num_sent, (), (Row(0, position, (), True),)))
            num_sent += 1
        answers = [await driver.receive() for _ in range(num_sent)]
        tokens = [a.tokens[0] for a in answers if isinstance(a, StepDone) and a.tokens[0] is not None]
        assert tuple(tokens) == driver.model.expected_tokens(prompt, 10, sampling)

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_expected_tokens_depend_on_what_they_should() -> None:
    """Greedy ignores the seed, chance does not; penalties, bias and every prompt token count."""
    model = SimModel()
    greedy = model.expected_tokens(PROMPT, 8)
    assert greedy == model.expected_tokens(PROMPT, 8, Sampling(seed=3))
    others = {
        model.expected_tokens(PROMPT, 8, Sampling(temperature=0.5, seed=3)),
        model.expected_tokens(PROMPT, 8, Sampling(temperature=0.5, seed=4)),
        model.expected_tokens(PROMPT, 8, Sampling(frequency_penalty=0.5)),
        model.expected_tokens(PROMPT, 8, Sampling(logit_bias={7: 1.0})),
        model.expected_tokens((4, 6, 7, 8), 8),
    }
    assert len(others | {greedy}) == 6


def test_end_tokens_come_when_asked_for_and_not_before_min_tokens() -> None:
    """With `eos_every` the model ends by itself; `min_tokens` holds the end back; without it no end comes."""
    model = SimModel(eos_token_ids=(3,), eos_every=2)
    ended = model.expected_tokens(PROMPT, 100, stop_token_ids=(3,))
    assert len(ended) < 100
    assert ended[-1] == 3
    held = model.expected_tokens(PROMPT, 100, stop_token_ids=(3,), min_tokens=20)
    assert 20 < len(held) < 100
    assert 3 not in SimModel(vocab_size=8, eos_token_ids=(3,)).expected_tokens(PROMPT, 200)


async def test_steps_take_their_cost_and_queue(autojump_clock: MockClock) -> None:
    """Two queued steps finish one after the other, each after its modelled time, in order."""
    cost = CostModel(base=1.0, per_token=0.5, per_row=0.25, per_context_token=0.125, per_pair=0.0625)
    driver = await loaded(cost=cost)
    await driver.send(Step(1, opened(), (Row(0, 0, PROMPT, True),)))
    await driver.send(Step(2, (), (Row(0, 4, (), True),)))
    first, second = await driver.receive(), await driver.receive()
    assert isinstance(first, StepDone)
    assert isinstance(second, StepDone)
    assert (first.id, second.id) == (1, 2)
    assert first.seconds == 1.0 + 4 * 0.5 + 0.25 + 4 * 0.125 + (1 + 2 + 3 + 4) * 0.0625
    assert second.seconds == 1.0 + 0.5 + 0.25 + 5 * 0.125 + 5 * 0.0625
    assert trio.current_time() == pytest.approx(first.seconds + second.seconds)


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    """An answer that was waited for in vain is there for the next receive."""
    driver = await loaded(cost=CostModel(base=1.0))
    await driver.send(Step(1, opened(), (Row(0, 0, PROMPT, True),)))
    with trio.move_on_after(0.5) as scope:
        await driver.receive()
    assert scope.cancelled_caught
    assert isinstance(await driver.receive(), StepDone)


async def test_fork_with_copy_on_write(autojump_clock: MockClock) -> None:
    """A fork that copies its shared page first emits the parent's tokens, and both go on undisturbed."""
    driver = await loaded()
    first = (await run_step(driver, opened(), (Row(0, 0, PROMPT, True),))).tokens[0]
    assert first is not None
    fork = (
        Reserve(1),
        CopyPage((0, 1), (2, 3)),
        Map(1, 0, (2, 3)),
        Bind(1, Sampling(), (*PROMPT, first), len(PROMPT)),
    )
    done = await run_step(driver, fork, (Row(0, 4, (), True), Row(1, 4, (first,), True)))
    expected = driver.model.expected_tokens(PROMPT, 2)
    assert first == expected[0]
    assert done.tokens == (expected[1], expected[1])
    await run_step(driver, (Release(0), Release(1)), ())
    assert driver.statistics().num_spaces == driver.statistics().num_mapped_frames == 0


async def test_a_prefix_may_be_shared_by_reading(autojump_clock: MockClock) -> None:
    """A second space maps a full page of the first, computes only the rest, and emits the same tokens."""
    driver = await loaded()
    prompt = tuple(range(20))
    edits = (Reserve(0), Map(0, 0, (0, 1)), Map(0, 1, (2, 3)), Bind(0, Sampling(), prompt, 20))
    first = await run_step(driver, edits, (Row(0, 0, prompt, True),))
    edits = (Reserve(1), Map(1, 0, (0, 1)), Map(1, 1, (4, 5)), Bind(1, Sampling(), prompt, 20))
    assert (await run_step(driver, edits, (Row(1, 16, prompt[16:], True),))).tokens == first.tokens


FULL = (Reserve(1), Map(1, 0, (2, 3)), Bind(1, Sampling(), tuple(range(16)), 16))


@pytest.mark.parametrize(
    ("edits", "rows", "named"),
    [
        ((), (Row(3, 0, (1,), False),), "space 3 is not reserved"),
        ((Reserve(0),), (), "reserved twice"),
        ((Reserve(9),), (), "space 9 reserved; the device has 8"),
        ((Release(2),), (), "space 2 is not reserved"),
        ((Map(0, 0, (1, 1024)),), (), "frame 1024 does not exist"),
        ((Map(0, 0, (1,)),), (), "a page takes 2 different frames"),
        ((Map(0, 256, (4, 5)),), (), "page 256 was mapped"),
        ((), (Row(0, 4, tuple(range(13)), False),), "page 1, which is not mapped"),
        ((), (Row(0, 5, (1,), False),), "reads position 4, which was never computed"),
        ((), (Row(0, 4, (1,), False), Row(0, 5, (1,), False)), "two rows of one space"),
        ((), (Row(0, 5, (), False),), "it belongs at 4"),
        ((Reserve(1), Map(1, 0, (2, 3))), (Row(1, 0, (), False),), "before it was bound"),
        (FULL, (Row(1, 0, (), False),), "there is none"),
        (FULL, (Row(1, 0, (512,), False),), "feeds token 512"),
        (FULL, (Row(1, 0, tuple(range(257)), False),), "the limit is 256"),
        ((Reserve(1), Map(1, 0, (0, 1))), (Row(1, 4, (1,), False),), "copy-on-write was missed"),
        ((Reserve(1), Map(1, 0, (0, 1)), CopyPage((2, 3), (0, 1))), (), "overwritten while shared"),
        ((Map(0, 0, (1, 0)),), (Row(0, 4, (), True),), "holds data of segment"),
        ((Map(0, 0, (2, 3)),), (Row(0, 4, (), True),), "was never computed: frame 2"),
        ((Bind(0, Sampling(), PROMPT[:2], 2),), (Row(0, 4, (1,), True),), "its sampler knows 2"),
        ((Bind(0, Sampling(), PROMPT, 5),), (), "5 prompt tokens of 4"),
        ((Bind(0, Sampling(temperature=1.0), PROMPT, 4),), (), "its seed is not set"),
    ],
)
async def test_violations_are_named(
    edits: tuple[Edit, ...], rows: tuple[Row, ...], named: str, autojump_clock: MockClock
) -> None:
    """Each mistake of a kernel ends in a ProtocolViolation that says which thing was wrong."""
    driver = await loaded()
    await run_step(driver, opened(), (Row(0, 0, PROMPT, True),))
    with pytest.raises(ProtocolViolation, match=named):
        await driver.send(Step(2, edits, rows))
    assert len(driver.violations) == 1


async def test_a_frame_given_away_too_early_is_found(autojump_clock: MockClock) -> None:
    """A page whose frame was rewritten by another owner is stale for the space that maps it afterwards."""
    driver = await loaded()
    prompt = tuple(range(20))
    edits = (Reserve(0), Map(0, 0, (0, 1)), Map(0, 1, (2, 3)), Bind(0, Sampling(), prompt, 20))
    await run_step(driver, edits, (Row(0, 0, prompt, True),))
    # The cache still believes that frames 0 and 1 hold the prefix; somebody else has written to them.
    await run_step(driver, (Release(0), *opened(1, prompt[:16][::-1])), (Row(1, 0, prompt[:16][::-1], True),))
    edits = (Release(1), Reserve(2), Map(2, 0, (0, 1)), Map(2, 1, (2, 3)), Bind(2, Sampling(), prompt, 20))
    with pytest.raises(ProtocolViolation, match="page 1 is stale"):
        await driver.send(Step(3, edits, (Row(2, 19, prompt[19:], True),)))


async def test_a_step_before_the_load_is_a_violation() -> None:
    """Nothing runs without a model."""
    driver = SimDriver()
    with pytest.raises(ProtocolViolation, match="before a model"):
        await driver.send(Step(1, (), ()))


async def test_injected_death_loses_the_steps_behind_it(autojump_clock: MockClock) -> None:
    """The answers before the death are read, then both directions raise DriverLost."""
    driver = await loaded(faults=SimFaults(die_after_step=1))
    await driver.send(Step(1, opened(), (Row(0, 0, PROMPT, True),)))
    await driver.send(Step(2, (), (Row(0, 4, (), True),)))
    assert isinstance(await driver.receive(), StepDone)
    with pytest.raises(DriverLost, match="died before step 2"):
        await driver.receive()
    with pytest.raises(DriverLost):
        await driver.send(Step(3, (), ()))


def end_by_kill(driver: SimDriver) -> None:
    """Lose the device."""
    driver.kill("pulled the plug")


@pytest.mark.parametrize("end", [end_by_kill, SimDriver.aclose])
async def test_killing_wakes_a_receiver(
    end: Callable[[SimDriver], object], autojump_clock: MockClock
) -> None:
    """Whoever waits for a step learns of the loss at once, and the unfinished step is not delivered."""
    driver = await loaded(cost=CostModel(base=100.0))
    await driver.send(Step(1, opened(), (Row(0, 0, PROMPT, True),)))
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(DriverLost):
                await driver.receive()

        await trio.sleep(1.0)
        if (waiting := end(driver)) is not None:
            await waiting  # type: ignore[misc]
    assert trio.current_time() == 1.0


async def test_hanging_failing_and_stopping(autojump_clock: MockClock) -> None:
    """A hung driver answers nothing; a refused load says why; a stopped one finishes what it had."""
    driver = await loaded(faults=SimFaults(hang_after_step=0))
    await driver.send(Step(1, opened(), ()))
    with trio.move_on_after(1000) as scope:
        await driver.receive()
    assert scope.cancelled_caught

    driver = SimDriver(faults=SimFaults(fail_load="no such folder"))
    await driver.receive()
    await driver.send(LOAD)
    assert await driver.receive() == Failed("no such folder")

    driver = await loaded()
    await driver.send(Step(1, opened(), (Row(0, 0, PROMPT, True),)))
    await driver.send(StopDriver())
    assert isinstance(await driver.receive(), StepDone)
    with pytest.raises(DriverLost, match="stopped"):
        await driver.receive()


async def test_faults_and_logprobs_belong_to_their_row(autojump_clock: MockClock) -> None:
    """One row fails, the other is sampled, and the one that asked has log-probabilities."""
    driver = await loaded(faults=SimFaults(faulty_token=13))
    edits = (*opened(0), Reserve(1), Map(1, 0, (2, 3)), Bind(1, Sampling(logprobs=2), (9,), 1))
    rows = (Row(0, 0, (5, 13, 7, 8), True), Row(1, 0, (9,), True))
    done = await run_step(driver, edits, rows)
    assert [fault.row for fault in done.faults] == [0]
    assert done.tokens == (None, driver.model.expected_tokens((9,), 1)[0])
    assert done.logprobs[0] is None
    assert done.logprobs[1] is not None
    assert done.logprobs[1].top_ids[0] == done.tokens[1]


@settings(max_examples=30)
@given(kib=st.none() | st.sampled_from([4, 8, 12, 24]), pool_kib=st.none() | st.integers(0, 300))
def test_memory_is_cut_as_a_load_says(kib: int | None, pool_kib: int | None) -> None:
    """Frames are of the size asked for, in as much memory as asked for; what holds no page is refused."""

    async def main() -> None:
        driver = SimDriver(num_frames=100)
        await driver.receive()
        pool_bytes, frame_bytes = pool_kib and pool_kib << 10, kib and kib << 10
        sizes = {"pool_bytes": pool_bytes, "frame_bytes": frame_bytes, "max_step_tokens": 2048}
        await driver.send(msgspec.structs.replace(LOAD, **sizes))
        frame_bytes = frame_bytes or DEFAULT_KV.frame_bytes
        num_frames = (100 * DEFAULT_KV.frame_bytes if pool_bytes is None else pool_bytes) // frame_bytes
        answer = await driver.receive()
        if num_frames < 2:
            assert isinstance(answer, Failed)
            assert f"a pool of {num_frames} frames of {frame_bytes} bytes is too small" in answer.message
            return
        assert isinstance(answer, Loaded)
        assert (answer.kv.frame_bytes, answer.num_frames) == (frame_bytes, num_frames)
        assert answer.kv.tokens_per_page == frame_bytes // 16  # of each token in one segment
        last = (num_frames - 2, num_frames - 1)
        prompt = tuple(i % 512 for i in range(answer.kv.tokens_per_page))  # a whole page
        await driver.send(Step(1, opened(prompt=prompt, pfns=last), (Row(0, 0, prompt, True),)))
        done = await driver.receive()
        assert isinstance(done, StepDone)
        assert done.tokens[0] == SimModel().expected_tokens(prompt, 1)[0]
        with pytest.raises(ProtocolViolation, match=f"frame {num_frames} does not exist"):
            await driver.send(Step(2, (Map(0, 1, (0, num_frames)),), ()))
        with pytest.raises(ProtocolViolation, match="page 1, which is not mapped"):
            await driver.send(Step(3, (), (Row(0, len(prompt), (), True),)))

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_a_frame_holds_a_token_at_least(autojump_clock: trio.abc.Clock) -> None:
    """Other segments, other sizes: what a frame cannot hold is told; a new load begins anew."""
    wide = KVFormat("wide", (Segment("K", 5000), Segment("V", 5000)), 1 << 20, 16)
    driver = SimDriver(kv=wide)
    await driver.receive()
    await driver.send(msgspec.structs.replace(LOAD, frame_bytes=4096))
    assert await driver.receive() == Failed("a frame of 4096 bytes cannot hold one token of 5000 bytes")
    await driver.send(LOAD)
    answer = await driver.receive()
    assert isinstance(answer, Loaded)
    assert answer.kv == wide


async def test_each_load_has_its_own_longest_context(autojump_clock: trio.abc.Clock) -> None:
    """A short one is no limit of the next; none may ask for more than there is."""
    driver = SimDriver(max_model_len=100)
    assert isinstance(await driver.receive(), Hello)
    for asked, granted in ((40, 40), (None, 100), (90, 90), (200, 100)):
        await driver.send(msgspec.structs.replace(LOAD, max_model_len=asked))
        answer = await driver.receive()
        assert isinstance(answer, Loaded)
        assert answer.model.max_model_len == granted
        num_pages = driver.kv.num_pages(granted)
        backed = tuple(Map(0, vpn, (2 * vpn, 2 * vpn + 1)) for vpn in range(num_pages))
        await run_step(driver, (Reserve(0), *backed), (Row(0, 0, (1,) * granted, False),))
        with pytest.raises(ProtocolViolation, match=f"the limit is {granted}"):
            await driver.send(Step(2, (), (Row(0, granted, (1,), False),)))
        with pytest.raises(ProtocolViolation, match=f"{num_pages} pages"):
            await driver.send(Step(3, (Map(0, num_pages, (500, 501)),), ()))
        await run_step(driver, (Release(0),), ())
