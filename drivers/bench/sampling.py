"""Sampling in C beside the readable sampler: `python -m drivers.bench.sampling`, JSON lines.

One row, one thread, its own processor time: both are measured in turn, several times, so that what the
machine's other work takes falls on both. Medians are reported.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from attrs import evolve

from drivers.model.randomness import uniform
from drivers.model.reference_sampler import choose_token
from native.attention import use_variant
from native.sampling import Cut, Draw, MirostatDraw, bind_sample
from native.variant import usable_variants

__all__ = ["DRAWS", "LOGITS", "SamplingMeasurement", "make_logits", "measure_sampling"]

NUM_SEEN = 2000  # tokens that penalties are about
DRAWS = {
    "temperature": Draw(0.8),
    "top-k 50": Draw(0.8, top_k=50),
    "top-p 0.9": Draw(0.8, top_p=0.9),
    "top-k 50, top-p 0.9": Draw(0.8, top_k=50, top_p=0.9),
    "min-p 0.05": Draw(0.8, min_p=0.05),
    "penalties": Draw(
        0.8,
        repetition_penalty=1.1,
        presence_penalty=0.5,
        seen_ids=np.arange(NUM_SEEN),
        num_output=np.arange(NUM_SEEN) % 3,
    ),
    "typical-p 0.9": Draw(0.8, cuts=(Cut("temperature", 0.8), Cut("typical_p", 0.9))),
    "min-p 0.05, XTC": Draw(0.8, cuts=(Cut("min_p", 0.05), Cut("xtc", 0.1), Cut("temperature", 0.8))),
    "mirostat 2": Draw(0.8, cuts=(Cut("temperature", 0.8),), mirostat=MirostatDraw(2, 5.0, 0.1, 10.0)),
    "mirostat 1": Draw(0.8, cuts=(Cut("temperature", 0.8),), mirostat=MirostatDraw(1, 5.0, 0.1, 10.0)),
    "given token, 20": Draw(given=7, num_top=20),
    "logprobs 20": Draw(0.8, num_top=20),
    "greedy, logprobs 20": Draw(num_top=20),
}
LOGITS = ("sure", "unsure", "equal")


class SamplingMeasurement(msgspec.Struct, frozen=True):
    """One way to draw from one kind of row: medians over the repetitions."""

    draw: str
    logits: str
    vocab_size: int
    variant: str
    microseconds: float
    reference_microseconds: float
    ratio: float  # reference / C, of times taken in turn
    repetitions: int


def make_logits(kind: str, vocab_size: int) -> np.ndarray:
    """Random logits: "sure" has 200 tokens above the noise, "unsure" is all noise, "equal" has none."""
    rng = np.random.default_rng(0)
    logits = 2.5 * rng.standard_normal(vocab_size)
    if kind == "sure":
        logits[rng.integers(0, vocab_size, 200)] = rng.uniform(12.0, 20.0, 200)
    elif kind == "equal":
        logits[:] = 1.5
    return logits.astype(np.float32)


def measure_sampling(
    name: str, kind: str, vocab_size: int, variant: str, repetitions: int
) -> SamplingMeasurement:
    """Both samplers in turn, `repetitions` times, each time with another random number.

    Args:
        name: of DRAWS.
        kind: of LOGITS.
        vocab_size: more than NUM_SEEN tokens.
        variant: of `usable_variants`; it stays in use.
        repetitions: at least 1.
    """
    use_variant(usable_variants()[variant])
    logits, times = make_logits(kind, vocab_size), []
    for repetition in range(repetitions):
        draw = evolve(DRAWS[name], uniform=uniform(0, repetition))
        ours = _seconds(bind_sample(logits, draw))
        theirs = _seconds(lambda draw=draw: choose_token(logits, draw))  # type: ignore[misc]
        times.append((ours, theirs, theirs / ours))
    ours, theirs, ratio = map(statistics.median, zip(*times, strict=True))
    return SamplingMeasurement(name, kind, vocab_size, variant, ours * 1e6, theirs * 1e6, ratio, repetitions)


def _seconds(run: Callable[[], object]) -> float:
    """Processor time of this thread, the better of two runs: the first one finds no memory yet."""
    times = []
    for _ in range(2):
        began = time.thread_time()
        run()
        times.append(time.thread_time() - began)
    return min(times)


def measure_all(
    names: Sequence[str], kinds: Sequence[str], vocab_size: int, variants: Sequence[str], repetitions: int
) -> Iterator[SamplingMeasurement]:
    """Every combination, variant by variant."""
    for variant in variants:
        for name in names:
            for kind in kinds:
                yield measure_sampling(name, kind, vocab_size, variant, repetitions)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is measured."""
    parser = argparse.ArgumentParser(prog="drivers.bench.sampling", description=__doc__.splitlines()[0])
    variants = list(usable_variants())
    parser.add_argument("--draws", nargs="+", choices=tuple(DRAWS), default=tuple(DRAWS))
    parser.add_argument("--logits", nargs="+", choices=LOGITS, default=LOGITS)
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--variants", nargs="+", choices=variants, default=variants[-1:])
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    for row in measure_all(options.draws, options.logits, options.vocabulary, options.variants, options.runs):
        print(msgspec.json.encode(row).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
