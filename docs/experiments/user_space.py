"""What text costs in user space, and how many tokens a read carries (decision records 0003 and 0004).

python docs/experiments/user_space.py [TOKENS]
"""

from __future__ import annotations

import statistics
import sys
import time

import trio

from llmos.bench.server import Server, running_server
from syscalls.client import open_client
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 2
PROMPT = tuple(range(20, 52))


async def count_reads(server: Server, num_streams: int, num_tokens: int) -> tuple[float, float]:
    """Tokens that one read carries, and tokens per second, of streams on a device that takes no time."""
    num_reads = 0
    async with open_client(server.socket_path) as client:

        async def one() -> None:
            nonlocal num_reads
            spawned = await client.spawn(PROMPT, max_tokens=num_tokens, ignore_eos=True, auto_reap=True)
            async for _ in client.stream(spawned.pids[0]):
                num_reads += 1

        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(num_streams):
                nursery.start_soon(one)
        seconds = time.perf_counter() - began
    total = num_streams * num_tokens
    return total / num_reads, total / seconds


def main(num_tokens: int) -> None:
    """Print text beside a round trip, then reads."""
    with running_server("--device", "sim", "--sim-step-ms", "0", gateway=False) as server:
        with SyncClient(server.socket_path) as client:
            text = TextModel.open(client.models()[0].path)
            trips, encodes, decodes = [], [], []
            ids = text.encode(TEXT)
            for _ in range(10 * num_tokens):
                began = time.perf_counter()
                client.ping()
                trips.append(time.perf_counter() - began)
                began = time.perf_counter()
                text.encode(TEXT)
                encodes.append(time.perf_counter() - began)
                decoder = text.decoder()
                began = time.perf_counter()
                for token in ids:
                    decoder.push((token,))
                decodes.append((time.perf_counter() - began) / len(ids))
        trip, encode, decode = (statistics.median(times) * 1e6 for times in (trips, encodes, decodes))
        print(
            f"round trip {trip:.0f} us; encode {len(ids)} tokens {encode:.0f} us; decode one {decode:.2f} us"
        )
        for num_streams in (1, 64, 256):
            per_read, rate = trio.run(count_reads, server, num_streams, num_tokens)
            print(f"{num_streams} streams: {per_read:.1f} tokens per read, {rate:,.0f} tokens/s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
