"""Draws of the largest batch on the device: by its own cuts, with penalties, by other cuts, by mirostat."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch
from attrs import evolve

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.ops.counted import count_seen
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.sample import draw_numbers, sample
from drivers.triton_ops.scores import penalise, score_numbers
from native.sampling import Cut, Draw, MirostatDraw

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
        ("mirostat 2", evolve(PLAIN, cuts=TYPICAL[:1], mirostat=MirostatDraw(2, 5.0, 0.1, 10.0))),
    ):
        case = f"kernels: sampling by {name}, batch {batch}"
        if setup.has_time(case) and setup.has_memory(case, 20 * batch * vocab_size):
            logits = torch.randn(batch, vocab_size, device=setup.device)
            seconds = _seconds(setup, logits, [draw] * batch)
            yield setup.against_bandwidth(case, seconds, logits.nbytes)


def _seconds(setup: Setup, logits: torch.Tensor, draws: list[Draw]) -> float:
    """Of the kernels, where a graph has them; else with what the host prepares and sends, as in a step."""
    numbers = torch.from_numpy(draw_numbers(draws)).to(setup.device)
    if draws[0].is_plain:
        return setup.seconds(lambda: sample(logits, numbers))
    if draws[0].is_counted:
        counted = count_seen(draws, logits.shape[1], logits.device)
        told = score_numbers(draws, counted)
        notes, penalties = (torch.from_numpy(each).to(setup.device) for each in told)
        counts = counted.counts
        return setup.seconds(
            lambda: sample(logits, numbers, scores=penalise(logits, notes, penalties, counts))
        )
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
