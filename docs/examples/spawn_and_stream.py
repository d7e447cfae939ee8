"""Spawn a process and stream its text (Trio).

python docs/examples/spawn_and_stream.py Once upon a time
"""

from __future__ import annotations

import sys

import trio

from syscalls.client import open_client
from syscalls.text.tokenizer import TextModel


async def main(prompt: str, max_tokens: int = 32) -> None:
    """Print a greedy continuation of `prompt` as it is generated."""
    async with open_client(name="spawn_and_stream") as client:
        model = (await client.models())[0]
        text = await trio.to_thread.run_sync(TextModel.open, model.path)
        spawned = await client.spawn(text.encode(prompt), max_tokens=max_tokens, auto_reap=True)
        decoder = text.decoder(continues=True)
        print(prompt, end="")
        async for output in client.stream(spawned.pids[0]):
            print(decoder.push(output.tokens), end="", flush=True)
            if output.end is not None:
                print(decoder.flush())
                print(f"[{output.end.reason}, {output.usage.num_output_tokens} tokens]", file=sys.stderr)


if __name__ == "__main__":
    trio.run(main, " ".join(sys.argv[1:]) or "Once upon a time")
