"""What if a kernel shuts down while somebody has replies to come? They are sent before the session ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from llmos.params import FAREWELL_SECONDS, LAST_READ_SECONDS
from llmos.proc.lifecycle import ProcState
from syscalls.codec import Call, FrameSplitter, Reply, encode_frame, kernel_frame_decoder
from syscalls.process import Read
from syscalls.system import Models
from tests.kernel.harness import MODEL, running_kernel, wait_until
from tests.kernel.test_hostile import GREETING

NUM_CALLS = 4000  # whose replies are more than the system's buffers hold


async def test_replies_that_wait_are_sent(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """All of them, in order, to one who begins to read when the kernel has gone down already but for that."""
    async with running_kernel(tmp_path) as kernel:
        stream = await trio.open_unix_socket(kernel.socket_path)
        async with stream:
            calls = b"".join(encode_frame(Call(i, Models())) for i in range(NUM_CALLS))
            await stream.send_all(GREETING + calls)
            await trio.sleep(1)
            await kernel.client.shutdown(0.0)
            await trio.sleep(FAREWELL_SECONDS / 2)
            splitter, answered = FrameSplitter(), []
            async for chunk in stream:
                for payload in splitter.feed(chunk):
                    message = kernel_frame_decoder.decode(payload)
                    answered += [message.id] if isinstance(message, Reply) else []
            assert answered == list(range(NUM_CALLS))


async def test_nobody_waits_for_one_who_never_reads(autojump_clock: trio.abc.Clock, tmp_path: Path) -> None:
    """A farewell takes so long and no longer."""
    async with running_kernel(tmp_path) as kernel:
        stream = await trio.open_unix_socket(kernel.socket_path)
        async with stream:
            calls = b"".join(encode_frame(Call(i, Models())) for i in range(NUM_CALLS))
            await stream.send_all(GREETING + calls)
            await trio.sleep(1)
            began = trio.current_time()
            await kernel.client.shutdown(0.0)
            await wait_until(lambda: not kernel.system.num_sessions)
            assert trio.current_time() - began == pytest.approx(FAREWELL_SECONDS, abs=0.5)


async def test_who_reads_call_by_call_reads_to_the_end(
    autojump_clock: trio.abc.Clock, tmp_path: Path
) -> None:
    """It asks again when the process has ended already, and how it ended; then nothing is waited for."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn((5, 6, 7), max_tokens=50)).pids
        process = kernel.system.table.get(pid)
        await client.shutdown(60.0)
        await wait_until(lambda: process.state is ProcState.ZOMBIE)
        began = trio.current_time()
        assert (await client.call(Read(pid, 0))).tokens == MODEL.expected_tokens((5, 6, 7), 50)
        assert (await client.wait(pid)).status.reason == "length"
        await wait_until(lambda: not kernel.system.num_sessions)
        assert trio.current_time() - began < LAST_READ_SECONDS / 2
