"""What why says of scripted lives on a whole kernel: what happened, in order, and the reason."""

from __future__ import annotations

import os
import re
from functools import partial

import pytest
import trio

from drivers.sim import SimDriver
from llmos.cost import CopyCost, CostModel
from llmos.ipc.credentials import PeerCredentials
from llmos.kernel import server
from syscalls.client import open_client
from syscalls.errno import SyscallError
from syscalls.process import WhyInfo
from tests.kernel.harness import running_kernel, wait_until
from tests.kernel.test_life import read_some

STEP_SECONDS = 0.01
make_steady = partial(SimDriver, cost=CostModel(base=STEP_SECONDS))


def tell(info: WhyInfo) -> list[str]:
    """The entries in few words: the kind, and the tokens or the text where there are any."""
    return [
        " ".join(str(part) for part in (entry.kind, entry.num_tokens, entry.text) if part)
        for entry in info.entries
    ]


def check_times(info: WhyInfo, age: float) -> None:
    """Times add up to the age, entries are in order, and none ends before it begins."""
    assert sum(info.seconds.values()) == pytest.approx(age)
    assert [entry.at for entry in info.entries] == sorted(entry.at for entry in info.entries)
    assert all(entry.seconds >= 0 for entry in info.entries)


async def test_a_quiet_life(autojump_clock, tmp_path) -> None:
    """Alone: four chunks, a first token, one run of tokens, the end; a zombie tells it as well."""
    async with running_kernel(tmp_path, make_steady, max_chunk_tokens=8) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 33), max_tokens=20)).pids
        await wait_until(lambda: kernel.system.table.get(pid).ended_at is not None)
        info = await client.why(pid)
        assert tell(info) == [
            "spawned", "queued", "admitted", "prefill 32", "first token", "decoding 20", "ended length",
        ]  # fmt: skip
        assert [entry.count for entry in info.entries if entry.kind == "prefill"] == [4]
        assert info.state == "ZOMBIE"
        assert info.seconds["prefill"] == pytest.approx(4 * STEP_SECONDS)
        assert info.seconds["decode"] == pytest.approx(19 * STEP_SECONDS)
        check_times(info, 23 * STEP_SECONDS)
        assert info.verdict == "ran normally: 100.0 tokens/s, first token after 40 ms"
        await client.wait(pid)
        with pytest.raises(SyscallError, match="ESRCH"):
            await client.why(pid)


async def test_a_chat_with_a_stop(autojump_clock, tmp_path) -> None:
    """Turns, input, stop and continue; all that was output is in the runs."""
    async with running_kernel(tmp_path, make_steady) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(range(1, 10), max_tokens=5, interactive=True)).pids
        await wait_until(lambda: kernel.system.table.get(pid).turn_is_over)
        await trio.sleep(3.0)
        info = await client.why(pid)
        assert info.verdict == (
            "idle: waits for input, 3.0 s so far; ran normally: 100.0 tokens/s, first token after 10 ms"
        )
        await client.write(pid, range(1, 4), 50)
        await read_some(client, pid, 12)
        await client.stop(pid)
        await trio.sleep(2.0)
        assert (await client.why(pid)).verdict.startswith("stopped 2.0 s ago; ")
        await client.cont(pid)
        await wait_until(lambda: kernel.system.table.get(pid).turn_is_over)
        info = await client.why(pid)
        kinds = [entry.kind for entry in info.entries]
        assert kinds == [
            "spawned", "queued", "admitted", "prefill", "first token", "decoding", "blocked",
            "input", "queued", "admitted", "prefill", "first token", "decoding",
            "stopped", "continued", "queued", "admitted", "decoding", "blocked",
        ]  # fmt: skip
        assert sum(entry.num_tokens for entry in info.entries if entry.kind == "decoding") == 55
        assert info.seconds["stopped"] == pytest.approx(2.0)
        assert info.seconds["input"] >= 3.0
        assert info.verdict.endswith("; was stopped for 2.0 s")
        await client.kill(pid)
        assert (await client.why(pid)).verdict.startswith("killed: killed by session")
        await client.wait(pid)


async def test_who_preempted_whom(autojump_clock, tmp_path, monkeypatch) -> None:
    """The tenant that was served most gives way to the other one, and its timeline names pid and tenant."""
    uids = iter([os.getuid(), 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    make = partial(make_steady, num_frames=12)
    async with running_kernel(tmp_path, make, prefix_cache=False) as kernel:
        (core,) = kernel.system.cores.values()
        page = core.loaded.kv.tokens_per_page
        async with open_client(kernel.socket_path) as rich, open_client(kernel.socket_path) as poor:
            (victim,) = (await rich.spawn(range(1, page), max_tokens=4 * page)).pids
            await read_some(rich, victim, page)
            (winner,) = (await poor.spawn(range(1, page - 3), max_tokens=3 * page, nice=-5)).pids
            await poor.wait(winner)
            info = await rich.why(victim)
            (preempted,) = [entry for entry in info.entries if entry.kind == "preempted"]
            assert preempted.pid == winner
            assert preempted.text == "recompute, fair share of uid:3000"
            assert preempted.num_tokens > page
            assert re.match(
                rf"(waiting to go on: .*; )?preempted once by pid {winner} \(fair share of uid:3000\), "
                rf"{preempted.num_tokens} tokens to be computed again",
                info.verdict,
            )
            with pytest.raises(SyscallError, match="EPERM"):
                await poor.why(victim)
            await rich.wait(victim)


async def test_waiting_for_memory_names_who_has_it(autojump_clock, tmp_path) -> None:
    """Who stands in the queue for want of memory is told so, while it waits and afterwards."""
    make = partial(make_steady, num_frames=8)
    async with running_kernel(tmp_path, make, prefix_cache=False, policy="fcfs") as kernel:
        (core,) = kernel.system.cores.values()
        page, client = core.loaded.kv.tokens_per_page, kernel.client
        (first,) = (await client.spawn(range(1, 2 * page), max_tokens=2 * page)).pids
        await client.read(first)
        (second,) = (await client.spawn(range(1, 3 * page), max_tokens=page)).pids
        await trio.sleep(0.1)
        info = await client.why(second)
        tenant = f"uid:{os.getuid()}"
        assert info.verdict == (
            f"waiting to start: 100 ms so far, for memory behind tenant {tenant} (1 process)"
        )
        assert info.seconds["memory"] == pytest.approx(0.1)
        await client.wait(first)
        await client.read(second)
        verdict = (await client.why(second)).verdict
        assert re.fullmatch(
            rf"slow to start: waited \d+ ms of \d+ ms for memory behind tenant {tenant} \(1 process\)"
            "; nothing else",
            verdict,
        )
        await client.wait(second)


async def test_a_full_house_is_not_want_of_memory(autojump_clock, tmp_path) -> None:
    """When all places are taken, the wait is for a turn."""
    async with running_kernel(tmp_path, make_steady, max_running=1) as kernel:
        client = kernel.client
        (first,) = (await client.spawn(range(1, 9), max_tokens=100)).pids
        await client.read(first)
        (second,) = (await client.spawn(range(1, 9), max_tokens=4)).pids
        await trio.sleep(0.2)
        info = await client.why(second)
        assert info.verdict.startswith("waiting to start: 200 ms so far, for its turn behind tenant")
        assert info.seconds["queued"] == pytest.approx(0.2)
        assert info.seconds["memory"] == 0
        for pid in (first, second):
            await client.wait(pid)


async def test_a_lost_device_and_siblings(autojump_clock, tmp_path) -> None:
    """A sibling waits for the prefill that it shares; a driver that dies is in the timelines of both."""
    async with running_kernel(tmp_path, make_steady, max_chunk_tokens=8) as kernel:
        client = kernel.client
        elder, heir = (await client.spawn(range(1, 33), max_tokens=40, num_samples=2)).pids
        await read_some(client, heir, 5)
        kernel.sim.kill()
        for pid in (elder, heir):
            await wait_until(lambda pid=pid: kernel.system.table.get(pid).ended_at is not None)
        told = tell(await client.why(heir))
        assert told[:2] == ["spawned", f"blocked Prefill({elder})"]
        (loss,) = [entry for entry in (await client.why(heir)).entries if entry.kind == "device lost"]
        assert loss.num_tokens > 31
        info = await client.why(elder)
        assert "the device was lost once, and its memory with it" in info.verdict
        assert info.seconds["device"] > 0
        assert sum(entry.num_tokens for entry in info.entries if entry.kind == "decoding") == 40
        for pid in (elder, heir):
            await client.wait(pid)


async def test_meminfo_and_maps(autojump_clock, tmp_path, monkeypatch) -> None:
    """Columns add up to the pool; siblings share their prompt's pages; a tenant sees its own processes."""
    uids = iter([os.getuid(), 2000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with running_kernel(tmp_path, make_steady) as kernel:
        (core,) = kernel.system.cores.values()
        page, client = core.loaded.kv.tokens_per_page, kernel.client
        pids = (await client.spawn(range(1, 3 * page + 2), max_tokens=200, num_samples=2)).pids
        await read_some(client, pids[1], 5)
        (device,) = await client.meminfo()
        columns = (
            device.private, device.shared, device.ahead, device.cached, device.moving, device.free,
        )  # fmt: skip
        assert sum(columns) == device.pool
        assert device.moving == 0
        (tenant,) = device.tenants
        assert (tenant.private, tenant.shared) == (device.private, device.shared)
        assert [each.pid for each in device.processes] == list(pids)
        for each in device.processes:
            info = await client.stat(each.pid)
            assert each.private + each.shared + each.ahead == info.num_resident_bytes
            assert each.shared == info.num_shared_bytes == device.shared
            (cheap,) = [one for one in await client.ps(shared=False) if one.pid == info.pid]
            assert (cheap.num_resident_bytes, cheap.num_shared_bytes) == (info.num_resident_bytes, 0)
            ranges = (await client.maps(each.pid)).ranges
            assert (ranges[0].start, ranges[0].end, ranges[0].kind) == (0, 3 * page, "shared")
            assert ranges[0].num_references >= 2
            assert ranges[-1].kind != "shared"
            assert sum(run.num_bytes for run in ranges) == info.num_resident_bytes
        async with open_client(kernel.socket_path) as stranger:
            (seen,) = await stranger.meminfo()
            assert (seen.tenants, seen.processes, seen.private) == ((), (), device.private)
            with pytest.raises(SyscallError, match="EPERM"):
                await stranger.maps(pids[0])
        for pid in pids:
            await client.kill(pid)
            await client.wait(pid)


async def test_swapping_is_in_the_timeline_and_in_the_ledger(autojump_clock, tmp_path) -> None:
    """Bytes out and back, the wait for them, and at every moment columns that add up, copies included."""
    make = partial(make_steady, num_frames=24, host_cost=CopyCost(1e-3, 1e6))
    async with running_kernel(tmp_path, make, swap_mib=1, prefix_cache=False) as kernel:
        client = kernel.client
        pids = [(await client.spawn(range(i, 60 + i), max_tokens=60)).pids[0] for i in range(6)]
        num_swapped = 0
        while any(kernel.system.table.get(pid).ended_at is None for pid in pids):
            await trio.sleep(0.005)
            (device,) = await client.meminfo()
            columns = (
                device.private, device.shared, device.ahead, device.cached, device.moving, device.free,
            )  # fmt: skip
            assert sum(columns) == device.pool
            assert min(columns) >= 0
            (host,) = device.tiers
            assert sum(process.host for process in device.processes) <= host.used <= host.total
            assert sum(tenant.host for tenant in device.tenants) <= host.used
            num_swapped += any(
                process.host and not process.private + process.shared for process in device.processes
            )
        assert num_swapped > 0
        infos = [await client.why(pid) for pid in pids]
        out = [entry for info in infos for entry in info.entries if entry.kind == "swapped out"]
        back = [entry for info in infos for entry in info.entries if entry.kind == "swapped in"]
        (core,) = kernel.system.cores.values()
        tiers = core.statistics().swap.tiers
        # What was copied in advance, and then not needed because its process ended, is nobody's swap.
        assert 0 < sum(entry.num_bytes for entry in out) <= tiers["host"].num_bytes_out
        assert sum(entry.num_bytes for entry in back) == tiers["host"].num_bytes_in > 0
        assert all(entry.text == "host" and entry.seconds >= 1e-3 for entry in back)
        info = next(info for info in infos if any(entry.kind == "swapped in" for entry in info.entries))
        assert info.seconds["swapped"] > 0
        assert " swapped out and " in info.verdict
        assert "back in " in info.verdict
        for pid in pids:
            await client.wait(pid)
