"""`llmos bench gpu`: checks, kernels, steps, memory and serving on a GPU; or a rehearsal without one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import trio

from llmos.bench import gpu_serve
from llmos.bench.child import Dropped, Measured, MeasurementFailed, Plan
from llmos.bench.gpu_child import GpuChild
from llmos.bench.report import Report
from llmos.bench.sections import choose_sections
from llmos.config import ConfigError
from llmos.errors import LlmosError
from syscalls.errno import SyscallError

SECTIONS = ("checks", "peaks", "kernels", "step", "formats", "prefill", "paging", "swap", "serving")
TOTAL_SECONDS = 470.0  # 8 minutes, and a little to spare
SERVED_SECONDS = 80.0  # of those for llmos: a checkpoint, a boot, turns; and what sections before left
BASELINE_SECONDS = 65.0  # for transformers
STOP_SECONDS = 20.0  # for a server to end
REHEARSAL_SECONDS = 7200.0
REHEARSAL = "a rehearsal, on the processor: none of these numbers measures anything"


def main(*, only: str | None, is_rehearsal: bool, json_path: str | None, seconds: float | None = None) -> int:
    """Measure, write each row as it is known, print the table last.

    Args:
        only: sections, with commas; None: all.
        is_rehearsal: tiny, on the processor, however long it takes.
        json_path: of a file for rows; None: none.
        seconds: for all of it; None: TOTAL_SECONDS.

    Raises:
        ConfigError: a wrong option.
        MeasurementFailed: there is no such device, or a section failed; the others are in file and table.
    """
    sections = choose_sections(only, SECTIONS)
    if is_rehearsal and json_path:
        raise ConfigError("--rehearse measures nothing, so there is nothing to write: leave out --json")
    report = Report("gpu")
    if json_path:
        report.open_json(json_path)
    if is_rehearsal:
        print(REHEARSAL)
    if is_rehearsal:
        seconds = REHEARSAL_SECONDS
    failed = _measure(report, sections, is_rehearsal, TOTAL_SECONDS if seconds is None else seconds)
    report.print_table()
    if is_rehearsal:
        print(REHEARSAL)
    if failed:
        raise MeasurementFailed(f"not all of it was measured, or good: {'; '.join(failed)}")
    return 0


def _measure(report: Report, sections: Sequence[str], is_rehearsal: bool, seconds: float) -> list[str]:
    """Fill the report, section by section; a process that ends early is followed by one for what is left.

    Returns:
        What failed, and why.

    Raises:
        MeasurementFailed: nothing can be measured here.
    """
    failed: list[str] = []
    final = time.monotonic() + seconds
    is_serving = "serving" in sections
    kept = (SERVED_SECONDS + BASELINE_SECONDS + STOP_SECONDS) if is_serving else 0.0
    left = [section for section in sections if section != "serving"]
    is_first = True
    while left and (seconds_left := final - kept - time.monotonic()) > 0:
        child = GpuChild(left, is_rehearsal, seconds_left)
        _gather(report, child, failed, is_first)
        left = left[max(1, child.num_started) :]  # so this comes to an end
        is_first = False
    for case in left:
        _drop(failed, case, "no time was left")
    if is_serving:
        _measure_serving(report, failed, is_rehearsal, final, is_first)
    return failed


def _measure_serving(
    report: Report, failed: list[str], is_rehearsal: bool, final: float, is_first: bool
) -> None:
    """What llmos serves, from here, as it takes a kernel; then transformers, in a process. Until `final`."""
    served = gpu_serve.REHEARSAL if is_rehearsal else gpu_serve.FULL
    options = gpu_serve.REHEARSAL_OPTIONS if is_rehearsal else gpu_serve.FULL_OPTIONS
    seconds = final - BASELINE_SECONDS - STOP_SECONDS - time.monotonic()
    try:
        result = gpu_serve.measure(served, *options, seconds=max(0.0, seconds))
    except trio.TooSlowError:
        _drop(failed, "serving", f"it was not done within {max(0.0, seconds):.0f} s")
        return
    except (LlmosError, SyscallError, OSError, ExceptionGroup) as error:
        _drop(failed, "serving", f"{type(error).__name__}: {error}")
        return
    numbers = (served.num_prompts, served.prompt_tokens, served.output_tokens, result.rate)
    child_options = ["--served", *map(str, numbers)]
    child = GpuChild(["serving"], is_rehearsal, max(0.0, final - time.monotonic()), child_options)
    _gather(report, child, failed, is_first)
    for count, busy in result.busy.items():
        what = f"{count} prompts of {served.prompt_tokens} tokens, {served.busy_tokens} out"
        report.add(
            f"serving: the device at steps, {what}", "busy", busy, "of the time", against="all of it",
            ratio=busy, runs=1,
        )  # fmt: skip


def _gather(report: Report, child: GpuChild, failed: list[str], is_first: bool) -> None:
    """Add what a process measures, and what fails in it. Raises MeasurementFailed: it cannot even begin."""
    for message in child.messages():
        match message:
            case Plan(device=device):
                report.name_device(device)
            case Measured():
                report.add(**msgspec.structs.asdict(message))
                if message.case.startswith("checks: ") and message.ratio < 1.0:
                    failed.append(f"{message.case}: {message.against}")
            case Dropped(case, reason, is_failure):
                _drop(failed if is_failure else [], case, reason)
    if not child.num_started:
        if is_first:
            raise MeasurementFailed(child.ending or "the process that measures did not begin")
        _drop(failed, child.sections[0], child.ending)


def _drop(failed: list[str], case: str, reason: str) -> None:
    """Tell of something that is not measured, and remember it."""
    failed.append(f"{case}: {reason}")
    print(f"not measured: {failed[-1]}", flush=True)
