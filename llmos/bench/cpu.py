"""`llmos bench cpu`: the kernels of device cpu against the peaks of the machine, and whole models on them.

What measures needs torch and the drivers, so it is a child process, as a driver is; see drivers/bench/rows.py
for the lines that it writes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmos.bench.report import Report
from llmos.config import ConfigError, num_cores
from llmos.errors import LlmosError
from llmos.kernel.driver_link import DRIVER_ENVIRONMENT

SECTIONS = ("peaks", "gemm", "attention", "step", "sampling", "decode")


class MeasurementFailed(LlmosError):
    """The process that measures ended early; what it wrote to standard error says why."""


class Plan(msgspec.Struct, frozen=True, tag="plan", forbid_unknown_fields=True):
    """How many cases follow."""

    num_cases: int


class Started(msgspec.Struct, frozen=True, tag="started", forbid_unknown_fields=True):
    """A case begins."""

    case: str


class Measured(msgspec.Struct, frozen=True, tag="measured", forbid_unknown_fields=True):
    """A number of the case that began last; the fields are those of BenchRow."""

    case: str
    metric: str
    value: float
    unit: str
    against: str
    ratio: float
    runs: int


Message = Plan | Started | Measured


def choose_sections(listed: str | None) -> list[str]:
    """The sections that a list names, in their own order; None: all. Raises ConfigError."""
    names = SECTIONS if listed is None else [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise ConfigError(f"section {name!r} is not one of {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


@contextmanager
def measuring(*options: str) -> Iterator[Iterator[Message]]:
    """Run the measurements in a child, and yield its messages as they come. Blocks.

    Raises:
        MeasurementFailed: it ended early.
    """
    decoder = msgspec.json.Decoder(Message)
    process = subprocess.Popen(
        [sys.executable, "-m", "drivers.bench.cpu", *options],
        stdout=subprocess.PIPE, env=os.environ | DRIVER_ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout is not None

    def messages(lines: Iterator[bytes]) -> Iterator[Message]:
        yield from map(decoder.decode, lines)
        if code := process.wait():
            raise MeasurementFailed(f"drivers.bench.cpu ended with {code}")

    try:
        yield messages(iter(process.stdout))
    finally:
        process.kill()  # of no effect where it has ended
        process.wait()
        process.stdout.close()


def main(
    *, only: str | None, threads: int | None, num_runs: int, is_quick: bool, json_path: str | None
) -> int:
    """Measure, print the table, write the rows."""
    sections = choose_sections(only)
    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}; at least 1")
    options = ["--threads", str(threads or num_cores()), "--runs", str(num_runs), "--sections", *sections]
    report = Report("cpu")
    columns = (
        TextColumn("bench cpu"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    console = Console(stderr=True)
    with (
        Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar,
        measuring(*options, *(["--quick"] if is_quick else [])) as messages,
    ):
        task = bar.add_task("", total=None)
        num_started = 0
        for message in messages:
            match message:
                case Plan(num_cases):
                    bar.update(task, total=num_cases)
                case Started(case):
                    bar.update(task, completed=num_started, description=case)
                    num_started += 1
                case Measured():
                    report.add(**msgspec.structs.asdict(message))
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
