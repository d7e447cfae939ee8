"""What `llmos bench map` says of reuse: spaces that get asids and frames which are mapped as they need them.

Processes of many lengths come and go, half of them at a time. Two VMMs plan the same arrivals, one that fits
a space to what is mapped and one that takes whatever comes first, and one driver carries both out in turn.
"""

from __future__ import annotations

import random
import statistics

from attrs import define, field

from llmos.bench.map_driver import Decoder, Driver
from llmos.bench.report import Report
from llmos.device import MapWork
from llmos.mm.vmm import VMM

NUM_ROUNDS = 48  # of arrivals
NUM_DECODE_STEPS = 8  # between them
LONGEST = 1024


@define(eq=False)
class Arrivals:
    """What the steps took in which processes came, round by round."""

    seconds: list[float] = field(factory=list)
    work: MapWork = field(factory=MapWork)
    num_opened: int = 0


def come_and_go(driver: Driver, shape: str, num_rows: int, seed: int) -> dict[bool, Arrivals]:
    """Arrivals with reuse and without, on a driver's new memory."""
    kv = driver.load(shape, None, 2 * num_rows, LONGEST, 64 << 20).kv
    num_frames = num_rows * kv.num_pages(LONGEST) * kv.frames_per_page
    driver.load(shape, kv.frame_bytes, 4 * num_rows, LONGEST, 2 * num_frames * kv.frame_bytes)
    found: dict[bool, Arrivals] = {}
    decoders = {}
    for place, reuse in enumerate((True, False)):
        # twice as many asids as processes, so that there is something to choose from
        vmm = VMM(kv, num_frames, 2 * num_rows, LONGEST, prefix_cache=False, map_reuse=reuse)
        decoders[reuse] = Decoder(vmm, place * 2 * num_rows, place * num_frames)
        found[reuse] = Arrivals()
    draw = random.Random(seed)
    lengths = [draw.randrange(kv.tokens_per_page // 2, LONGEST // 2) for _ in range(num_rows)]
    for decoder in decoders.values():
        decoder.open(driver, lengths)
    for number in range(NUM_ROUNDS):
        leaving = draw.sample(range(num_rows), num_rows // 2)
        coming = [draw.randrange(kv.tokens_per_page // 2, LONGEST // 2) for _ in leaving]
        for reuse in (True, False) if number % 2 else (False, True):
            decoder, arrivals = decoders[reuse], found[reuse]
            decoder.close(driver, leaving)
            done = decoder.open(driver, coming)
            arrivals.seconds.append(done.seconds)
            arrivals.work = arrivals.work.plus(done.maps or MapWork())
            arrivals.num_opened += len(coming)
            for _ in range(NUM_DECODE_STEPS):
                decoder.step(driver)
    for decoder in decoders.values():
        decoder.close(driver)
    return found


def report_reuse(report: Report, driver: Driver, shape: str, num_rows: int, num_runs: int) -> None:
    """Rows on map calls, the time in them and the steps of arrivals, with reuse against without."""
    runs = [come_and_go(driver, shape, num_rows, seed) for seed in range(num_runs)]
    case = f"{shape}, {num_rows} rows decode: half of them end and others come"

    def add(metric: str, unit: str, scale: float, values: list[tuple[float, float]], ratio: float) -> None:
        mine, other = (scale * statistics.median(column) for column in zip(*values, strict=True))
        report.add(
            case, f"{metric}, best fit", mine, unit,
            against=f"first free: {other:.3g} {unit}", ratio=ratio, runs=num_runs,
        )  # fmt: skip

    for metric, unit, scale, of in (
        ("pages mapped by system calls, per process", "pages", 1.0, _calls_each),
        ("steps wait for maps, per process", "us", 1e6, _waits_each),
    ):
        values = [(of(run[True]), of(run[False])) for run in runs]
        # of none at all it would be infinite
        add(metric, unit, scale, values, statistics.median(b / max(a, b / 1000, 1e-9) for a, b in values))
    # Round by round: both have just computed prompts of the same lengths.
    pairs = [pair for run in runs for pair in zip(run[True].seconds, run[False].seconds, strict=True)]
    medians = [(statistics.median(run[True].seconds), statistics.median(run[False].seconds)) for run in runs]
    ratio = statistics.median(other / mine for mine, other in pairs)
    add("median step in which they come", "ms", 1e3, medians, ratio)


def _calls_each(arrivals: Arrivals) -> float:
    return (arrivals.work.num_sync + arrivals.work.num_ahead) / arrivals.num_opened


def _waits_each(arrivals: Arrivals) -> float:
    return arrivals.work.wait_seconds / arrivals.num_opened
