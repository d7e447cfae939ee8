"""What switching could win at most: conversations on the simulated A10 whose copies take no time at all.

python docs/experiments/free_switches.py LOAD [SEED…]

LOAD is one of `llmos bench switch --device sim`. Printed for each seed are times to the first token, beside
those of synchronous copies block by block and of the kernel's own choice, which pay for their copies.
"""

from __future__ import annotations

import sys

import attrs

from llmos.bench.conversations import DEFAULT_TRACE, make_conversations, read_trace
from llmos.bench.switch_loads import LOADS
from llmos.bench.switch_sim import A10, Machine, simulate
from llmos.bench.switch_variants import ASYNC, AUTO, BLOCKS, make_variants
from llmos.cost import CopyCost
from llmos.log import configure_logging

NUM_CONVERSATIONS = 300
FREE = attrs.evolve(A10, copy_cost=CopyCost(0.0, 1e15))
CASES: dict[str, tuple[Machine, str]] = {
    "copies that take no time": (FREE, ASYNC),
    AUTO: (A10, AUTO),
    BLOCKS: (A10, BLOCKS),
}


def main(name: str, seeds: list[int]) -> None:
    """Print a line for each seed and case."""
    configure_logging("warning", "console")
    rows = read_trace(DEFAULT_TRACE)
    load = next(load for load in LOADS if load.name == name)
    for seed in seeds:
        conversations = make_conversations(
            rows, NUM_CONVERSATIONS, load.per_second, load.pause_seconds, A10.context, seed
        )
        for case, (machine, variant) in CASES.items():
            options = make_variants(A10.block_bytes, load.rerank_steps, seed)[variant].options
            run = simulate(machine, conversations, options, load.most_seconds * NUM_CONVERSATIONS)
            p50, p95, p99 = (run.latencies.ttft[percent] for percent in (50.0, 95.0, 99.0))
            print(f"seed {seed}, {case:25} P50 {p50:.3f} P95 {p95:.3f} P99 {p99:.3f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(seed) for seed in sys.argv[2:]] or [1, 2, 3])
