"""Spawn three samples of one prompt, wait for them in turn, and print them (no event loop).

python docs/examples/spawn_sync.py Once upon a time
"""

from __future__ import annotations

import sys

from syscalls.sampling import Sampling
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel


def main(prompt: str, max_tokens: int = 32) -> None:
    """Print three sampled continuations of `prompt`, which share its memory."""
    with SyncClient(name="spawn_sync") as client:
        text = TextModel.open(client.models()[0].path)
        sampling = Sampling(temperature=0.8, seed=1)
        spawned = client.spawn(text.encode(prompt), max_tokens=max_tokens, sampling=sampling, num_samples=3)
        for pid, seed in zip(spawned.pids, spawned.seeds, strict=True):
            tokens = [token for output in client.stream(pid) for token in output.tokens]
            status = client.wait(pid).status
            print(f"seed {seed}, {status.reason}: {prompt}{text.decode(tokens, continues=True)}")


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]) or "Once upon a time")
