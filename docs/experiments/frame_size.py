"""Whether the size of a frame shows in the bits (decision record 0002).

python docs/experiments/frame_size.py [TOKENS]
"""

from __future__ import annotations

import sys

from llmos.bench.server import running_server
from syscalls.sampling import Sampling
from syscalls.sync import SyncClient

PROMPT = tuple(20 + i * 37 % 400 for i in range(300))
FRAME_KIB = (64, 64, 128, 256)


def generate(frame_kib: int, num_tokens: int) -> tuple[list[int], list[float]]:
    """Tokens and their log-probabilities of one greedy process on a device with frames of this size."""
    tokens: list[int] = []
    logprobs: list[float] = []
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "64", "--frame-kib", str(frame_kib))
    with running_server(*options, gateway=False) as server, SyncClient(server.socket_path) as client:
        spawned = client.spawn(
            PROMPT, max_tokens=num_tokens, ignore_eos=True, auto_reap=True, sampling=Sampling(logprobs=0)
        )
        for output in client.stream(spawned.pids[0]):
            tokens += output.tokens
            logprobs += [entry.logprob for entry in output.logprobs]
    return tokens, logprobs


def main(num_tokens: int) -> None:
    """Compare each size with the first."""
    first_tokens, first_logprobs = generate(FRAME_KIB[0], num_tokens)
    for size in FRAME_KIB[1:]:
        tokens, logprobs = generate(size, num_tokens)
        equal = sum(a == b for a, b in zip(logprobs, first_logprobs, strict=True))
        largest = max(abs(a - b) for a, b in zip(logprobs, first_logprobs, strict=True))
        same = "same" if tokens == first_tokens else "other"
        print(f"{size} KiB against {FRAME_KIB[0]} KiB: {same} tokens; log-probabilities: ", end="")
        print(f"{equal} of {num_tokens} equal to the bit, largest difference {largest:.2g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
