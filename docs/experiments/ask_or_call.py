"""What it costs to ask an actor, and what it costs to call an object (decision record 0001).

python docs/experiments/ask_or_call.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import time

import trio

from llmos.device import Segment, choose_kv_format
from llmos.ipc.mailbox import Mailbox, Reply
from llmos.mm.vmm import VMM

CALLS = 2000  # in a round
START = 70  # position of a decode row that stays inside its page


def open_memory() -> VMM:
    """A VMM of the built-in model's order of size."""
    kv = choose_kv_format("bf16", (Segment("K", 1024), Segment("V", 1024)), None)
    return VMM(kv, num_frames=4096, max_spaces=8, max_model_len=2048)


def call_seconds() -> float:
    """Seconds of one `grow` for a decode row that needs nothing."""
    vmm = open_memory()
    space = vmm.open_space("tenant")
    vmm.pager.grow(space, 0, START)
    grow = vmm.pager.grow
    began = time.perf_counter()
    for _ in range(CALLS):
        grow(space, START, START + 1)
    return (time.perf_counter() - began) / CALLS


async def ask_seconds() -> float:
    """Seconds of one question to an actor that owns the VMM: a message there, a reply back."""
    vmm = open_memory()
    space = vmm.open_space("tenant")
    vmm.pager.grow(space, 0, START)
    mailbox: Mailbox[Reply[None]] = Mailbox(1)

    async def serve() -> None:
        async for reply in mailbox:
            vmm.pager.grow(space, START, START + 1)
            reply.set(None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        began = time.perf_counter()
        for _ in range(CALLS):
            reply: Reply[None] = Reply()
            mailbox.send_nowait(reply)
            await reply.wait()
        seconds = (time.perf_counter() - began) / CALLS
        mailbox.close()
    return seconds


def main(rounds: int) -> None:
    """Print the medians, in microseconds, of interleaved rounds."""
    calls, asks = [], []
    for _ in range(rounds):
        calls.append(call_seconds())
        asks.append(trio.run(ask_seconds))
    call, ask = statistics.median(calls) * 1e6, statistics.median(asks) * 1e6
    print(f"call {call:.2f} us, ask {ask:.1f} us, {ask / call:.0f} times; medians of {rounds} rounds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
