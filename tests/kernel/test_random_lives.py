"""Transparency as a property: disturb processes at random, compare tokens with a quiet run of each alone."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import attrs
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from drivers.sim import SimDriver, SimFaults
from llmos.cost import CopyCost
from llmos.device import Tier
from llmos.proc.image import Image, read_tail
from syscalls.errno import Errno, SyscallError
from syscalls.process import WhyInfo
from syscalls.sampling import Sampling
from tests.kernel.harness import MODEL, RunningKernel, running_kernel


@attrs.define
class Life:
    """What a test remembers of a process: all it should ever emit."""

    pid: int
    expected: tuple[int, ...]
    was_killed: bool = False
    was_copied: bool = False  # by a fork or from an image: its timeline lacks what came before


GRAMMARS = ('start: "a"', 'start: "b"')
SPAWN = st.tuples(
    st.just("spawn"),
    st.integers(1, 40),  # prompt tokens; few distinct prompts, so that prefixes are shared
    st.integers(1, 80),  # output tokens
    st.sampled_from([None, 1, 2]),  # seed; None: greedy
    st.sampled_from([1, 1, 3]),  # samples of one prefill
    st.sampled_from([None, None, *GRAMMARS]),
)
TOUCH = st.tuples(
    st.sampled_from(["kill", "stop", "cont", "fork", "nice"]), st.integers(0, 30), st.integers(-20, 19)
)
PAUSE = st.tuples(st.just("pause"), st.floats(0.001, 0.2))
CRASH = st.tuples(st.just("crash"))
SLEEP = st.tuples(st.just("sleep"), st.integers(1, 2), st.floats(0.0, 0.2))
PLACE = st.integers(0, 4)  # of an image
SAVE = st.tuples(st.just("checkpoint"), st.integers(0, 30), PLACE)
ROT = st.tuples(st.just("rot"), st.integers(0, 1000))
RESTORE = st.tuples(st.sampled_from(["restore", "restore", "damage"]), PLACE, st.integers(0, 5000))
OPERATIONS = st.lists(
    st.one_of(SPAWN, SPAWN, TOUCH, TOUCH, SAVE, RESTORE, PAUSE, CRASH, SLEEP, ROT), min_size=8, max_size=40
)


@attrs.define
class Album:
    """Images that were made: in each place the file of the last one, and what its process should emit."""

    kernel: RunningKernel
    images: dict[int, tuple[str, Life]] = attrs.field(factory=dict)
    num_saves: int = 0

    async def save(self, life: Life, place: int) -> None:
        """Save a process while life goes on around it."""
        self.num_saves += 1
        name = f"image-{self.num_saves}"
        try:
            await self.kernel.client.checkpoint(life.pid, name)
        except SyscallError as error:
            if error.errno not in (Errno.EBUSY, Errno.EIO):  # it has exited, or the driver has
                raise
        else:
            self.images[place] = (name, life)

    async def restore(self, place: int) -> Life:
        """Another process from an image."""
        name, life = self.images[place]
        (pid,) = (await self.kernel.client.restore(name)).pids
        return Life(pid, life.expected, was_copied=True)

    def damage(self, place: int, where: int) -> None:
        """Flip a bit in the frames of an image, if it has so many."""
        (path,) = self.kernel.system.images.folder.glob(f"*/{self.images[place][0]}")
        with path.open("r+b") as file:
            if where < read_tail(file, Image).num_frame_bytes:
                file.seek(where)
                byte = file.read(1)[0]
                file.seek(where)
                file.write(bytes([byte ^ 1]))


async def disturb(kernel: RunningKernel, operations: list[tuple]) -> list[Life]:
    """Carry the operations out, and wait until what they began has ended."""
    async with trio.open_nursery() as nursery:
        return await carry_out(kernel, operations, nursery)


async def nap(kernel: RunningKernel, level: int, seconds: float) -> None:
    """Have the device sleep for so long, if it comes to that, while life goes on."""
    with trio.move_on_after(seconds):
        try:
            await kernel.client.sleep(level)
        except SyscallError as error:
            if error.errno is not Errno.EBUSY:  # it restarts, or somebody else has woken it
                raise
        await trio.sleep_forever()
    await kernel.client.wake()


async def carry_out(kernel: RunningKernel, operations: list[tuple], nursery: trio.Nursery) -> list[Life]:
    """Carry the operations out; refusals that the contract allows are part of life."""
    client = kernel.client
    lives: list[Life] = []
    album = Album(kernel)
    num_crashes = 0
    for name, *arguments in operations:
        if name == "pause":
            await trio.sleep(arguments[0])
        elif name == "crash":
            if num_crashes < 4:
                num_crashes += 1
                kernel.sim.kill()
        elif name == "sleep":
            level, seconds = arguments
            nursery.start_soon(nap, kernel, level, seconds)
        elif name == "spawn":
            length, max_tokens, seed, num_samples, grammar = arguments
            prompt = tuple((length // 20 + i) % 500 for i in range(length))
            sampling = Sampling(temperature=0.0 if seed is None else 1.0, seed=seed, grammar=grammar)
            most = min(core.memory.max_pin_seconds for core in kernel.system.cores.values())
            spawned = await client.spawn(
                prompt,
                max_tokens=max_tokens,
                sampling=sampling,
                num_samples=num_samples,
                pin_seconds=min(most, length % 3 / 5),
            )
            for pid, own_seed in zip(spawned.pids, spawned.seeds, strict=True):
                own = msgspec.structs.replace(sampling, seed=own_seed)
                lives.append(Life(pid, MODEL.expected_tokens(prompt, max_tokens, sampling=own)))
        elif name == "restore":
            if arguments[0] in album.images:
                lives.append(await album.restore(arguments[0]))
        elif name == "rot":
            flip_a_bit(kernel.sim.tiers.contents, arguments[0])
        elif name == "damage":
            if arguments[0] in album.images:
                album.damage(*arguments)
        elif name == "checkpoint":
            if lives:
                nursery.start_soon(album.save, lives[arguments[0] % len(lives)], arguments[1])
        elif lives:
            life = lives[arguments[0] % len(lives)]
            try:
                match name:
                    case "kill":
                        await client.kill(life.pid)
                        life.was_killed = True
                    case "stop":
                        await client.stop(life.pid)
                    case "cont":
                        await client.cont(life.pid)
                    case "nice":
                        await client.nice(life.pid, arguments[1])
                    case "fork":
                        forked = await client.fork(life.pid, 1 + arguments[1] % 3)
                        lives += [Life(pid, life.expected, was_copied=True) for pid in forked.pids]
            except SyscallError as error:
                if error.errno is not Errno.EBUSY:  # it has exited, or was not stopped: part of life
                    raise
    return lives


def flip_a_bit(swap_file: dict[tuple[Tier, int], bytes], number: int) -> None:
    """In a slot of the swap file, if there is one that was written to."""
    if swap_file:
        place = sorted(swap_file)[number % len(swap_file)]
        data = swap_file[place]
        at = number % len(data)
        swap_file[place] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def check_timeline(info: WhyInfo, life: Life, num_output: int) -> None:
    """What why says of a process that has ended: times in order, and every token in one of its runs."""
    assert info.entries[-1].kind == "ended"
    assert sum(info.seconds.values()) == pytest.approx(info.entries[-1].at)
    assert min(info.seconds.values()) >= 0
    assert all(entry.seconds >= 0 for entry in info.entries)
    assert info.verdict
    runs = sum(entry.num_tokens for entry in info.entries if entry.kind == "decoding")
    if not info.num_dropped and not life.was_copied:
        assert runs == num_output
    assert runs <= num_output


async def live(operations: list[tuple], options: dict) -> None:
    """One example: a kernel with little memory, a disturbed history, and what came out of it."""
    with tempfile.TemporaryDirectory() as folder:
        make = partial(
            SimDriver,
            num_frames=options.pop("num_frames"),
            max_slots=options.pop("max_slots"),
            host_cost=CopyCost(1e-5, options.pop("copy_rate")),
            compile_seconds=options.pop("compile_seconds"),
            faults=SimFaults(
                faulty_copies=options.pop("faulty_copies"), full_tiers=options.pop("full_tiers")
            ),
        )
        async with running_kernel(Path(folder), make, **options) as kernel:
            lives = await disturb(kernel, operations)
            kernel.check_integrity()
            for life in lives:
                if (await kernel.client.stat(life.pid)).state == "STOPPED":
                    await kernel.client.cont(life.pid)
            for life in lives:
                with trio.fail_after(1000):
                    tokens, end = [], None
                    async for output in kernel.client.stream(life.pid):
                        tokens += output.tokens
                        end = output.end
                assert tuple(tokens) == life.expected[: len(tokens)]
                if end.reason != "killed":
                    assert end.reason == "length"
                    assert len(tokens) == len(life.expected)
                else:
                    assert life.was_killed
                check_timeline(await kernel.client.why(life.pid), life, len(tokens))
                await kernel.client.wait(life.pid)


OPTIONS = st.fixed_dictionaries(
    {
        "num_frames": st.sampled_from([16, 20, 32]),
        "max_running": st.sampled_from([2, 5, 16]),
        "max_chunk_tokens": st.sampled_from([None, 1, 7]),
        "max_step_tokens": st.sampled_from([8, 64, 512]),
        "step_target_ms": st.sampled_from([12.0, 100.0]),
        "prefix_cache": st.booleans(),
        "swap_mib": st.sampled_from([0, 1]),
        "swap_file_mib": st.sampled_from([0, 1]),
        "max_slots": st.sampled_from([6, 14, 1000]),
        "copy_rate": st.sampled_from([1e4, 1e6]),  # bytes a second; a page is 512 bytes, a step 10 ms
        "faulty_copies": st.sampled_from([frozenset(), frozenset({1, 3, 6})]),
        "full_tiers": st.sampled_from([frozenset(), frozenset(), frozenset({"disk"})]),
        "preempt": st.sampled_from(["auto", "swap", "recompute"]),
        "compile_seconds": st.sampled_from([0.001, 0.1]),  # of a grammar
        "switching": st.sampled_from(["auto", "async", "sync"]),
        "swap_reuse": st.booleans(),
    }
)


@settings(max_examples=60)
@given(operations=OPERATIONS, options=OPTIONS)
def test_no_process_can_tell(operations: list[tuple], options: dict) -> None:
    """Preempted, forked, saved, crashed under, starved: the tokens are a quiet run's, nothing leaks."""
    trio.run(live, operations, dict(options), clock=MockClock(autojump_threshold=0))


@pytest.mark.slow
@settings(max_examples=1500)
@given(operations=OPERATIONS, options=OPTIONS)
def test_no_process_can_tell_for_long(operations: list[tuple], options: dict) -> None:
    """The same, many times over."""
    trio.run(live, operations, dict(options), clock=MockClock(autojump_threshold=0))
