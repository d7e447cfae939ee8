"""What tenants were served and have, as the shares call tells it."""

from __future__ import annotations

import os
import re

from llmos.ipc.credentials import PeerCredentials
from llmos.kernel import server
from syscalls.client import open_client
from tests.kernel.harness import running_kernel


async def test_shares_tell_who_was_served_what(autojump_clock, tmp_path, monkeypatch) -> None:
    """Tokens, weight, processes and memory by tenant; a tenant sees itself, an administrator everybody."""
    uids = iter([os.getuid(), 2000, 3000])
    monkeypatch.setattr(server, "peer_credentials", lambda sock: PeerCredentials(1, next(uids), 1))
    async with running_kernel(tmp_path, max_running=1, tenant_weights="uid:2000=4") as kernel:
        async with open_client(kernel.socket_path) as one, open_client(kernel.socket_path) as other:
            (done,) = (await one.spawn(range(1, 31), max_tokens=10)).pids
            await one.wait(done)
            (runs,) = (await one.spawn(range(1, 31), max_tokens=400)).pids
            await one.read(runs)
            (waits,) = (await other.spawn(range(1, 31), max_tokens=10)).pids
            shares = {share.tenant: share for share in await kernel.client.shares()}
            mine, others = shares["uid:2000"], shares["uid:3000"]
            assert (mine.weight, others.weight) == (4.0, 1.0)
            assert mine.num_output_tokens >= 11
            assert 30 <= mine.num_prompt_tokens < 60, "the second prompt was found in memory"
            assert (mine.num_running, mine.num_waiting) == (1, 0)
            assert (others.num_running, others.num_waiting) == (0, 1)
            assert mine.num_resident_bytes == (await one.stat(runs)).num_resident_bytes > 0
            assert others.num_resident_bytes == 0
            assert [share.tenant for share in await other.shares()] == ["uid:3000"]
            cheap = {share.tenant: share for share in await kernel.client.shares(memory=False)}
            assert cheap.keys() == shares.keys()
            assert cheap["uid:2000"].num_output_tokens >= mine.num_output_tokens
            assert cheap["uid:2000"].num_resident_bytes == 0
            text = (await kernel.client.statistics(exposition=True)).exposition
            (found,) = re.findall(r'llmos_tenant_output_tokens_total\{tenant="uid:2000"\} (\S+)', text)
            assert float(found) >= mine.num_output_tokens
            assert 'llmos_tenant_waiting{tenant="uid:3000"} 1.0' in text
            sizes = re.findall(r'llmos_memory_bytes\{device="sim:0",use="(\w+)"\} (\S+)', text)
            (device,) = await kernel.client.meminfo()
            assert sum(float(size) for use, size in sizes if use != "weights") == device.pool
            assert "uid:2000" not in (await other.statistics(exposition=True)).exposition
            await one.kill(runs)
            await one.wait(runs)
            await other.wait(waits)
