"""Draws of the largest batch on the device: by its own cuts, with penalties, and by cuts in an order."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from attrs import evolve

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.sample import draw_numbers, sample
from native.sampling import Cut, Draw

__all__ = ["measure_sampling"]

PLAIN = Draw(0.8, 0.5, top_k=50, top_p=0.95)
TYPICAL = (Cut("temperature", 0.8), Cut("typical_p", 0.95))
NUM_SEEN = 512  # different tokens before


def measure_sampling(setup: Setup) -> Iterator[Measured]:
    """Against reading the logits once."""
    batch, vocab_size = setup.sizes.batches[-1], setup.sizes.model.vocab_size
    seen = np.arange(min(NUM_SEEN, vocab_size))
    penalties = evolve(PLAIN, seen_ids=seen, num_output=np.ones_like(seen), repetition_penalty=1.1)
    for name, draw in (
        ("top-k and top-p", PLAIN),
        ("top-k and top-p, with penalties", penalties),
        ("typical", evolve(PLAIN, cuts=TYPICAL)),
    ):
        case = f"kernels: sampling by {name}, batch {batch}"
        if setup.has_time(case) and setup.has_memory(case, 20 * batch * vocab_size):
            logits = torch.randn(batch, vocab_size, device=setup.device)
            seconds = _seconds(setup, logits, [draw] * batch)
            yield setup.against_bandwidth(case, seconds, logits.nbytes)


def _seconds(setup: Setup, logits: torch.Tensor, draws: list[Draw]) -> float:
    """Of the kernel, where a graph has it; else with what the host prepares and sends, as in a step."""
    if draws[0].is_plain:
        numbers = torch.from_numpy(draw_numbers(draws)).to(setup.device)
        return setup.seconds(lambda: sample(logits, numbers))
    ops = TritonOps()
    ops.draw_tokens(logits, draws)
    times = []
    for _ in range(setup.sizes.runs):
        setup.synchronize()
        began = time.perf_counter()
        ops.draw_tokens(logits, draws)
        setup.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
