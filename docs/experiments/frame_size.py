"""Whether the size of a frame, or the number of threads, shows in the bits (decision records 0002 and 0007).

python docs/experiments/frame_size.py [TOKENS]
"""

from __future__ import annotations

import sys

from drivers.builtin import base_path
from drivers.cpu import CpuDriver
from drivers.engine import Engine
from llmos.device import Bind, Load, Loaded, Map, Reserve, Row, Step
from syscalls.sampling import Sampling

PROMPT = tuple(20 + i * 37 % 400 for i in range(300))
CASES = ((64, 1), (64, 1), (128, 1), (256, 1), (64, 2))  # frame in KiB, threads


def generate(frame_kib: int, num_threads: int, weights: str, native: bool, num_tokens: int) -> list[float]:
    """Log-probabilities of the tokens of one greedy space, in a driver's engine in this process."""
    engine = Engine(CpuDriver(num_threads, native=native))
    load = Load(
        path=str(base_path()), name="base", weights=weights, kv=weights, pool_bytes=64 << 20,
        frame_bytes=frame_kib << 10, max_spaces=1, max_model_len=None, max_step_tokens=512,
    )  # fmt: skip
    loaded = engine.load(load, lambda done, total, what: None)
    assert isinstance(loaded, Loaded), loaded
    num_pages = loaded.kv.num_pages(len(PROMPT) + num_tokens)
    edits = (
        Reserve(0),
        *(Map(0, vpn, (2 * vpn, 2 * vpn + 1)) for vpn in range(num_pages)),
        Bind(0, Sampling(seed=0, logprobs=0), PROMPT, len(PROMPT)),
    )
    logprobs = []
    row = Row(0, 0, PROMPT, True)
    for number in range(num_tokens):
        done = engine.run_step(Step(number, edits if number == 0 else (), (row,)))
        entry = done.logprobs[0]
        assert entry is not None, done.faults
        logprobs.append(entry.logprob)
        row = Row(0, len(PROMPT) + number, (), True)
    engine.close()
    return logprobs


def main(num_tokens: int) -> None:
    """Compare each case with the first, on the native kernels and on the torch reference."""
    for native in (True, False):
        for weights in ("bf16", "fp32"):
            first = generate(*CASES[0], weights, native, num_tokens)
            for frame_kib, num_threads in CASES[1:]:
                given = generate(frame_kib, num_threads, weights, native, num_tokens)
                equal = sum(a == b for a, b in zip(given, first, strict=True))
                largest = max(abs(a - b) for a, b in zip(given, first, strict=True))
                case = (
                    f"{'native' if native else 'torch':6} {weights} {frame_kib:3} KiB, {num_threads} threads"
                )
                print(f"{case}: {equal} of {num_tokens} equal to the bit, largest difference {largest:.2g}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 64)
