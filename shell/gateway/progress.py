"""How far the prompts of a stream are computed, told until its first token: llama.cpp's `prompt_progress`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import attrs
import trio

from shell.gateway.generation import Generation
from syscalls.client import ConnectionLost
from syscalls.errno import SyscallError

Json = dict[str, Any]

LOOK_SECONDS = 0.25  # between looks: for eyes, and cheap for a kernel with thousands of prompts


@attrs.define(eq=False)
class PromptProgress:
    """Looks at the processes that compute a request's prompts: the first one of each prompt does."""

    generation: Generation
    send: Callable[[Json], Awaitable[None]]  # writes one event
    _told: tuple[int, int] | None = None  # of what was computed and found

    async def tell(self) -> None:
        """Look, and write an event if something is new. A checkpoint. Tells nothing once a token has come."""
        generation = self.generation
        processed = cached = 0
        for choice in generation.choices[:: generation.job.num_samples]:
            length = len(generation.job.prompts[choice.prompt_index])
            if not choice.pid:  # nothing is computed of it
                processed += length
                continue
            found = await generation.client.stat(choice.pid)
            processed += min(length, found.num_computed)
            cached += min(length, found.usage.num_cached_tokens)
        if generation.first_token is not None or (processed, cached) == self._told:
            return
        self._told = processed, cached
        milliseconds = round(1000 * (trio.current_time() - generation.started))
        progress = {"total": generation.num_prompt_tokens, "cache": cached, "processed": processed}
        await self.send({**progress, "time_ms": milliseconds})

    async def run(self) -> None:
        """Tell what is new, again and again, until the first token. Who reads it tells of its end."""
        with suppress(SyscallError, ConnectionLost):
            while self.generation.first_token is None:
                await self.tell()
                await trio.sleep(LOOK_SECONDS)
