"""`llmos bench map`: do steps wait for memory to be mapped?

A VMM for each way of mapping plans the same decode steps, and one driver runs them in turn, step by step, so
that whatever else the machine does falls on all. A shape is decoded three times over: on memory that nobody
has used, on memory that was used elsewhere, and in spaces that come back to the asids they had.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import get_args

from rich.progress import track

from llmos.bench.map_driver import Decoder, DecodeStep, Driver, Farewell, running_driver
from llmos.bench.map_reuse import report_reuse
from llmos.bench.report import Report
from llmos.config import ConfigError, num_cores
from llmos.mm.mapper import MappingMode
from llmos.mm.vmm import VMM

MODES: tuple[MappingMode, ...] = get_args(MappingMode)
PASSES = ("memory never used", "memory used before", "spaces reused")
FRAME_KIB = (64, 128, 256, 512, 1024, 2048)
SHAPES = {"base": ("base", 32, 256), "160m": ("160m", 16, 256)}  # name, processes that decode, steps of each
MAPPING: tuple[MappingMode, ...] = ("ahead", "sync")  # those that map while they decode
MAX_SYNC_SHARE = 0.01  # of decode steps


Times = dict[tuple[str, str], list[DecodeStep]]  # by pass and mode


def decode_in_turn(driver: Driver, shape: str, num_rows: int, num_steps: int) -> Times:
    """Decode with a driver's new memory, all passes and modes; steps of the modes take turns."""
    longest = num_steps + 256
    loaded = driver.load(shape, None, 6 * num_rows, longest, 64 << 20)
    kv = loaded.kv
    num_frames = (num_rows + 1) * kv.num_pages(longest) * kv.frames_per_page
    driver.load(shape, kv.frame_bytes, 6 * num_rows, longest, len(MODES) * num_frames * kv.frame_bytes)
    prompts = [64 + index * kv.tokens_per_page // num_rows for index in range(num_rows)]
    times: Times = {}
    decoders: list[Decoder] = []
    for number, name in enumerate(PASSES):
        if number < 2:  # other asids than those that have the memory mapped
            decoders = [
                Decoder(
                    VMM(kv, num_frames, num_rows, longest, prefix_cache=False, mapping=mode),
                    (2 * index + number) * num_rows,
                    index * num_frames,
                )
                for index, mode in enumerate(MODES)
            ]
        for decoder in decoders:
            decoder.open(driver, prompts)
        for step in range(num_steps):
            for turn in range(len(MODES)):
                index = (step + turn) % len(MODES)
                times.setdefault((name, MODES[index]), []).append(decoders[index].step(driver))
        for decoder in decoders:
            decoder.close(driver)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report_modes(report: Report, shape: str, num_rows: int, runs: Sequence[Times]) -> None:
    """Rows on waiting, and on step times, of every pass.

    Percentiles are of all runs' steps together: of one run's 256 the P99 is the third longest, and that is
    other programs' work. Steps of the modes took turns, so that a busy moment falls on all of them.
    """
    for name in PASSES:
        case = f"{shape}, {num_rows} rows decode: {name}"
        steps = {mode: [step for times in runs for step in times[name, mode]] for mode in MODES}
        for mode in MAPPING:
            share = sum(step.waits for step in steps[mode]) / len(steps[mode])
            report.add(
                case, f"steps that wait for a map, {mode}", 100 * share, "%",
                against="limit 1 %", ratio=MAX_SYNC_SHARE / max(share, 1 / len(steps[mode])), runs=len(runs),
            )  # fmt: skip
        for mode in MAPPING:
            for share, metric in ((0.5, "P50"), (0.99, "P99")):
                mine = percentile([step.seconds for step in steps[mode]], share)
                other = percentile([step.seconds for step in steps["premapped"]], share)
                report.add(
                    case, f"{metric} of {len(steps[mode]):,} steps, {mode}", 1e3 * mine, "ms",
                    against="premapped", ratio=other / mine, runs=len(runs),
                )  # fmt: skip

        for mode in MAPPING:
            what = "a map ahead" if mode == "ahead" else "a wait for a map"
            # beside the premapped step of the same tokens, which ran just before it or after it
            pairs = [
                (step.seconds, other.seconds)
                for step, other in zip(steps[mode], steps["premapped"], strict=True)
                if (step.waits if mode == "sync" else step.maps_ahead)
            ]
            if pairs:
                report.add(
                    case, f"{what} adds, median of {len(pairs)} steps",
                    1e6 * statistics.median(mine - other for mine, other in pairs), "us",
                    against="premapped", ratio=statistics.median(other / mine for mine, other in pairs),
                    runs=len(runs),
                )  # fmt: skip


def report_frames(report: Report, driver: Driver, shape: str, num_rows: int, num_runs: int) -> None:
    """Rows on sizes of frames: step time in turns of whole loads, and memory that processes do not use."""
    num_steps, longest = 48, 512
    medians: dict[int, list[float]] = {kib: [] for kib in FRAME_KIB}
    waste: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for _ in range(num_runs):
        for kib in FRAME_KIB:
            loaded = driver.load(shape, kib << 10, num_rows, longest, num_rows << 24)
            kv = loaded.kv
            decoder = Decoder(VMM(kv, loaded.num_frames, num_rows, longest, prefix_cache=False), 0, 0)
            lengths = [150 + 7 * index % 200 for index in range(num_rows)]
            decoder.open(driver, lengths)
            medians[kib].append(statistics.median(decoder.step(driver).seconds for _ in range(num_steps)))
            page_bytes = kv.page_bytes
            token_bytes = sum(segment.bytes_per_token for segment in kv.segments)
            held = sum(space.num_pages for space in decoder.spaces) * page_bytes
            waste[kib] = (held - sum(decoder.lengths) * token_bytes) / num_rows
            tokens[kib] = kv.tokens_per_page
            decoder.close(driver)
    chosen = driver.load(shape, None, num_rows, longest, num_rows << 24).kv.frame_bytes >> 10
    for kib in FRAME_KIB:
        case = f"{shape}, {num_rows} rows decode: frames of {kib} KiB, {tokens[kib]} tokens"
        ratio = statistics.median(
            mine / other for mine, other in zip(medians[chosen], medians[kib], strict=True)
        )
        report.add(
            case, "median step", 1e3 * statistics.median(medians[kib]), "ms",
            against=f"{chosen} KiB, the default", ratio=ratio, runs=num_runs,
        )  # fmt: skip
        report.add(
            case, "memory without tokens, per process", waste[kib] / 1024, "KiB",
            against=f"{chosen} KiB, the default", ratio=waste[chosen] / waste[kib], runs=num_runs,
        )  # fmt: skip


def report_calls(report: Report, farewell: Farewell) -> None:
    """Rows on maps ahead of need that came late, and on system calls."""
    late = farewell.num_waits / max(1, farewell.num_ahead)
    report.add(
        f"{farewell.num_ahead:,} pages mapped ahead, in all of these",
        "not done when needed", 100 * late, "%",
        against="limit 1 %", ratio=MAX_SYNC_SHARE / max(late, 1 / max(1, farewell.num_ahead)), runs=1,
    )  # fmt: skip
    for times in farewell.calls:
        case = f"one frame of {times.frame_bytes >> 10} KiB that has memory"
        for metric, seconds in (
            ("map, median", times.map_call),
            ("map, P99", times.map_call_p99),
            ("first touch of all of it", times.first_touch),
            ("map and populate, in the background", times.map_and_populate),
        ):
            report.add(
                case, metric, 1e6 * seconds, "us",
                against="map and touch", ratio=(times.map_call + times.first_touch) / seconds, runs=1,
            )  # fmt: skip


def choose_shapes(listed: str) -> list[str]:
    """The models that a list names. Raises ConfigError."""
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in SHAPES:
            raise ConfigError(f"shape {name!r} is not one of {', '.join(SHAPES)}")
    return names


def main(
    *, shapes: Sequence[str], threads: int | None, num_runs: int, is_quick: bool, json_path: str | None
) -> int:
    """Measure, print the table, write the rows."""
    report = Report("map")
    cases = (("tiny", 4, 160),) if is_quick else tuple(SHAPES[shape] for shape in shapes)
    sizes = [kib << 10 for kib in FRAME_KIB]
    with running_driver(threads or num_cores(), sizes) as driver:
        for shape, num_rows, num_steps in cases:
            runs = [
                decode_in_turn(driver, shape, num_rows, num_steps)
                for _ in track(range(num_runs), description=f"bench map {shape}", transient=True)
            ]
            report_modes(report, shape, num_rows, runs)
        shape, num_rows, _ = cases[0]
        report_reuse(report, driver, shape, num_rows, num_runs)
        report_frames(report, driver, shape, num_rows, num_runs)
    assert driver.farewell is not None
    report_calls(report, driver.farewell)
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
