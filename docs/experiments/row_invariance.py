"""How often the rest of a batch changes a row's bits in plain torch, and what fixed tiles cost (record 0006).

python docs/experiments/row_invariance.py [RUNS]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from drivers.ops.tiling import TiledLinear

ROW_COUNTS = range(2, 65)
SHAPES = ((256, 704), (256, 2560), (704, 256))  # in, out: matrices of the built-in model
DTYPES = (torch.float32, torch.bfloat16)


def count_changed(compute: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> int:
    """In how many batches of 2 to 64 rows the first row comes out with other bits than alone."""
    alone = compute(rows[:1].clone())[0]
    return sum(not torch.equal(compute(rows[:count].clone())[0], alone) for count in ROW_COUNTS)


def count_moved(compute: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> int:
    """At how many of 15 addresses, 1 to 15 elements past a multiple of 64 bytes, rows come out otherwise."""
    room = torch.empty(rows.numel() + 64, dtype=rows.dtype)
    start = next(i for i in range(64) if room[i:].data_ptr() % 64 == 0)

    def at(shift: int) -> torch.Tensor:
        place = room[start + shift : start + shift + rows.numel()].view(rows.shape)
        place.copy_(rows)
        return compute(place)

    first = at(0)
    return sum(not torch.equal(at(shift), first) for shift in range(1, 16))


def seconds_of(compute: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, runs: int) -> float:
    """Median seconds of one call."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        compute(x)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main(runs: int) -> None:
    """Print what changes, and what it costs that nothing does."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    num = len(ROW_COUNTS)
    for dtype in DTYPES:
        for depth, width in SHAPES:
            weight = torch.randn((width, depth), generator=generator).to(dtype)
            rows = torch.randn((64, depth), generator=generator).to(dtype)
            tiled = TiledLinear()
            tiles = tiled.tiles(weight)

            def plain(x: torch.Tensor, weight: torch.Tensor = weight) -> torch.Tensor:
                return x @ weight.T

            def fixed(
                x: torch.Tensor, weight: torch.Tensor = weight, tiled: TiledLinear = tiled
            ) -> torch.Tensor:
                return tiled(x, weight)

            costs = " ".join(
                f"{n}: {seconds_of(fixed, rows[:n], runs) / seconds_of(plain, rows[:n], runs):.2f}"
                for n in (1, 16, 64)
            )
            print(f"{str(dtype)[6:]:8} {depth:3} x {width}")
            for name, compute in (("plain", plain), (f"tiles {tiles}", fixed)):
                batches, places = count_changed(compute, rows), count_moved(compute, rows[:3])
                print(f"  {name}: other bits in {batches} of {num} batches, at {places} of 15 addresses")
            print(f"  time over plain, by rows: {costs}")
    rows = torch.randn((64, 704), generator=generator)
    odd = rows[:, :703].contiguous()
    print(f"float32 silu of 703 numbers: other bits in {count_changed(F.silu, odd)} of {num} batches")
    print(f"float32 sum of 703 numbers: {count_changed(lambda x: x.sum(-1, keepdim=True), odd)} of {num}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
