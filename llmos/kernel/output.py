"""What a process has output, as readers and followers are told of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import trio

from llmos.proc.pcb import Process
from syscalls import process as p

_NO_USAGE = p.Output(0, ()).usage  # the default itself, which is not sent: there is one for each token


def make_output(process: Process, offset: int, stop: int) -> p.Output:
    """Tell the tokens [offset, stop), and the end of the turn where they are the last before it."""
    is_end = process.turn_is_over and stop == len(process.output)
    return p.Output(
        offset=offset,
        tokens=tuple(process.output[offset:stop]),
        logprobs=tuple(process.logprobs[offset:stop]) if process.logprobs else (),
        end=process.status if is_end else None,
        usage=process.usage(trio.current_time()) if is_end else _NO_USAGE,
        prompt_logprobs=tuple(process.prompt_logprobs) if offset == 0 else (),
        times=_unix_times(process.token_times[offset:stop]) if process.token_times else (),
        vector=process.vector if is_end else b"",
    )


def _unix_times(times: Sequence[float]) -> tuple[float, ...]:
    """Times of the kernel's clock as everybody else tells them."""
    ahead = time.time() - trio.current_time()
    return tuple([ahead + each for each in times])
