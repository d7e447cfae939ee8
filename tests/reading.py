"""Reading what processes put out, for tests."""

from __future__ import annotations

from syscalls.client import Client
from syscalls.process import ExitStatus


async def read_all(client: Client, pid: int, offset: int = 0) -> tuple[tuple[int, ...], ExitStatus]:
    """All output of a process's turn from an offset on, and how it ended."""
    tokens: list[int] = []
    end = None
    async for output in client.stream(pid, offset):
        tokens += output.tokens
        end = output.end
    assert end is not None
    return tuple(tokens), end


async def finish(client: Client, pid: int) -> tuple[int, ...]:
    """Read a process to its end and reap it."""
    tokens, _ = await read_all(client, pid)
    await client.wait(pid)
    return tokens
