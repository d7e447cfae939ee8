"""Rows of `llmos bench switch`, from runs of all variants over the same conversations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from llmos.bench.report import Report
from llmos.bench.switch_run import SwitchRun
from llmos.bench.switch_variants import BLOCKS, RECOMPUTE
from llmos.errors import LlmosError

Metric = Callable[[SwitchRun], float]


class NothingMeasured(LlmosError):
    """Runs that say nothing: nobody was preempted, or answers depend on how memory was taken."""


def _ttft(percent: float) -> Metric:
    return lambda run: run.latencies.ttft[percent]


def _tbt(percent: float) -> Metric:
    return lambda run: run.latencies.tbt[percent]


METRICS: dict[str, tuple[str, Metric, bool]] = {  # name: unit, from a run, whether more is better
    "P50 TTFT": ("s", _ttft(50.0), False),
    "P95 TTFT": ("s", _ttft(95.0), False),
    "P99 TTFT": ("s", _ttft(99.0), False),
    "P99 TBT": ("s", _tbt(99.0), False),
    "P99.9 TBT": ("s", _tbt(99.9), False),
    "throughput": ("tokens/s", lambda run: run.latencies.throughput, True),
    "bytes out": ("GB", lambda run: run.num_bytes_out / 1e9, False),
    "bytes in": ("GB", lambda run: run.num_bytes_in / 1e9, False),
    "computed prompt tokens": ("tokens", lambda run: run.num_prompt_tokens, False),
}


def check_runs(runs: Mapping[str, Sequence[SwitchRun]], load: str, is_light: bool = False) -> None:
    """Refuse runs that cannot be compared.

    Args:
        runs: by variant; those at one place of all lists held the same conversations.
        load: for the message.
        is_light: it is known that nobody need be preempted.

    Raises:
        NothingMeasured: see there.
    """
    for same in zip(*runs.values(), strict=True):
        first = same[0].digests
        for name, run in zip(runs, same, strict=True):
            both = first.keys() & run.digests.keys()  # not all come to their end in a run that is stopped
            wrong = sorted(number for number in both if run.digests[number] != first[number])
            if wrong:
                raise NothingMeasured(
                    f"{load}: under {name!r} conversations {wrong[:5]} got other answers than under "
                    f"{next(iter(runs))!r}"
                )
    if not is_light and not all(run.num_preemptions for run in runs.get(BLOCKS, ())):
        raise NothingMeasured(f"{load}: nobody was preempted; the load is too light, or the pool too large")


def add_rows(report: Report, load: str, runs: Mapping[str, Sequence[SwitchRun]]) -> None:
    """One row for each variant and metric, against the synchronous block swap.

    Values are medians over the runs, ratios medians over the ratios of runs with the same conversations. What
    was neither copied nor computed by anybody has no row, and a ratio to nothing is not made.
    """
    for name, own in runs.items():
        for metric, (unit, measure, more_is_better) in METRICS.items():
            values = [measure(run) for run in own]
            if not any(values):
                continue
            theirs = [measure(run) for run in runs[BLOCKS]]
            ratios = [
                value / other if more_is_better else other / value
                for value, other in zip(values, theirs, strict=True)
                if value and other
            ]
            if ratios:
                report.add(
                    f"{load}: {name}", metric, statistics.median(values), unit,
                    against=BLOCKS, ratio=statistics.median(ratios), runs=len(own),
                )  # fmt: skip


def add_recompute_rows(report: Report, load: str, name: str, runs: Mapping[str, Sequence[SwitchRun]]) -> None:
    """How a variant does against recomputing, where it matters to people: latency and throughput."""
    for metric in ("P99 TTFT", "P99.9 TBT", "throughput"):
        unit, measure, more_is_better = METRICS[metric]
        pairs = [(measure(a), measure(b)) for a, b in zip(runs[name], runs[RECOMPUTE], strict=True)]
        ratios = [a / b if more_is_better else b / a for a, b in pairs]
        report.add(
            f"{load}: {name}", metric, statistics.median(a for a, _ in pairs), unit,
            against=RECOMPUTE, ratio=statistics.median(ratios), runs=len(pairs),
        )  # fmt: skip
