"""Benchmarks that need the drivers run in a child process, as a driver does: the kernel never loads torch.

See drivers/bench/rows.py for the lines that the child writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmos.bench.report import Report
from llmos.errors import LlmosError
from llmos.kernel.driver_link import DRIVER_ENVIRONMENT


class MeasurementFailed(LlmosError):
    """Whoever measures ended early, or was refused; what was written to standard error says why."""


class Plan(msgspec.Struct, frozen=True, tag="plan", forbid_unknown_fields=True):
    """How many cases follow, and on what."""

    num_cases: int
    device: str = ""  # "": the processor


class Started(msgspec.Struct, frozen=True, tag="started", forbid_unknown_fields=True):
    """A case begins."""

    case: str
    seconds: float = 0.0  # that it may take; 0: any


class Dropped(msgspec.Struct, frozen=True, tag="dropped", forbid_unknown_fields=True):
    """A case, or what is left of it, is not measured."""

    case: str
    reason: str
    is_failure: bool = False  # False: there was no time, or it does not fit


class Measured(msgspec.Struct, frozen=True, tag="measured", forbid_unknown_fields=True):
    """A number of the case that began last; the fields are those of BenchRow."""

    case: str
    metric: str
    value: float
    unit: str
    against: str
    ratio: float
    runs: int


Message = Plan | Started | Dropped | Measured


@contextmanager
def measuring(module: str, *options: str) -> Iterator[Iterator[Message]]:
    """Run a module that measures in a child, and yield its messages as they come. Blocks.

    Raises:
        MeasurementFailed: it ended early.
    """
    decoder = msgspec.json.Decoder(Message)
    process = subprocess.Popen(
        [sys.executable, "-m", module, *options],
        stdout=subprocess.PIPE, env=os.environ | DRIVER_ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None

    def messages(lines: Iterator[bytes]) -> Iterator[Message]:
        yield from map(decoder.decode, lines)
        if code := process.wait():
            raise MeasurementFailed(f"{module} ended with {code}")

    try:
        yield messages(iter(process.stdout))
    finally:
        process.kill()  # of no effect where it has ended
        process.wait()
        process.stdout.close()


def run_measurements(bench: str, module: str, options: Sequence[str], json_path: str | None) -> int:
    """Measure, print the table, write the rows.

    Raises:
        MeasurementFailed: the child ended early; the table has what came before, and nothing is written.
    """
    report = Report(bench)
    try:
        _gather(report, bench, module, options)
    except MeasurementFailed:
        if report.rows:
            report.print_table()
        raise
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0


def _gather(report: Report, bench: str, module: str, options: Sequence[str]) -> None:
    """Add what a child measures. Raises MeasurementFailed."""
    columns = (
        TextColumn(f"bench {bench}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with (
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar,
        measuring(module, *options) as messages,
    ):
        task = bar.add_task("", total=None)
        num_started = 0
        for message in messages:
            match message:
                case Plan(num_cases, device):
                    bar.update(task, total=num_cases)
                    if device:
                        report.name_device(device)
                case Started(case):
                    bar.update(task, completed=num_started, description=case)
                    num_started += 1
                case Measured():
                    report.add(**msgspec.structs.asdict(message))
