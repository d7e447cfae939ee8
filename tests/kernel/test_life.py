"""What if …? Lives and deaths of processes on a whole kernel with a simulated device."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import pytest
import trio

from drivers.sim import SimDriver, SimFaults
from drivers.sim_model import SimModel
from llmos.cost import CostModel
from llmos.device import FromDriver, StepDone
from llmos.params import MAX_DRIVER_RESTARTS, ZOMBIE_SECONDS
from syscalls.client import open_client
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus
from syscalls.sampling import Sampling
from tests.kernel.harness import MODEL, running_kernel, wait_until
from tests.reading import read_all

PROMPT = tuple(range(1, 40))


async def read_some(client, pid, num_tokens):
    """Wait until a process has put out so many tokens."""
    offset = 0
    while offset < num_tokens:
        offset += len((await client.read(pid, offset)).tokens)


async def test_a_process_emits_what_the_model_says(autojump_clock, tmp_path: Path) -> None:
    """One process alone: tokens, usage and exit status are those of the ten-line model."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20)).pids
        tokens, end = await read_all(kernel.client, pid)
        assert tokens == MODEL.expected_tokens(PROMPT, 20)
        assert end.reason == "length"
        waited = await kernel.client.wait(pid)
        assert waited.usage.num_prompt_tokens == len(PROMPT)
        assert waited.usage.num_output_tokens == 20
        with pytest.raises(SyscallError, match="ESRCH"):
            await kernel.client.stat(pid)


@pytest.mark.parametrize("chunk", [1, 7, 64, None])
async def test_chunks_do_not_show(autojump_clock, tmp_path: Path, chunk: int | None) -> None:
    """However the prompts are cut, forty processes together emit what each would alone."""
    async with running_kernel(
        tmp_path, max_chunk_tokens=chunk, max_running=16, max_step_tokens=128
    ) as kernel:
        prompts = [tuple((7 * i + j) % 500 for j in range(3 + 11 * i % 200)) for i in range(40)]
        sampling = [Sampling(temperature=0.7 * (i % 2), seed=i) for i in range(40)]
        pids = [
            (await kernel.client.spawn(p, max_tokens=30, sampling=s)).pids[0]
            for p, s in zip(prompts, sampling, strict=True)
        ]
        for pid, prompt, how in zip(pids, prompts, sampling, strict=True):
            tokens, _ = await read_all(kernel.client, pid)
            assert tokens == MODEL.expected_tokens(prompt, 30, sampling=how)
            await kernel.client.wait(pid)


async def test_memory_for_ten_and_a_hundred_spawned(autojump_clock, tmp_path: Path) -> None:
    """Under pressure processes are preempted and recompute; all finish, and none can tell."""
    make = partial(SimDriver, num_frames=60)
    async with running_kernel(tmp_path, make) as kernel:
        prompts = [tuple((i * 31 + j) % 500 for j in range(20)) for i in range(100)]
        pids = [(await kernel.client.spawn(p, max_tokens=40)).pids[0] for p in prompts]
        for pid, prompt in zip(pids, prompts, strict=True):
            tokens, _ = await read_all(kernel.client, pid)
            assert tokens == MODEL.expected_tokens(prompt, 40)
            await kernel.client.wait(pid)
        assert (await kernel.client.statistics()).num_preemptions > 0


async def test_fork_mid_flight(autojump_clock, tmp_path: Path) -> None:
    """Children of a running process continue from its tokens as if they were it; new seeds diverge."""
    async with running_kernel(tmp_path) as kernel:
        sampling = Sampling(temperature=1.0, seed=5)
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=60, sampling=sampling, label="parent")).pids
        await read_some(kernel.client, pid, 11)
        same = (await kernel.client.fork(pid, 3)).pids
        other = (await kernel.client.fork(pid, 1, seeds=(99,), label="other")).pids
        labels = [(await kernel.client.stat(child)).label for child in (pid, same[0], other[0])]
        assert labels == ["parent", "parent", "other"]
        expected = MODEL.expected_tokens(PROMPT, 60, sampling=sampling)
        for child in (pid, *same):
            tokens, _ = await read_all(kernel.client, child)
            assert tokens == expected
        tokens, _ = await read_all(kernel.client, other[0])
        shared = next(i for i, (a, b) in enumerate(zip(tokens, expected, strict=True)) if a != b)
        assert shared >= 11
        assert tokens == expected[:shared] + MODEL.expected_tokens(
            PROMPT + expected[:shared], 60 - shared, sampling=Sampling(temperature=1.0, seed=99)
        )
        assert kernel.sim.statistics().num_copied_pages > 0
        for child in (pid, *same, *other):
            await kernel.client.wait(child)


async def test_samples_share_one_prefill(autojump_clock, tmp_path: Path) -> None:
    """n samples of a long prompt compute it once, and use seed + i each."""
    async with running_kernel(tmp_path) as kernel:
        prompt = tuple(i % 500 for i in range(1500))
        sampling = Sampling(temperature=1.0, seed=7)
        spawned = await kernel.client.spawn(prompt, max_tokens=10, sampling=sampling, num_samples=16)
        assert spawned.seeds == tuple(range(7, 23))
        for pid, seed in zip(spawned.pids, spawned.seeds, strict=True):
            tokens, _ = await read_all(kernel.client, pid)
            assert tokens == MODEL.expected_tokens(prompt, 10, sampling=Sampling(temperature=1.0, seed=seed))
            await kernel.client.wait(pid)
        assert kernel.sim.statistics().num_tokens < 1500 + 16 * 12


async def test_second_run_finds_the_prefix(autojump_clock, tmp_path: Path) -> None:
    """A prompt that was served before is found in memory, and the tokens are the same."""
    async with running_kernel(tmp_path) as kernel:
        answers = []
        for _ in range(2):
            (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20)).pids
            answers.append((await read_all(kernel.client, pid))[0])
            usage = (await kernel.client.wait(pid)).usage
        assert answers[0] == answers[1]
        assert usage.num_cached_tokens >= 32


async def test_a_salt_parts_a_tenant_s_processes(autojump_clock, tmp_path: Path) -> None:
    """Pages are found under the same salt only; what is cached still counts as the tenant's."""
    async with running_kernel(tmp_path) as kernel:
        cached = []
        for salt in ("", "a", "b", "a", ""):
            (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20, cache_salt=salt)).pids
            assert (await read_all(kernel.client, pid))[0] == MODEL.expected_tokens(PROMPT, 20)
            cached.append((await kernel.client.wait(pid)).usage.num_cached_tokens >= 32)
        assert cached == [False, False, False, True, True]
        assert len((await kernel.client.meminfo())[0].tenants) == 1
        with pytest.raises(SyscallError, match="cache_salt has 257 characters"):
            await kernel.client.spawn(PROMPT, cache_salt="x" * 257)


async def test_labels_are_bounded(autojump_clock, tmp_path: Path) -> None:
    """A label is kept with its process: by whichever call it comes, it has a limit."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=50, label="x" * 1024)).pids
        await client.checkpoint(pid, "saved")
        with pytest.raises(SyscallError, match="label has 1025 characters; the limit is 1024"):
            await client.spawn(PROMPT, label="x" * 1025)
        with pytest.raises(SyscallError, match="label has 1025 characters"):
            await client.embed([PROMPT], label="x" * 1025)
        with pytest.raises(SyscallError, match="label has 1025 characters"):
            await client.fork(pid, label="x" * 1025)
        with pytest.raises(SyscallError, match="label has 1025 characters"):
            await client.restore("saved", label="x" * 1025)
        assert [process.label for process in kernel.system.table] == ["x" * 1024]
        await client.kill(pid)
        await client.wait(pid)


@pytest.mark.parametrize("when", ["waiting", "prefill", "decode", "stopped", "input", "zombie"])
async def test_kill_in_every_state(autojump_clock, tmp_path: Path, when: str) -> None:
    """Whatever a process does, kill gives its memory back before it answers."""
    async with running_kernel(tmp_path, max_running=2, max_chunk_tokens=8) as kernel:
        client = kernel.client
        if when == "waiting":
            for _ in range(2):
                await client.spawn(PROMPT, max_tokens=500)
        (pid,) = (
            await client.spawn(PROMPT, max_tokens=300 if when != "zombie" else 1, interactive=when == "input")
        ).pids
        if when in ("decode", "stopped"):
            await read_some(client, pid, 5)
        if when == "prefill":
            await trio.sleep(0.02)
        if when == "stopped":
            await client.stop(pid)
            assert (await client.stat(pid)).state == "STOPPED"
        if when in ("input", "zombie"):
            await read_all(client, pid)
        await client.kill(pid)
        info = await client.stat(pid)
        assert info.state == "ZOMBIE"
        assert info.num_resident_bytes == 0
        reason = (await client.wait(pid)).status.reason
        assert reason == ("length" if when == "zombie" else "killed")
        for other in await client.ps():
            await client.kill(other.pid)
            await client.wait(other.pid)


async def test_killed_and_never_read(autojump_clock, tmp_path: Path) -> None:
    """One that is reaped by its last read, killed without a reader: it goes after a while, others stay."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (killed,) = (await client.spawn(PROMPT, max_tokens=300, auto_reap=True)).pids
        (finished,) = (await client.spawn(PROMPT, max_tokens=3, auto_reap=True)).pids
        (waited_for,) = (await client.spawn(PROMPT, max_tokens=300)).pids
        await client.kill(killed)
        await client.kill(waited_for)
        assert {process.pid for process in await client.ps()} == {killed, finished, waited_for}
        await trio.sleep(ZOMBIE_SECONDS * 1.2)
        assert {process.pid for process in await client.ps()} == {finished, waited_for}
        assert await read_all(client, finished) == (MODEL.expected_tokens(PROMPT, 3), ExitStatus("length"))
        assert (await client.wait(waited_for)).status.reason == "killed"


async def test_a_client_that_disconnects_ends_its_processes(autojump_clock, tmp_path: Path) -> None:
    """Processes end with their session within a step; a detached one lives on."""
    async with running_kernel(tmp_path) as kernel:
        async with open_client(kernel.socket_path) as other:
            await other.spawn(PROMPT, max_tokens=1000, num_samples=3)
            (detached,) = (await other.spawn(PROMPT, max_tokens=30, detached=True)).pids
            await other.read(detached)
        num_steps = kernel.system.cores["sim:0"].completion.num_steps
        await wait_until(lambda: len(kernel.system.table) == 1)
        assert kernel.system.cores["sim:0"].completion.num_steps <= num_steps + 1
        tokens, _ = await read_all(kernel.client, detached)
        assert tokens == MODEL.expected_tokens(PROMPT, 30)
        await kernel.client.wait(detached)


async def test_stop_and_cont(autojump_clock, tmp_path: Path) -> None:
    """A stopped process makes no progress, keeps its memory, and goes on as if nothing had been."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=50)).pids
        await read_some(kernel.client, pid, 4)
        await kernel.client.stop(pid)
        await trio.sleep(1)
        before = await kernel.client.stat(pid)
        await trio.sleep(10)
        after = await kernel.client.stat(pid)
        assert before.num_tokens == after.num_tokens
        assert after.num_resident_bytes > 0
        with pytest.raises(SyscallError, match="EBUSY"):
            await kernel.client.write(pid, (1, 2))
        await kernel.client.cont(pid)
        with pytest.raises(SyscallError, match="not STOPPED"):
            await kernel.client.cont(pid)
        tokens, _ = await read_all(kernel.client, pid)
        assert tokens == MODEL.expected_tokens(PROMPT, 50)
        await kernel.client.wait(pid)


async def test_turns_of_a_chat(autojump_clock, tmp_path: Path) -> None:
    """An interactive process blocks on input, keeps its memory; each turn follows from the whole history."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=10, interactive=True)).pids
        history, offset = PROMPT, 0
        for turn in range(4):
            tokens, end = await read_all(client, pid, offset)
            assert end.reason == "length"
            assert tokens == MODEL.expected_tokens(history, 10)
            assert (await client.stat(pid)).state == "BLOCKED(Input)"
            history += tokens
            offset += len(tokens)
            written = tuple(range(100 + turn, 120))
            await client.write(pid, written, max_tokens=10)
            history += written
        computed = kernel.sim.statistics().num_tokens
        assert computed <= len(history) + 40
        await client.kill(pid)
        await client.wait(pid)


async def test_end_tokens(autojump_clock, tmp_path: Path) -> None:
    """The end token ends a turn, counts, and is the last output; ignore_eos and min_tokens hold it off."""
    model = SimModel(eos_token_ids=(3,), eos_every=10)
    async with running_kernel(tmp_path, partial(SimDriver, model=model)) as kernel:
        for options, expected in (
            ({}, model.expected_tokens(PROMPT, 200)),
            ({"ignore_eos": True}, None),
            ({"min_tokens": 60}, None),
        ):
            (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=200, **options)).pids
            tokens, end = await read_all(kernel.client, pid)
            if expected is not None:
                first = expected.index(3)
                assert tokens == expected[: first + 1]
                assert (end.reason, end.stop_token) == ("stop", 3)
            elif options.get("ignore_eos"):
                assert len(tokens) == 200
            else:
                assert 3 not in tokens[:60]
            await kernel.client.wait(pid)


async def test_the_driver_dies(autojump_clock, tmp_path: Path) -> None:
    """A device lost in mid-flight is restarted; no process is lost, and none can tell."""
    lives = iter([SimFaults(die_after_step=7), SimFaults(die_after_step=30), SimFaults()])

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, faults=next(lives))

    async with running_kernel(tmp_path, make) as kernel:
        prompts = [tuple((i * 17 + j) % 500 for j in range(30)) for i in range(8)]
        pids = [(await kernel.client.spawn(p, max_tokens=40)).pids[0] for p in prompts]
        for pid, prompt in zip(pids, prompts, strict=True):
            tokens, _ = await read_all(kernel.client, pid)
            assert tokens == MODEL.expected_tokens(prompt, 40)
            await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        assert (device.state, device.num_restarts) == ("ready", 2)


async def test_a_later_load_fails(autojump_clock, tmp_path: Path) -> None:
    """A driver that died is started until its model loads again; no process can tell."""
    short = SimFaults(fail_load="there is no memory")
    lives = iter([SimFaults(die_after_step=7), short, short, SimFaults()])

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, faults=next(lives))

    async with running_kernel(tmp_path, make) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=40)).pids
        tokens, _ = await read_all(kernel.client, pid)
        assert tokens == MODEL.expected_tokens(PROMPT, 40)
        await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        assert (device.state, device.num_restarts) == ("ready", 3)


async def test_no_later_load_works(autojump_clock, tmp_path: Path) -> None:
    """After a few attempts, each later than the one before, the device is failed and says why."""
    starts: list[float] = []

    def make(name: str) -> SimDriver:
        starts.append(trio.current_time())
        fails = len(starts) > 1
        return SimDriver(
            name=name, faults=SimFaults(fail_load="there is no memory" if fails else None, die_after_step=7)
        )

    async with running_kernel(tmp_path, make) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=40)).pids
        _, end = await read_all(kernel.client, pid)
        assert end.reason == "error"
        assert "there is no memory" in end.message
        await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        assert device.state == "failed"
        assert device.message == f"there is no memory; {MAX_DRIVER_RESTARTS} restarts did not help"
        assert len(starts) == 1 + MAX_DRIVER_RESTARTS
        pauses = [later - earlier for earlier, later in itertools.pairwise(starts[1:])]
        assert pauses == sorted(pauses)


async def test_the_driver_hangs(autojump_clock, tmp_path: Path) -> None:
    """A step that never ends gets its driver killed and restarted."""
    lives = iter([SimFaults(hang_after_step=5), SimFaults()])

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, faults=next(lives))

    async with running_kernel(tmp_path, make) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=40)).pids
        tokens, _ = await read_all(kernel.client, pid)
        assert tokens == MODEL.expected_tokens(PROMPT, 40)
        await kernel.client.wait(pid)


async def test_the_driver_keeps_dying(autojump_clock, tmp_path: Path) -> None:
    """A device that cannot be kept alive fails: its processes end with its name, new ones are refused."""

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, faults=SimFaults(die_after_step=2))

    async with running_kernel(tmp_path, make) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=40)).pids
        _, end = await read_all(kernel.client, pid)
        assert end.reason == "error"
        assert "sim:0" in end.message
        await kernel.client.wait(pid)
        with pytest.raises(SyscallError) as refused:
            await kernel.client.spawn(PROMPT)
        assert refused.value.errno is Errno.ENODEV


async def test_one_row_fails(autojump_clock, tmp_path: Path) -> None:
    """A fault in one row ends that process with its message; the others do not notice."""
    make = partial(SimDriver, faults=SimFaults(faulty_token=499))
    async with running_kernel(tmp_path, make) as kernel:
        (good,) = (await kernel.client.spawn((1, 2, 3), max_tokens=5)).pids
        (bad,) = (await kernel.client.spawn((1, 499, 3), max_tokens=5)).pids
        _, end = await read_all(kernel.client, bad)
        assert end.reason == "error"
        assert "499" in end.message
        tokens, _ = await read_all(kernel.client, good)
        assert tokens == MODEL.expected_tokens((1, 2, 3), 5)
        for pid in (good, bad):
            await kernel.client.wait(pid)


async def test_a_device_tells_how_long_it_was_busy(autojump_clock, tmp_path: Path) -> None:
    """As long as its steps took: not while nobody asks, and not while it waits for the kernel."""
    async with running_kernel(tmp_path, partial(SimDriver, cost=CostModel(base=0.01))) as kernel:
        for _ in range(2):
            await trio.sleep(5.0)
            (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20)).pids
            await read_all(kernel.client, pid)
            await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        assert device.num_steps >= 40
        assert device.busy_seconds == pytest.approx(0.01 * device.num_steps)


async def test_two_devices_share_the_load(autojump_clock, tmp_path: Path) -> None:
    """With two devices both are used, and a process emits the same on either."""
    async with running_kernel(tmp_path, devices=2) as kernel:
        pids: list[int] = []

        async def spawn() -> None:
            pids.extend((await kernel.client.spawn(PROMPT, max_tokens=20)).pids)

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(spawn)  # a burst: no device has run any of them when the next is placed
        for pid in pids:
            assert (await read_all(kernel.client, pid))[0] == MODEL.expected_tokens(PROMPT, 20)
            await kernel.client.wait(pid)
        assert all(device.num_steps > 0 for device in await kernel.client.devices())


async def test_nice_runs_first(autojump_clock, tmp_path: Path) -> None:
    """Among those that wait, the lower nice level runs first."""
    async with running_kernel(tmp_path, max_running=1) as kernel:
        client = kernel.client
        (first,) = (await client.spawn(PROMPT, max_tokens=50)).pids
        (later,) = (await client.spawn(PROMPT, max_tokens=5)).pids
        (urgent,) = (await client.spawn(PROMPT, max_tokens=5, nice=5)).pids
        await client.nice(urgent, -5)
        queued = {}
        for pid in (first, later, urgent):
            await read_all(client, pid)
            queued[pid] = (await client.wait(pid)).usage.queued_seconds
        assert queued[first] < queued[urgent] < queued[later]


@pytest.mark.parametrize(
    ("arguments", "errno", "names"),
    [
        ({"prompt": ()}, Errno.EINVAL, "prompt"),
        ({"prompt": (512,)}, Errno.EINVAL, "512"),
        ({"prompt": (-1,)}, Errno.EINVAL, "vocabulary"),
        ({"prompt": (1,) * 5000}, Errno.E2BIG, "4096"),
        ({"prompt": (1,), "max_tokens": 4096}, Errno.E2BIG, "4097"),
        ({"prompt": (1,), "max_tokens": 0}, Errno.EINVAL, "max_tokens"),
        ({"prompt": (1,), "nice": 20}, Errno.EINVAL, "nice"),
        ({"prompt": (1,), "num_samples": 129}, Errno.EINVAL, "num_samples"),
        ({"prompt": (1,), "model": "gpt-5"}, Errno.ENOENT, "gpt-5"),
        ({"prompt": (1,), "sampling": Sampling(grammar='start: "x"')}, Errno.EINVAL, "cannot follow"),
        ({"prompt": (1,), "sampling": Sampling(temperature=3)}, Errno.EINVAL, "temperature"),
        ({"prompt": (1,), "sampling": Sampling(logit_bias={512: 1.0})}, Errno.EINVAL, "logit_bias"),
        ({"prompt": (1,), "stop_token_ids": (600,)}, Errno.EINVAL, "stop_token_ids"),
        ({"prompt": (1,), "max_tokens": 3000}, Errno.ENOMEM, "frames"),
    ],
)
async def test_bad_spawns_are_refused_by_name(
    autojump_clock, tmp_path: Path, arguments, errno, names
) -> None:
    """Each bad argument is an errno and a message that names it; nothing is left behind."""
    async with running_kernel(tmp_path, partial(SimDriver, num_frames=256)) as kernel:
        with pytest.raises(SyscallError) as refused:
            await kernel.client.spawn(**arguments)
        assert refused.value.errno is errno
        assert names in refused.value.message


async def test_zero_latency_device(autojump_clock, tmp_path: Path) -> None:
    """A device that answers at once does not starve or stall the loop."""
    async with running_kernel(tmp_path, partial(SimDriver, cost=CostModel())) as kernel:
        pids = [(await kernel.client.spawn(PROMPT, max_tokens=50)).pids[0] for _ in range(20)]
        for pid in pids:
            assert (await read_all(kernel.client, pid))[0] == MODEL.expected_tokens(PROMPT, 50)
            await kernel.client.wait(pid)


async def test_a_driver_answers_out_of_step(autojump_clock, tmp_path: Path) -> None:
    """A driver that answers a step that was not asked is killed and restarted; its processes cannot tell."""

    class Confused(SimDriver):
        async def receive(self) -> FromDriver:
            message = await super().receive()
            if isinstance(message, StepDone) and message.id == 5:
                return StepDone(77, message.tokens, message.seconds)
            return message

    lives = iter([Confused, SimDriver])

    def make(name: str) -> SimDriver:
        return next(lives)(name=name)

    async with running_kernel(tmp_path, make) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20)).pids
        assert (await read_all(kernel.client, pid))[0] == MODEL.expected_tokens(PROMPT, 20)
        await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        assert device.num_restarts == 1


@pytest.mark.parametrize("when", ["waiting", "prefill", "decode", "input", "heir", "elder"])
async def test_stop_and_cont_in_every_state(autojump_clock, tmp_path: Path, when: str) -> None:
    """Stopped in whatever state, continued later: the same tokens; killed while stopped: nothing leaks."""
    async with running_kernel(tmp_path, max_running=2, max_chunk_tokens=8) as kernel:
        client = kernel.client
        blockers: tuple[int, ...] = ()
        if when == "waiting":
            blockers = tuple([(await client.spawn(PROMPT, max_tokens=60)).pids[0] for _ in range(2)])
        spawned = await client.spawn(
            PROMPT,
            max_tokens=20,
            interactive=when == "input",
            num_samples=3 if when in ("heir", "elder") else 1,
        )
        target = spawned.pids[1 if when == "heir" else 0]
        if when == "decode":
            await read_some(client, target, 3)
        if when in ("prefill", "elder"):
            await trio.sleep(0.015)
        if when == "input":
            await read_all(client, target)
        await client.stop(target)
        await client.stop(target)  # again: nothing happens
        await trio.sleep(5)
        assert (await client.stat(target)).state == "STOPPED"
        await client.cont(target)
        if when == "input":
            assert (await client.stat(target)).state == "BLOCKED(Input)"
            await client.stop(target)
            await client.write(target, (1, 2, 3), max_tokens=5)
            await client.cont(target)
            history = PROMPT + MODEL.expected_tokens(PROMPT, 20)
            tokens, _ = await read_all(client, target, 20)
            assert tokens == MODEL.expected_tokens((*history, 1, 2, 3), 5)
            await client.stop(target)
            await client.kill(target)
        for pid in (*spawned.pids, *blockers):
            if when != "input":
                tokens, _ = await read_all(client, pid)
                assert tokens == MODEL.expected_tokens(PROMPT, 60 if pid in blockers else 20)
            await client.wait(pid)
