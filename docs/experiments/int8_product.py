"""Our W8A8 product beside torch's int8 one (oneDNN), in turn, on one thread of this process's own time.

Torch's gives int32 sums and nothing else; with scales it is `torch._int_mm` followed by two multiplications.

python docs/experiments/int8_product.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from native.gemm import bind_multiply
from native.pack import pack_int8
from native.quantise import quantise_rows

SHAPES = ((768, 768), (6144, 768), (768, 3072), (2048, 2048), (2048, 8192))  # outputs, inputs
ROW_COUNTS = (1, 8, 32, 64, 512)
REPETITIONS = 5
OPERATIONS = 4_000_000_000  # of one timing


def seconds(task: Callable[[], object], times: int) -> float:
    """Processor time of this thread for one call."""
    began = time.thread_time()
    for _ in range(times):
        task()
    return (time.thread_time() - began) / times


def main() -> None:
    """One line for each shape and number of rows: operations per second, and ours by torch's."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    for n, k in SHAPES:
        integers = rng.integers(-127, 128, (n, k), dtype=np.int8)
        scale = rng.random(n, dtype=np.float32)
        weight = pack_int8(integers, scale)
        columns = torch.from_numpy(integers).t()
        for m in ROW_COUNTS:
            x = quantise_rows(rng.standard_normal((m, k), dtype=np.float32))
            out = np.zeros((m, n), dtype=np.float32)
            ours = bind_multiply(weight, x, out)
            rows = torch.from_numpy(x.values[:, :k].copy())
            factors = torch.from_numpy(x.scale)[:, None], torch.from_numpy(scale)

            def sums(rows: torch.Tensor = rows, columns: torch.Tensor = columns) -> torch.Tensor:
                return torch._int_mm(rows, columns)

            def scaled(factors: tuple[torch.Tensor, torch.Tensor] = factors) -> torch.Tensor:
                return sums().float() * (factors[0] * factors[1])

            ours()
            assert np.array_equal(scaled().numpy(), out), "both are exact"
            operations = 2 * m * n * k
            times = max(1, OPERATIONS // operations // 4)
            taken = [[seconds(task, times) for task in (ours, sums, scaled)] for _ in range(REPETITIONS)]
            rates = [statistics.median(operations / row[i] for row in taken) / 1e9 for i in range(3)]
            gain = [statistics.median(row[i] / row[0] for row in taken) for i in (1, 2)]
            print(
                f"{n:6} x {k:5}  {m:4} rows   ours {rates[0]:6.0f} GOP/s   torch sums {rates[1]:6.0f}"
                f"   scaled {rates[2]:6.0f}   times faster {gain[0]:5.2f} {gain[1]:5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
