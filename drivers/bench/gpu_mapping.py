"""What steps feel of frames that are mapped beside them, as a growing batch makes a driver do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from drivers.bench.gpu_model import open_cache, open_queue
from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.model.step_queue import MAX_IN_FLIGHT, StepQueue
from drivers.model.transformer import Transformer
from llmos.device import Row
from native.cuda.mapper import CudaMapper
from native.cuda.paging import CudaPool, CudaRange

__all__ = ["measure_mapping"]

NUM_PAGES = 64
PAGES_PER_STEP = 4  # 64 processes whose frames hold 32 tokens need two of keys and two of values
NUM_STEPS = 200


def measure_mapping(setup: Setup, model: Transformer) -> Iterator[Measured]:
    """P50 and P99 of decode steps while another thread maps, beside those of steps alone."""
    batch, context = setup.sizes.ablation_batches[-1], setup.sizes.contexts[0]
    case = f"step: decode, batch {batch}, context {context}, mapping beside it"
    if (cache := open_cache(setup, model, case, batch, context)) is None:
        return
    queue = open_queue(setup, model, cache, batch)
    frame = setup.memory.granularity_bytes
    with (
        CudaPool(setup.memory, NUM_PAGES + 1, frame) as pool,
        CudaRange(pool, NUM_PAGES) as place,
        closing(CudaMapper(place)) as mapper,
    ):
        turn = 0

        def map_some() -> Callable[[], object]:
            """Begin to map other frames than a round before: an unmap and a map for each page."""
            nonlocal turn
            turn += 1
            pages = [(turn * PAGES_PER_STEP + index) % NUM_PAGES for index in range(PAGES_PER_STEP)]
            pfns = [(page + turn // (NUM_PAGES // PAGES_PER_STEP) % 2) for page in pages]
            job = mapper.submit(pages, pfns)
            return lambda: mapper.wait(job)

        for begin in (map_some, None, map_some):  # the first one warms up
            times = _time_steps(setup, queue, batch, context, begin)
            if begin is None:
                alone = times
        count = len(times)
    for metric, at in (("P50", 0.5), ("P99", 0.99)):
        ours, theirs = (sorted(each)[int(at * count)] for each in (times, alone))
        yield Measured(
            case, metric, ours * 1e6, "us", f"nothing mapped, {theirs * 1e6:.4g} us", theirs / ours, count
        )


def _time_steps(
    setup: Setup,
    queue: StepQueue,
    batch: int,
    context: int,
    begin: Callable[[], Callable[[], object]] | None,
) -> list[float]:
    """Seconds from each step's end to the next one's; what `begin` gives is waited for before a launch."""
    rows = [Row(asid, context - 1, (), True) for asid in range(batch)]
    draws = [None] * batch
    queue.launch([Row(asid, context - 1, (1,), True) for asid in range(batch)], draws)
    ends: list[float] = []
    waits: list[Callable[[], object]] = []
    for _ in range(NUM_STEPS if setup.is_gpu else 3):
        while waits:
            waits.pop()()
        queue.launch(rows, draws)
        if begin is not None:
            waits.append(begin())
        while queue.num_in_flight >= MAX_IN_FLIGHT:
            queue.collect()
        ends.append(time.perf_counter())
    while queue.num_in_flight:
        queue.collect()
    while waits:
        waits.pop()()
    return [later - earlier for earlier, later in itertools.pairwise(ends)]
