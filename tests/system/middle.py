"""What is done to a process in the middle of its output, however late a busy machine lets us come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar, Unpack

from syscalls.client import Client
from syscalls.errno import Errno, SyscallError
from syscalls.session import SpawnOptions

Done = TypeVar("Done")


async def in_the_middle(
    client: Client,
    act: Callable[[int], Awaitable[Done]],
    prompt: Sequence[int],
    *,
    num_tokens: int = 1,
    **options: Unpack[SpawnOptions],
) -> tuple[int, Done]:
    """Spawn a process, and call `act` with its pid once it has output tokens, and before it has ended.

    A process that ended first, so that `act` was refused with EBUSY, is reaped, and another one spawned.
    Returns the pid, and what `act` returned.
    """
    while True:
        (pid,) = (await client.spawn(prompt, **options)).pids
        offset = 0
        while offset < num_tokens and (found := (await client.read(pid, offset)).tokens):
            offset += len(found)
        try:
            return pid, await act(pid)
        except SyscallError as error:
            if error.errno is not Errno.EBUSY:
                raise
            await client.wait(pid)
