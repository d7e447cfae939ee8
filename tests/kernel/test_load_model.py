"""Models that come and go while the kernel runs: on empty devices, on new ones, and never under a process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio

from drivers.builtin import base_path
from drivers.sim import SimDriver
from llmos.loads import ENCODER
from syscalls.client import Client
from syscalls.embedding import Pooling
from syscalls.errno import Errno, SyscallError
from tests.kernel.harness import MODEL, RunningKernel, running_kernel, wait_until
from tests.kernel.test_swap import finish, prompt, read_turn
from tests.kernel.test_tenants import two_tenants

BUILTIN = "llmos-base"


async def states(client: Client) -> dict[str, tuple[str, str]]:
    """State and model of every device."""
    return {device.name: (device.state, device.model) for device in await client.devices()}


async def run(client: Client, number: int, model: str | None = None) -> None:
    """Run a process to its end and check its tokens."""
    (pid,) = (await client.spawn(prompt(number, 30), max_tokens=10, model=model)).pids
    assert await finish(client, pid) == MODEL.expected_tokens(prompt(number, 30), 10)


async def test_beside_the_first_one(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """It has a device of its own; each serves by its name, the first without one."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        loaded = await client.load_model("builtin", "second")
        assert (loaded.device, loaded.model.name, loaded.model.ready) == ("sim:1", "second", True)
        assert [model.name for model in await client.models()] == [BUILTIN, "second"]
        assert await states(client) == {"sim:0": ("ready", BUILTIN), "sim:1": ("ready", "second")}
        for model in (None, BUILTIN, "second"):
            await run(client, 1, model)
        assert [core.completion.num_steps > 0 for core in kernel.system.cores.values()] == [True, True]
        await client.unload_model("second")


async def test_in_its_place(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """An empty device takes the next model; without any, calls say that there is none. Counters stand."""
    async with running_kernel(tmp_path, swap_mib=1) as kernel:
        client = kernel.client
        await run(client, 1)
        num_steps = (await client.statistics()).num_steps
        await client.unload_model(BUILTIN)
        assert await states(client) == {"sim:0": ("empty", "")}
        assert await client.models() == ()
        assert (await client.statistics()).num_frames == 0
        with pytest.raises(SyscallError, match="ENODEV: no model is loaded"):
            await client.spawn([1, 2])
        with pytest.raises(SyscallError, match="ENOENT"):
            await client.unload_model(BUILTIN)
        await client.sleep(2)
        await client.wake()
        assert (await client.load_model(str(base_path()), "other")).device == "sim:0"
        await run(client, 2)
        assert (await client.statistics()).num_steps > num_steps
        assert len(kernel.sims["sim:0"]) == 2


async def test_who_runs_is_waited_for(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Nothing new is taken meanwhile; those that run end as they would have."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        await client.load_model("builtin", "second")
        pids = [(await client.spawn(prompt(i, 30), max_tokens=200, model="second")).pids[0] for i in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.unload_model, "second")
            await trio.sleep(0.2)
            assert (await states(client))["sim:1"] == ("ready", "second")
            with pytest.raises(SyscallError, match="no model 'second'"):
                await client.spawn([1, 2], model="second")
            for number, pid in enumerate(pids):
                assert await finish(client, pid) == MODEL.expected_tokens(prompt(number, 30), 200)
        assert (await states(client))["sim:1"] == ("empty", "")


async def test_who_is_stopped_while_it_is_waited_for(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """It might never end, so the model stays, and serves as before."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 30), max_tokens=200)).pids
        async with trio.open_nursery() as nursery:

            async def unload() -> None:
                with pytest.raises(SyscallError, match=f"process {pid} among them; force ends them"):
                    await client.unload_model(BUILTIN)

            nursery.start_soon(unload)
            await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
            await client.stop(pid)
        await client.cont(pid)
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 30), 200)
        await run(client, 2)


async def test_asleep_while_it_is_waited_for(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A device that is to lose its model sleeps like any other: nobody on it ends, and then it loses it."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 30), max_tokens=200)).pids
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.unload_model, BUILTIN)
            await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
            await client.sleep(2)
            await trio.sleep(100)
            assert (await client.stat(pid)).state == "READY"
            await client.wake()
            assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 30), 200)
        assert (await states(client))["sim:0"] == ("empty", "")


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_who_may_never_end(tmp_path: Path, autojump_clock: trio.abc.Clock, is_stopped: bool) -> None:
    """A chat or a stopped process keeps the model, unless force ends it; what it said can still be read."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(prompt(1, 30), max_tokens=10, interactive=not is_stopped)).pids
        if is_stopped:
            await client.stop(pid)
        else:
            await wait_until(lambda: kernel.system.table.get(pid).turn_is_over)
        with pytest.raises(SyscallError, match=f"process {pid} among them; force ends them") as caught:
            await client.unload_model(BUILTIN)
        assert caught.value.errno is Errno.EBUSY
        if not is_stopped:
            await client.write(pid, (7,), max_tokens=5)  # as if nothing had been asked for
            await wait_until(lambda: kernel.system.table.get(pid).turn_is_over)
        await client.unload_model(BUILTIN, force=True)
        await check_dead(kernel, pid)
        await client.load_model("builtin")
        await run(client, 3)


async def check_dead(kernel: RunningKernel, pid: int) -> None:
    """All calls on a process whose model is gone answer as of any that was killed."""
    client = kernel.client
    process = kernel.system.table.get(pid)
    assert await read_turn(client, pid, 0) == tuple(process.output)
    assert (await client.stat(pid)).state == "ZOMBIE"
    assert (await client.why(pid)).verdict
    assert (await client.maps(pid)).ranges == ()
    await client.kill(pid)
    for call in (client.write(pid, (1,)), client.stop(pid), client.fork(pid), client.checkpoint(pid, "x")):
        with pytest.raises(SyscallError) as caught:
            await call
        assert caught.value.errno is Errno.EBUSY
    assert (await client.wait(pid)).status.message == f"model {BUILTIN} is unloaded"


async def test_what_cannot_be_loaded(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Named by what is wrong; the device stays empty and takes the next one, and nobody else notices."""

    def make(name: str) -> SimDriver:
        if name == "sim:1" and not is_sound:
            raise OSError("no memory for it")
        return SimDriver(name=name)

    is_sound = False
    async with running_kernel(tmp_path, make) as kernel:
        client = kernel.client
        (empty := tmp_path / "empty").mkdir()
        for model, name, errno, message in (
            ("/nowhere", None, Errno.EINVAL, "model is '/nowhere', which is no folder or file"),
            ("owner/name", None, Errno.EINVAL, "which is no folder or file"),
            (str(empty), None, Errno.EINVAL, "has no config.json"),
            ("builtin", None, Errno.EEXIST, "a model called 'llmos-base' is served"),
            ("builtin", "second", Errno.EINVAL, "builtin: no memory for it"),
        ):
            with pytest.raises(SyscallError, match=message) as caught:
                await client.load_model(model, name)
            assert caught.value.errno is errno
        assert await states(client) == {"sim:0": ("ready", BUILTIN), "sim:1": ("empty", "")}
        await run(client, 1)
        is_sound = True
        assert (await client.load_model("builtin", "second")).device == "sim:1"
        await run(client, 2, "second")
        await client.unload_model("second")


async def test_a_driver_that_dies_is_started_again(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A model that came later is restarted like the first."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        await client.load_model("builtin", "second")
        (pid,) = (await client.spawn(prompt(1, 30), max_tokens=200, model="second")).pids
        await wait_until(lambda: len(kernel.system.table.get(pid).output) > 20)
        kernel.sims["sim:1"][-1].kill()
        assert await finish(client, pid) == MODEL.expected_tokens(prompt(1, 30), 200)
        await client.unload_model("second")


async def test_who_may(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Administrators."""
    async with two_tenants(tmp_path) as pair:
        for call in (pair.bob.load_model("builtin"), pair.bob.unload_model(BUILTIN)):
            with pytest.raises(SyscallError, match="EPERM"):
                await call


def encoder_folder(path: Path) -> str:
    """What says that it is an encoder; simulated devices need no more."""
    path.mkdir()
    shape = {"architectures": ["BertModel"], "vocab_size": 512, "max_position_embeddings": 512}
    (path / "config.json").write_bytes(msgspec.json.encode(shape))
    return str(path)


async def test_encoders_come_and_go(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Each has a device of its own kind; vectors are the first one's unless said, else the text model's."""
    folder = encoder_folder(tmp_path / "bert")
    options = {"embedding_model": folder, "embedding_name": "first"}

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, encodes=name.startswith("encoder:"))

    async def check_default(pooling: str) -> None:
        (output,) = (await kernel.client.embed([(1, 2, 3)])).outputs
        assert output.vector == MODEL.expected_vector((1, 2, 3), Pooling(pooling))

    async with running_kernel(tmp_path, make, **options) as kernel:
        client = kernel.client
        await check_default("mean")
        await client.unload_model("first")
        assert await states(client) == {"sim:0": ("ready", BUILTIN), ENCODER: ("empty", "")}
        await check_default("last")
        await client.load_model("builtin", "text")
        assert (await client.load_model(folder)).device == ENCODER
        loaded = await client.load_model(folder, "second")
        assert (loaded.device, loaded.model.generates) == ("encoder:1", False)
        await check_default("mean")
        await run(client, 1)
        (output,) = (await client.embed([(4, 5)], model="second")).outputs
        assert output.vector == MODEL.expected_vector((4, 5), Pooling("mean"))
        with pytest.raises(SyscallError, match="'second' makes no text"):
            await client.spawn([1, 2], model="second")
        await client.unload_model(BUILTIN)
        await run(client, 2)
        for name in ("text", "bert", "second"):
            await client.unload_model(name)
        with pytest.raises(SyscallError, match="ENODEV: no model is loaded"):
            await client.embed([(1, 2)])


async def test_what_is_being_loaded_is_named(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """From the call on, also while another one is loaded first; not after one that cannot be."""

    def make(name: str) -> SimDriver:
        return SimDriver(name=name, load_seconds=0.0 if name == "sim:0" else 5.0)

    async with running_kernel(tmp_path, make) as kernel:
        client = kernel.client
        assert (await client.list_models()).loading == ()
        async with trio.open_nursery() as nursery:
            for name in ("second", "third"):
                nursery.start_soon(client.load_model, "builtin", name)
            await trio.sleep(1)
            assert sorted((await client.list_models()).loading) == ["second", "third"]
            await trio.sleep(5)
            listed = await client.list_models()
            assert len(listed.models) == 2
            assert len(listed.loading) == 1
        assert (await client.list_models()).loading == ()
        with pytest.raises(SyscallError, match="EEXIST"):
            await client.load_model("builtin", "third")
        assert (await client.list_models()).loading == ()
        for name in ("second", "third"):
            await client.unload_model(name)
        assert (await client.list_models()).loading == ()


async def test_two_at_once_get_a_device_each(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """Calls that come together are carried out one after the other."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        async with trio.open_nursery() as nursery:
            for name in ("second", "third"):
                nursery.start_soon(client.load_model, "builtin", name)
        assert sorted(model for _, model in (await states(client)).values()) == [BUILTIN, "second", "third"]
        for name in ("second", "third"):
            await client.unload_model(name)
