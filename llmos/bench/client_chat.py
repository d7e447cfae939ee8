"""A chat through the syscall socket, as any program would hold it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import attrs
import trio

from llmos.bench.chats import Chat, TurnTimes
from llmos.bench.conversations import Conversation
from syscalls.client import Client


@asynccontextmanager
async def open_client_chat(client: Client, conversation: Conversation) -> AsyncIterator[Chat]:
    """The process of one conversation; it is killed at the end."""
    chat = ClientChat(client, f"conversation {conversation.number}")
    yield chat
    if chat.pid is not None:
        await client.kill(chat.pid)
        await client.wait(chat.pid)


@attrs.define(eq=False)
class ClientChat:
    """One interactive process; its answers are as long as is asked for, whatever is sampled."""

    client: Client
    label: str
    pid: int | None = None
    num_read: int = 0

    async def say(self, tokens: Sequence[int], num_output_tokens: int, times: TurnTimes) -> Sequence[int]:
        """See Chat."""
        if self.pid is None:
            spawned = await self.client.spawn(
                tokens, max_tokens=num_output_tokens, ignore_eos=True, interactive=True, label=self.label
            )
            (self.pid,) = spawned.pids
        else:
            await self.client.write(self.pid, tokens, num_output_tokens)
        answer: list[int] = []
        while len(answer) < num_output_tokens:
            output = await self.client.read(self.pid, self.num_read)
            times.arrivals += [trio.current_time()] * len(output.tokens)
            answer += output.tokens
            self.num_read += len(output.tokens)
        return answer
