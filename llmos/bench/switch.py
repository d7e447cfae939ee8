"""`llmos bench switch`: what it costs to take a process's memory and to give it back, in several ways.

Conversations of several turns share a device whose memory holds about a third of them, and a policy draws
everybody's priority anew every few steps, so that processes lose their memory all the time. The same
conversations are held with every way to take it, and their tokens must not differ.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from llmos.bench.conversations import TraceRow, make_conversations, read_trace
from llmos.bench.crossover import measure_crossover
from llmos.bench.kept_runs import KeptRuns
from llmos.bench.report import Report
from llmos.bench.switch_loads import LOADS, Load
from llmos.bench.switch_real import describe
from llmos.bench.switch_report import add_recompute_rows, add_rows, check_runs
from llmos.bench.switch_rounds import NUM_RUNS_BEFORE, RealBench
from llmos.bench.switch_run import SwitchRun
from llmos.bench.switch_sim import A10, simulate
from llmos.bench.switch_variants import AUTO, NUM_VARIANTS, RECOMPUTE, make_variants
from llmos.config import ConfigError, num_cores
from llmos.device import Tier
from llmos.log import configure_logging

CROSSOVER_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # tokens
CROSSOVER_SHARE = 3 / 4  # of the longest context, at most: turns follow


class Job(NamedTuple):
    """One run on the simulated device."""

    load: Load
    variant: str
    seed: int
    num_conversations: int

    @property
    def case(self) -> str:
        """What its rows are called."""
        return f"{A10.name}, simulated, {self.load.name}, {self.num_conversations} conversations"


def run_job(job: Job, rows: Sequence[TraceRow]) -> SwitchRun:
    """Do one run; what comes of it depends on the arguments alone."""
    configure_logging("warning", "console")
    load = job.load
    conversations = make_conversations(
        rows, job.num_conversations, load.per_second, load.pause_seconds, A10.context, job.seed
    )
    variant = make_variants(A10.block_bytes, load.rerank_steps, job.seed)[job.variant]
    return simulate(A10, conversations, variant.options, load.most_seconds * job.num_conversations)


def choose_loads(listed: str | None) -> list[Load]:
    """The loads that a list names; None: all. Raises ConfigError."""
    if listed is None:
        return list(LOADS)
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in {load.name for load in LOADS}:
            raise ConfigError(f"load {name!r} is not one of {', '.join(load.name for load in LOADS)}")
    return [load for load in LOADS if load.name in names]


def choose_contexts(listed: str | None, longest: int) -> list[int]:
    """The contexts that a list names, in tokens; None: those of CROSSOVER_LENGTHS that fit.

    Raises:
        ConfigError: one is no number, or is not below CROSSOVER_SHARE of the longest context.
    """
    most = int(longest * CROSSOVER_SHARE)
    if listed is None:
        return [length for length in CROSSOVER_LENGTHS if length < most]
    lengths = [int(text) if text.strip().isdecimal() else 0 for text in listed.split(",")]
    for text, length in zip(listed.split(","), lengths, strict=True):
        if not 0 < length < most:
            raise ConfigError(f"context {text.strip()!r} is not a number from 1 to {most - 1}")
    return lengths


def measure_simulated(
    rows: Sequence[TraceRow], loads: Sequence[Load], num_conversations: int, num_seeds: int, kept: KeptRuns
) -> Report:
    """All runs on the simulated device that are not kept, as many at once as there are processors.

    Raises:
        NothingMeasured: see `check_runs`.
    """
    jobs = [
        Job(load, variant, seed, num_conversations)
        for load in loads
        for seed in range(1, num_seeds + 1)
        for variant in load.variants
    ]
    found = {job: run for job in jobs if (run := kept.run(job.case, job.variant, job.seed)) is not None}
    console = Console(stderr=True)
    spawning = multiprocessing.get_context("spawn")
    with (
        Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar,
        ProcessPoolExecutor(num_cores(), spawning) as pool,
    ):
        task = bar.add_task("bench switch", total=len(jobs), completed=len(found))
        futures = {pool.submit(run_job, job, rows): job for job in jobs if job not in found}
        for future in as_completed(futures):
            job = futures[future]
            found[job] = future.result()
            kept.keep_run(job.case, job.variant, job.seed, found[job])
            bar.advance(task)
    report = Report("switch")
    for load in loads:
        runs = {
            variant: [found[Job(load, variant, seed, num_conversations)] for seed in range(1, num_seeds + 1)]
            for variant in load.variants
        }
        case = Job(load, "", 0, num_conversations).case
        check_runs(runs, case, is_light=load.name == "light")
        add_rows(report, case, runs)
        if RECOMPUTE in runs:
            add_recompute_rows(report, case, AUTO, runs)
    return report


def measure_real(
    rows: Sequence[TraceRow],
    options: dict[str, Any],
    seconds: float,
    num_rounds: int,
    kept: KeptRuns,
    contexts: str | None = None,
    tier: Tier = "host",
) -> Iterator[Report]:
    """All runs on a device of this machine that are not kept, one after the other.

    With `contexts` they are switches at those, and no conversations. Memory goes to `tier` in all of them.

    Yields:
        What is known so far: switches by context, the knee, and all variants after each round.

    Raises:
        ConfigError: see `choose_contexts`.
        NothingMeasured: see `check_runs` and `measure_crossover`.
    """
    machine = describe(options, tier)
    lengths = choose_contexts(contexts, machine.context)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        total = len(lengths)
        total += 0 if contexts else NUM_RUNS_BEFORE + num_rounds * NUM_VARIANTS
        task = bar.add_task("bench switch", total=total)

        def advance() -> None:
            bar.advance(task)

        crossover = Report("switch")
        measure_crossover(machine, crossover, lengths, kept, advance)
        yield crossover
        if contexts:
            return
        for report in RealBench(machine, rows, seconds, kept, advance).measure(num_rounds):
            so_far = Report("switch")
            so_far.rows += crossover.rows + report.rows
            yield so_far


@contextmanager
def random_model(shape: str) -> Iterator[str]:
    """A folder with a model of this shape and random weights, while it is needed. Blocks.

    Raises:
        ConfigError: there is no such shape; what is written to standard error names those that are.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        path = str(Path(folder) / f"random-{shape}")
        command = [sys.executable, "-m", "drivers.bench.random_checkpoint", shape, path]
        if subprocess.run(command, check=False).returncode:
            raise ConfigError(f"no model of shape {shape!r} could be made")
        yield path


def main(
    *, model: str | None, shape: str | None, device: str, threads: int | None, trace: str, loads: str | None,
    num_conversations: int, seconds: float, contexts: str | None, tier: Tier, num_runs: int,
    json_path: str | None, keep_path: str | None,
) -> int:  # fmt: skip
    """Measure, print the table, and write the rows, on a real device after each round."""
    configure_logging("warning", "console")
    rows, kept = read_trace(trace), KeptRuns(keep_path)
    if device == "sim":
        report = measure_simulated(rows, choose_loads(loads), num_conversations, num_runs, kept)
        if json_path:
            report.write_json(json_path)
    else:
        options: dict[str, Any] = {"device": device, "threads": threads}
        with random_model(shape) if shape else nullcontext(model) as path:
            options |= {"model": path} if path else {}
            for report in measure_real(rows, options, seconds, num_runs, kept, contexts, tier):
                if json_path:
                    report.write_json(json_path)
    report.print_table()
    return 0
