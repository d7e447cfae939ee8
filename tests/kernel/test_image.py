"""Process images: saved in any state, restored here, later or elsewhere, and never any the wiser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import msgspec
import pytest
import trio

from drivers.sim import DEFAULT_KV, SimDriver, SimFaults
from drivers.sim_model import SimModel
from llmos.cost import CopyCost
from llmos.kernel import calls_image
from llmos.kernel.grammar_check import GrammarCheck
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.proc.image import Image, encode_tail, read_tail
from llmos.proc.lifecycle import ProcState
from llmos.sched.core import Core
from syscalls.client import Client
from syscalls.errno import Errno, SyscallError
from syscalls.image import Images, RemoveImage, Restore
from syscalls.sampling import Sampling
from tests.kernel.harness import MODEL, RunningKernel, running_kernel, wait_until

SEEDED = Sampling(temperature=1.0, seed=5)
SLOW_DISK = CopyCost(0.05, 1e6)  # a save takes several steps


def prompt(number: int, length: int = 40) -> tuple[int, ...]:
    """A prompt that nobody else has."""
    return tuple((number * 37 + i) % 500 for i in range(length))


async def finish(client: Client, pid: int, offset: int = 0) -> tuple[int, ...]:
    """Read a process from an offset to its end or the end of its turn."""
    tokens: list[int] = []
    async for output in client.stream(pid, offset):
        tokens += output.tokens
    return tuple(tokens)


async def end(client: Client, *pids: int) -> None:
    """Kill and reap."""
    for pid in pids:
        await client.kill(pid)
        await client.wait(pid)


async def emitted(kernel: RunningKernel, pid: int, num_tokens: int) -> None:
    """Wait until a process has output so many tokens."""
    process = kernel.system.table.get(pid)
    await wait_until(lambda: len(process.output) >= num_tokens)


def image_files(kernel: RunningKernel) -> list[str]:
    """Names of all files in the image folder, temporary ones too."""
    return sorted(path.name for path in kernel.system.images.folder.rglob("*") if path.is_file())


def file_bytes_in(core: Core) -> int:
    """Bytes that a device has read from images."""
    assert core.residents.switch is not None
    return core.residents.switch.swap.statistics().num_file_bytes_in


@pytest.fixture
def image_path(tmp_path: Path) -> Callable[[str], Path]:
    """Where the test's own tenant has an image."""

    def find(name: str) -> Path:
        (path,) = (tmp_path / "images").glob(f"*/{name}")
        return path

    return find


# --- every state -----------------------------------------------------------------------------------------

STATES = ["waiting", "prefill", "decode", "stopped", "heir", "swapped", "input", "swapped input"]


async def bring_into(kernel: RunningKernel, state: str) -> list[int]:
    """Spawn a process, and others in its way where needed, and bring it into a state; it is the last one."""
    client = kernel.client
    pids: list[int] = []
    if state == "waiting":
        for number in (8, 9):
            pids += (await client.spawn(prompt(number), max_tokens=600)).pids
    is_interactive = state.endswith("input")
    options: dict[str, Any] = {"max_tokens": 60, "sampling": SEEDED, "interactive": is_interactive}
    if state == "heir":
        options |= {"num_samples": 2, "sampling": msgspec.structs.replace(SEEDED, seed=4)}
    pids += (await client.spawn(prompt(1, 400 if state == "heir" else 40), **options)).pids
    process = kernel.system.table.get(pids[-1])
    match state:
        case "prefill":
            await wait_until(lambda: 0 < process.num_scheduled < 30)
        case "decode" | "stopped":
            await emitted(kernel, process.pid, 20)
            if state == "stopped":
                await client.stop(process.pid)
        case "swapped":
            await emitted(kernel, process.pid, 20)
            (core,) = kernel.system.cores.values()
            core.residents.preempt(process)
            await client.stop(process.pid)
            await wait_until(lambda: not core.residents.switch.swap.transfers)
        case "input" | "swapped input":
            await wait_until(lambda: process.turn_is_over)
            if state == "swapped input":
                await trio.sleep(50)
                assert process.space is None
    return pids


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("state", STATES)
async def test_saved_and_restored_in_every_state(
    tmp_path: Path, autojump_clock: trio.abc.Clock, state: str, prefix_cache: bool
) -> None:
    """The copy emits what the original emits, and both what a quiet run does; output is there from 0."""
    make = partial(SimDriver, disk_cost=SLOW_DISK)
    options = {"swap_mib": 1, "swap_idle_seconds": 20, "max_chunk_tokens": 8, "max_running": 2}
    async with running_kernel(tmp_path, make, preempt="swap", prefix_cache=prefix_cache, **options) as kernel:
        client = kernel.client
        *others, pid = await bring_into(kernel, state)
        process = kernel.system.table.get(pid)
        before = process.describe_state
        saved = await client.checkpoint(pid, "one")
        if state in ("waiting", "heir", "stopped", "swapped", "input", "swapped input"):
            assert process.describe_state == before
        has_memory = state not in ("waiting", "heir")
        assert (saved.num_saved_tokens > 0) == has_memory
        assert saved.num_tokens >= saved.num_saved_tokens
        (info,) = await client.images()
        assert (info.name, info.num_bytes, info.problem) == ("one", saved.num_bytes, "")
        assert (info.num_tokens, info.num_saved_tokens) == (saved.num_tokens, saved.num_saved_tokens)
        assert info.interactive == state.endswith("input")
        if state in ("stopped", "swapped"):
            await client.cont(pid)
        await end(client, *others)
        copies = [(await client.restore("one")).pids[0] for _ in range(2)]
        expected = MODEL.expected_tokens(prompt(1, 400 if state == "heir" else 40), 60, sampling=SEEDED)
        for one in (pid, *copies):
            assert await finish(client, one) == expected
        if info.interactive:
            history = prompt(1) + expected + prompt(2)
            for one in (pid, *copies):
                assert kernel.system.table.get(one).describe_state == "BLOCKED(Input)"
                await client.write(one, prompt(2), max_tokens=30)
                follow_up = await finish(client, one, 60)
                assert follow_up == MODEL.expected_tokens(history, 30, sampling=SEEDED)
            await end(client, pid, *copies)
        else:
            for one in (pid, *copies):
                await client.wait(one)
        if has_memory and not prefix_cache:
            (core,) = kernel.system.cores.values()
            assert file_bytes_in(core) > 0
        assert image_files(kernel) == ["one"]


async def test_a_running_process_goes_on_meanwhile(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """While its pages are written it emits tokens; what is in the file is as it was at the beginning."""
    make = partial(SimDriver, disk_cost=CopyCost(1.0, 1e6))
    async with running_kernel(tmp_path, make, prefix_cache=False) as kernel:
        (pid,) = (await kernel.client.spawn(prompt(1), max_tokens=300)).pids
        process = kernel.system.table.get(pid)
        await emitted(kernel, process.pid, 20)
        saved = await kernel.client.checkpoint(pid, "one")
        assert len(process.output) > 100
        assert 60 <= saved.num_tokens < 70
        expected = MODEL.expected_tokens(prompt(1), 300)
        (copy,) = (await kernel.client.restore("one")).pids
        for one in (pid, copy):
            assert await finish(kernel.client, one) == expected
            await kernel.client.wait(one)


async def test_nothing_is_computed_twice_and_nothing_charged_twice(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A restored chat computes its last position and what is new; its tenant pays for what is new."""
    async with running_kernel(tmp_path, prefix_cache=False) as kernel:
        client, (core,) = kernel.client, kernel.system.cores.values()
        (pid,) = (await client.spawn(prompt(1, 200), max_tokens=20, interactive=True)).pids
        await finish(client, pid)
        saved = await client.checkpoint(pid, "one")
        assert (saved.num_tokens, saved.num_saved_tokens) == (220, 219)
        await end(client, pid)
        before = core.statistics(), (await client.shares())[0]
        (copy,) = (await client.restore("one")).pids
        assert (await client.stat(copy)).usage.num_output_tokens == 20
        await client.write(copy, prompt(2, 10), max_tokens=5)
        expected = MODEL.expected_tokens(
            prompt(1, 200) + MODEL.expected_tokens(prompt(1, 200), 20) + prompt(2, 10), 5
        )
        assert await finish(client, copy, 20) == expected
        after = core.statistics(), (await client.shares())[0]
        assert after[0].num_prompt_tokens - before[0].num_prompt_tokens == 11
        assert after[1].num_prompt_tokens - before[1].num_prompt_tokens == 10
        await end(client, copy)


# --- elsewhere and later ---------------------------------------------------------------------------------


async def test_restored_after_a_restart_of_the_system(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Another kernel finds the images of the one before it, and goes on to the bit."""
    async with running_kernel(tmp_path, check_leaks=False, prefix_cache=False) as kernel:
        (chat,) = (await kernel.client.spawn(prompt(1), max_tokens=20, interactive=True)).pids
        (run,) = (await kernel.client.spawn(prompt(2), max_tokens=50, sampling=SEEDED, label="l")).pids
        await finish(kernel.client, chat)
        await kernel.client.checkpoint(chat, "chat")
        await emitted(kernel, run, 10)
        await kernel.client.checkpoint(run, "run")
    async with running_kernel(tmp_path, prefix_cache=False) as kernel:
        client, (core,) = kernel.client, kernel.system.cores.values()
        assert [(one.name, one.label, one.problem) for one in await client.images()] == [
            ("chat", "", ""),
            ("run", "l", ""),
        ]
        (run,) = (await client.restore("run", label="again")).pids
        assert (await client.stat(run)).label == "again"
        assert await finish(client, run) == MODEL.expected_tokens(prompt(2), 50, sampling=SEEDED)
        await client.wait(run)
        (chat,) = (await client.restore("chat")).pids
        await client.write(chat, prompt(3), max_tokens=20)
        first = MODEL.expected_tokens(prompt(1), 20)
        second = MODEL.expected_tokens(prompt(1) + first + prompt(3), 20)
        assert await finish(client, chat) == first + second
        await end(client, chat)
        assert file_bytes_in(core) > 0


async def test_restored_on_another_device(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """With two devices, copies of one process run on both."""
    async with running_kernel(tmp_path, devices=2, prefix_cache=False) as kernel:
        (pid,) = (await kernel.client.spawn(prompt(1), max_tokens=80)).pids
        await emitted(kernel, pid, 10)
        await kernel.client.checkpoint(pid, "one")
        pids = [pid, *[(await kernel.client.restore("one")).pids[0] for _ in range(3)]]
        devices = {(await kernel.client.stat(one)).device for one in pids}
        assert devices == {"sim:0", "sim:1"}
        for one in pids:
            assert await finish(kernel.client, one) == MODEL.expected_tokens(prompt(1), 80)
            await kernel.client.wait(one)


KV = DEFAULT_KV
MISMATCHES = {
    "driver abi": {"driver_abi": 99},
    "model hash": {"model_hash": "ab12"},
    "adapter hash": {"adapter_hash": "cd34"},
    "weights": {"weights": "w4a8"},
    "kernels": {"kernels": "native-avx512"},
    "kv": {"kv": msgspec.structs.replace(KV, name="other")},
    "vocab size": {"vocab_size": 513},
    "max model len": {"max_model_len": 4097},
}


@pytest.mark.parametrize("field", MISMATCHES)
async def test_a_mismatch_is_refused_by_name(
    tmp_path: Path, autojump_clock: trio.abc.Clock, image_path: Callable[[str], Path], field: str
) -> None:
    """An image of another platform is refused with the field and both values; the list says so, too."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn(prompt(1), max_tokens=80)).pids
        await kernel.client.checkpoint(pid, "one")
        await end(kernel.client, pid)
        rewrite(image_path("one"), platform=MISMATCHES[field])
        with pytest.raises(
            SyscallError, match=f"image one was made with {field} .+, this system has .+"
        ) as e:
            await kernel.client.restore("one")
        assert e.value.errno is Errno.ENOEXEC
        assert ", this system has " in e.value.message
        (info,) = await kernel.client.images()
        assert info.problem in e.value.message


def replace_grammar(path: Path, grammar: str) -> None:
    """Change an image's grammar, checksums right: as a version may have made it that read other grammars."""
    with path.open("r+b") as file:
        image = read_tail(file, Image)
        sampling = msgspec.structs.replace(image.process.sampling, grammar=grammar)
        changed = msgspec.structs.replace(
            image, process=msgspec.structs.replace(image.process, sampling=sampling)
        )
        file.truncate(image.num_frame_bytes)
        file.seek(image.num_frame_bytes)
        file.write(encode_tail(changed))


async def test_a_grammar_is_read_again_at_restore(
    tmp_path: Path, autojump_clock: trio.abc.Clock, image_path: Callable[[str], Path]
) -> None:
    """One that cannot be followed is refused by name, as at spawn, and leaves nothing; others go on."""
    sampling = Sampling(temperature=1.0, seed=3, grammar='start: "a"')
    async with running_kernel(tmp_path, partial(SimDriver, compile_seconds=1.0)) as kernel:
        client = kernel.client
        kernel.system.grammars = GrammarCheck()  # the harness's own takes all
        (pid,) = (await client.spawn(prompt(1), max_tokens=60, sampling=sampling)).pids
        await emitted(kernel, pid, 10)
        await client.checkpoint(pid, "sound")
        await client.checkpoint(pid, "broken")
        expected = await finish(client, pid)
        await client.wait(pid)
        replace_grammar(image_path("broken"), "start: nowhere")
        with pytest.raises(SyscallError, match=r"image broken: grammar cannot be followed: .*nowhere") as e:
            await client.restore("broken")
        assert e.value.errno is Errno.ENOEXEC
        assert list(kernel.system.table) == []
        (pid,) = (await client.restore("sound")).pids
        assert await finish(client, pid) == expected
        await client.wait(pid)


async def test_the_copy_is_its_originals_users(
    tmp_path: Path, autojump_clock: trio.abc.Clock, image_path: Callable[[str], Path]
) -> None:
    """Its share of turns stays its user's; an image that was made before there were any names nobody."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=80, user="ann")).pids
        for name in ("new", "old"):
            await client.checkpoint(pid, name)
        await end(client, pid)
        forget_field(image_path("old"), "user")
        for name, user in (("new", "ann"), ("old", "")):
            (pid,) = (await client.restore(name)).pids
            assert (await client.stat(pid)).user == user
            await end(client, pid)


def forget_field(path: Path, field: str) -> None:
    """Take a field of the process out of an image, checksums right: as before there was any such field."""
    with path.open("r+b") as file:
        image = read_tail(file, Image)
        content = msgspec.to_builtins(image, builtin_types=(bytes,))
        del content["process"][field]
        file.truncate(image.num_frame_bytes)
        file.seek(image.num_frame_bytes)
        file.write(encode_tail(cast("Image", content)))


def rewrite(path: Path, platform: dict[str, Any]) -> None:
    """Change fields of an image's platform, checksums right."""
    with path.open("r+b") as file:
        image = read_tail(file, Image)
        changed = msgspec.structs.replace(image, platform=msgspec.structs.replace(image.platform, **platform))
        file.truncate(image.num_frame_bytes)
        file.seek(image.num_frame_bytes)
        file.write(encode_tail(changed))


async def test_another_model_is_refused(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A system that was started with another model does not take the image."""
    async with running_kernel(tmp_path, check_leaks=False) as kernel:
        (pid,) = (await kernel.client.spawn(prompt(1), max_tokens=80)).pids
        await kernel.client.checkpoint(pid, "one")
    async with running_kernel(tmp_path, partial(SimDriver, model=SimModel(vocab_size=600))) as kernel:
        with pytest.raises(SyscallError, match="image one was made with model hash") as caught:
            await kernel.client.restore("one")
        assert caught.value.errno is Errno.ENOEXEC


# --- damage ----------------------------------------------------------------------------------------------


async def make_image(kernel: RunningKernel, name: str = "one") -> None:
    """An image of a process with 60 tokens or so."""
    (pid,) = (await kernel.client.spawn(prompt(1), max_tokens=80)).pids
    await emitted(kernel, pid, 20)
    await kernel.client.checkpoint(pid, name)
    await end(kernel.client, pid)


async def test_damaged_frames_are_computed_again(
    tmp_path: Path, autojump_clock: trio.abc.Clock, image_path: Callable[[str], Path]
) -> None:
    """A flipped bit in a page: an event names the slot, and the tokens are right."""
    async with running_kernel(tmp_path, prefix_cache=False) as kernel:
        await make_image(kernel)
        path = image_path("one")
        with path.open("r+b") as file:
            file.seek(2 * KV.frames_per_page * KV.frame_bytes + 20)  # page 2
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 4]))
        (pid,) = (await kernel.client.restore("one")).pids
        assert await finish(kernel.client, pid) == MODEL.expected_tokens(prompt(1), 80)
        await kernel.client.wait(pid)
        texts = [event.text for event in kernel.system.events.since(0, 100)]
        assert any("slot 4 does not have its checksum; those tokens are computed again" in t for t in texts)


async def test_saved_from_a_swap_file_that_lies(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What is bad there is not in the image, and what lies behind it is not, either; the rest is."""
    async with running_kernel(
        tmp_path, swap_file_mib=1, swap_idle_seconds=20, prefix_cache=False, preempt="swap"
    ) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=40, interactive=True)).pids
        await emitted(kernel, pid, 40)
        await trio.sleep(50)
        contents = kernel.sim.tiers.contents
        place = ("disk", min(slot for _, slot in contents) + 1)  # of page 1
        contents[place] = contents[place][:-1] + bytes([contents[place][-1] ^ 1])
        saved = await client.checkpoint(pid, "one")
        assert saved.num_saved_tokens == KV.tokens_per_page
        texts = [event.text for event in kernel.system.events.since(0, 100)]
        assert any("does not have its checksum; those pages are not in the image" in text for text in texts)
        (copy,) = (await client.restore("one")).pids
        for one in (copy, pid):
            await client.write(one, prompt(2), max_tokens=20)
        outputs = [await finish(client, one, 40) for one in (copy, pid)]
        assert (
            outputs
            == [MODEL.expected_tokens(prompt(1) + MODEL.expected_tokens(prompt(1), 40) + prompt(2), 20)] * 2
        )
        await end(client, pid, copy)


async def test_an_image_that_goes_while_it_is_used(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A restored chat whose file was removed before its next turn computes its history again."""
    async with running_kernel(tmp_path, prefix_cache=False) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=20, interactive=True)).pids
        first = await finish(client, pid)
        await client.checkpoint(pid, "one")
        (copy,) = (await client.restore("one")).pids
        await client.remove_image("one")
        await client.write(copy, prompt(2), max_tokens=20)
        expected = MODEL.expected_tokens(prompt(1) + first + prompt(2), 20)
        assert await finish(client, copy, 20) == expected
        await end(client, pid, copy)


async def test_an_image_that_is_replaced_while_it_is_used(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A restored process keeps its tokens when another process takes its image's name."""
    async with running_kernel(tmp_path, prefix_cache=False) as kernel:
        client = kernel.client
        chats = [
            (await client.spawn(prompt(number), max_tokens=20, interactive=True)).pids[0] for number in (1, 2)
        ]
        outputs = [await finish(client, pid) for pid in chats]
        await client.checkpoint(chats[0], "one")
        (copy,) = (await client.restore("one")).pids
        await client.checkpoint(chats[1], "one", overwrite=True)
        await client.write(copy, prompt(3), max_tokens=20)
        expected = MODEL.expected_tokens(prompt(1) + outputs[0] + prompt(3), 20)
        assert await finish(client, copy, 20) == expected
        (other,) = (await client.restore("one")).pids
        assert await finish(client, other) == outputs[1]
        await end(client, *chats, copy, other)


@pytest.mark.parametrize("cut", [0, 10, 27, 1000])
async def test_a_truncated_image_is_refused(
    tmp_path: Path, autojump_clock: trio.abc.Clock, image_path: Callable[[str], Path], cut: int
) -> None:
    """Whatever is left of a file that was cut short, it is refused by name, and listed with the reason."""
    async with running_kernel(tmp_path) as kernel:
        await make_image(kernel)
        path = image_path("one")
        path.write_bytes(path.read_bytes()[: cut - 2000 if cut == 1000 else cut])
        with pytest.raises(SyscallError, match=r"image one (has|is no process image)") as caught:
            await kernel.client.restore("one")
        assert caught.value.errno is Errno.EBADMSG
        (info,) = await kernel.client.images()
        assert info.problem in caught.value.message


# --- refusals and limits ---------------------------------------------------------------------------------


async def refused(errno: Errno, call: Callable[[], Any]) -> None:
    """A call fails with this code."""
    with pytest.raises(SyscallError) as caught:
        await call()
    assert caught.value.errno is errno, caught.value


async def test_refusals(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Names that are none, processes and images that are not there, names that are taken."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=80)).pids
        for name in ("", ".x", "..", "a/b", "../../etc/passwd", "x" * 101, "a b", "ä", "a\n"):
            for call in (client.restore, client.remove_image, partial(client.checkpoint, pid)):
                await refused(Errno.EINVAL, partial(call, name))
        await refused(Errno.ESRCH, partial(client.checkpoint, 99, "one"))
        await refused(Errno.ENOENT, partial(client.restore, "one"))
        await refused(Errno.ENOENT, partial(client.remove_image, "one"))
        assert await client.images() == ()
        await client.checkpoint(pid, "one")
        await refused(Errno.EEXIST, partial(client.checkpoint, pid, "one"))
        await client.checkpoint(pid, "one", overwrite=True)
        await finish(client, pid)
        await refused(Errno.EBUSY, partial(client.checkpoint, pid, "two"))
        await client.wait(pid)
        kernel.system.is_draining = True
        await refused(Errno.ESHUTDOWN, partial(client.restore, "one"))
        kernel.system.is_draining = False
        await client.remove_image("one")
        assert image_files(kernel) == []


async def test_a_share_of_the_disk(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """What a tenant's images take is limited; replacing one counts the new one only."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=80)).pids
        await emitted(kernel, pid, 20)
        await client.stop(pid)
        size = (await client.checkpoint(pid, "one")).num_bytes
        kernel.system.images.limit_bytes = 2 * size + size // 2
        # What is removed between the look at the folder and the look at the file is as this is.
        (one,) = kernel.system.images.folder.rglob("one")
        gone = one.with_name("gone")
        gone.symlink_to("nowhere")
        await client.checkpoint(pid, "two")
        gone.unlink()
        await refused(Errno.ENOSPC, partial(client.checkpoint, pid, "three"))
        await client.checkpoint(pid, "two", overwrite=True)
        kernel.system.images.limit_bytes = size + size // 2  # both fit at first, but not together
        await client.remove_image("one")
        await client.remove_image("two")
        codes: list[Errno | None] = []

        async def save(name: str) -> None:
            try:
                await client.checkpoint(pid, name)
            except SyscallError as error:
                codes.append(error.errno)
            else:
                codes.append(None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(save, "one")
            nursery.start_soon(save, "two")
        assert sorted(codes, key=str) == [Errno.ENOSPC, None]
        assert len(image_files(kernel)) == 1
        await end(client, pid)


async def test_other_tenants(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Others' images are for administrators, who ask by name; a restored process is its tenant's."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        await make_image(kernel)
        (folder,) = (tmp_path / "images").iterdir()
        folder.rename(folder.with_name("%2E%2E%2Fother"))
        assert await client.images() == ()
        assert [info.name for info in await client.images("../other")] == ["one"]
        await refused(Errno.ENOENT, partial(client.restore, "one"))
        (copy,) = (await client.restore("one", tenant="../other")).pids
        assert (await client.stat(copy)).tenant == "../other"
        assert await finish(client, copy) == MODEL.expected_tokens(prompt(1), 80)
        await client.wait(copy)
        await client.remove_image("one", "../other")
        assert image_files(kernel) == []


async def test_nobody_else_may_ask() -> None:
    """A session that is no administrator's is refused before anything is looked up."""
    nowhere: Any = None
    session = Session(1, 1000, nowhere, System(), nowhere, tenant="one")
    for handler, body in (
        (calls_image.images, Images("two")),
        (calls_image.restore, Restore("image", tenant="two")),
        (calls_image.remove_image, RemoveImage("image", "two")),
    ):
        with pytest.raises(SyscallError) as caught:
            handler(session.system, session, 1, body)
        assert caught.value.errno is Errno.EPERM


# --- trouble on the way ----------------------------------------------------------------------------------


async def test_two_at_once(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Two images of one process at once, and two processes for one name: each file is whole."""
    async with running_kernel(tmp_path, partial(SimDriver, disk_cost=SLOW_DISK)) as kernel:
        client = kernel.client
        pids = [(await client.spawn(prompt(number), max_tokens=200)).pids[0] for number in (1, 2)]
        outcomes: list[str] = []

        async def save(pid: int, name: str) -> None:
            try:
                await client.checkpoint(pid, name)
                outcomes.append(f"{name} {pid}")
            except SyscallError as error:
                outcomes.append(error.errno.value)

        await emitted(kernel, pids[0], 10)
        async with trio.open_nursery() as nursery:
            for pid, name in ((pids[0], "a"), (pids[0], "b"), (pids[0], "c"), (pids[1], "c")):
                nursery.start_soon(save, pid, name)
        assert outcomes.count("EEXIST") == 1
        winner = next(int(outcome[2:]) for outcome in outcomes if outcome[0] == "c")
        copies = {name: (await client.restore(name)).pids[0] for name in "abc"}
        for name, pid in copies.items():
            number = 1 + pids.index(winner) if name == "c" else 1
            assert await finish(client, pid) == MODEL.expected_tokens(prompt(number), 200)
        await end(client, *pids, *copies.values())
        assert image_files(kernel) == ["a", "b", "c"]


@pytest.mark.parametrize("by", ["kill", "disconnect", "preempt"])
async def test_a_process_that_goes_while_it_is_saved(
    tmp_path: Path, autojump_clock: trio.abc.Clock, by: str
) -> None:
    """Killed, or without memory: what was saved is what it was at the beginning."""
    make = partial(SimDriver, disk_cost=CopyCost(1.0, 1e6))
    async with running_kernel(tmp_path, make, prefix_cache=False) as kernel:
        client, (core,) = kernel.client, kernel.system.cores.values()
        (pid,) = (await client.spawn(prompt(1), max_tokens=300)).pids
        process = kernel.system.table.get(pid)
        await emitted(kernel, pid, 20)

        async def disturb() -> None:
            await wait_until(lambda: len(core.residents.switch.swap.transfers) == 1)
            if by == "kill":
                await client.kill(pid)
            else:
                core.residents.preempt(process)

        async with trio.open_nursery() as nursery:
            if by != "disconnect":
                nursery.start_soon(disturb)
                await client.checkpoint(pid, "one")
            else:
                with trio.move_on_after(0.5):
                    await client.checkpoint(pid, "one")
                await wait_until(lambda: image_files(kernel) == ["one"])
        (copy,) = (await client.restore("one")).pids
        assert await finish(client, copy) == MODEL.expected_tokens(prompt(1), 300)
        await end(client, pid, copy)


@pytest.mark.parametrize("how", ["crash", "fault"])
async def test_a_save_that_fails_leaves_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock, how: str
) -> None:
    """The driver dies, or cannot write: EIO says why, no file is left, the process goes on."""
    faults = SimFaults(faulty_copies=frozenset({1} if how == "fault" else ()))
    made: list[SimDriver] = []

    def make(name: str) -> SimDriver:
        made.append(
            SimDriver(name=name, disk_cost=CopyCost(1.0, 1e6), faults=SimFaults() if made else faults)
        )
        return made[-1]

    async with running_kernel(tmp_path, make, prefix_cache=False) as kernel:
        client, (core,) = kernel.client, kernel.system.cores.values()
        (pid,) = (await client.spawn(prompt(1), max_tokens=300)).pids
        await emitted(kernel, pid, 20)

        async def crash() -> None:
            await wait_until(lambda: len(core.residents.switch.swap.transfers) == 1)
            kernel.sim.kill()

        async with trio.open_nursery() as nursery:
            if how == "crash":
                nursery.start_soon(crash)
            message = "device was lost" if how == "crash" else "cannot be written"
            with pytest.raises(SyscallError, match=f"process {pid} was not saved: .*{message}") as caught:
                await client.checkpoint(pid, "one")
        assert caught.value.errno is Errno.EIO
        assert image_files(kernel) == []
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1), 300)
        await client.wait(pid)


async def test_saved_while_the_driver_is_away(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Without a driver there is no memory: the tokens are saved, and computed again after a restore."""

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, load_seconds=5.0)

    async with running_kernel(tmp_path, make) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1), max_tokens=80)).pids
        await emitted(kernel, pid, 20)
        kernel.sim.kill()
        await wait_until(lambda: kernel.system.table.get(pid).state is ProcState.READY)
        saved = await client.checkpoint(pid, "one")
        assert (saved.num_saved_tokens, saved.num_tokens > 50) == (0, True)
        (copy,) = (await client.restore("one")).pids
        for one in (pid, copy):
            assert await finish(client, one) == MODEL.expected_tokens(prompt(1), 80)
            await client.wait(one)


async def test_leftovers_are_removed_at_the_next_start(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """What a killed kernel had begun is gone after a boot; what another one is writing stays."""
    folder = tmp_path / "images" / "uid%3A0"
    folder.mkdir(parents=True)
    (folder / ".dead.part").write_bytes(b"frames")
    async with running_kernel(tmp_path) as kernel:
        draft = kernel.system.images.begin("somebody", "theirs", 10, overwrite=False)
        assert image_files(kernel) == [draft.path.name]
        assert kernel.system.images.remove_leftovers() == 0
        kernel.system.images.discard(draft)
        assert image_files(kernel) == []
        texts = [event.text for event in kernel.system.events.since(0, 100)]
        assert "1 unfinished images of an earlier kernel removed" in texts


@attrs.define
class SlowReads:
    """Runs what blocks in place, but only when it is told to."""

    gate: trio.Event = attrs.field(factory=trio.Event)

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        await self.gate.wait()
        return function(*arguments)


async def test_a_restore_whose_client_has_gone_leaves_nothing(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    """A call that is cancelled while the file is read creates a process that is killed, or none."""
    async with running_kernel(tmp_path) as kernel:
        await make_image(kernel)
        slow = SlowReads()
        kernel.system.errands.run_blocking = slow.run
        with trio.move_on_after(1):
            await kernel.client.restore("one")
        slow.gate.set()
        await wait_until(lambda: kernel.system.num_spawned == 2)
        await wait_until(lambda: not list(kernel.system.table))
