"""Whose doing the tails of light tenants are: beside a flood, without it, and on a fifth of the device.

python docs/experiments/light_tails.py PERCENT [SEED…]

Four light tenants of `llmos bench fair`, simulated, each of which asks for PERCENT of a fair share. On a
fifth of the device each of them has a fifth of the memory to itself, and every step: what a fair share would
be if it were never lent. Printed are times to the first token of all four, in seconds.
"""

from __future__ import annotations

import sys
from unittest import mock

from llmos.bench import fair, fair_curve
from llmos.bench.fairness import first_token_seconds
from llmos.bench.suites import LIGHT
from llmos.bench.workload import percentile
from llmos.log import configure_logging


def main(load: float, seeds: list[int]) -> None:
    """Print a line for each seed and case."""
    configure_logging("error", "console")
    lengths = fair_curve.read_lengths(fair.ARENA, 1)
    machine = fair_curve.Machine("simulated A10G", fair.simulate, lengths, 300.0, 1500.0)
    capacity = fair_curve.measure_capacity(machine)
    for seed in seeds:
        traffic = fair_curve.light_traffic(machine, load, capacity, seed)
        found = {
            "beside the flood": first_token_seconds(fair.simulate("fair", traffic), LIGHT),
            "without it": first_token_seconds(fair.simulate("fair", traffic.alone(*LIGHT)), LIGHT),
        }
        with mock.patch.object(fair, "POOL_TOKENS", fair.POOL_TOKENS // (len(LIGHT) + 1)):
            found["on a fifth each"] = [
                seconds
                for tenant in LIGHT
                for seconds in first_token_seconds(fair.simulate("fair", traffic.alone(tenant)), [tenant])
            ]
        for case, values in found.items():
            p50, p90, p99 = (percentile(values, percent) for percent in (50, 90, 99))
            print(f"seed {seed}, {case:17} P50 {p50:.3f} P90 {p90:.3f} P99 {p99:.3f}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) / 100, [int(seed) for seed in sys.argv[2:]] or [0, 1, 2])
