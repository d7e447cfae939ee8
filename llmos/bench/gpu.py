"""`llmos bench gpu`: checks, kernels, steps, memory and serving on a GPU; or a rehearsal without one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

from llmos.bench import gpu_serve
from llmos.bench.child import Dropped, Measured, MeasurementFailed, Plan
from llmos.bench.gpu_child import REHEARSAL_SECONDS, TOTAL_SECONDS, GpuChild
from llmos.bench.report import Report
from llmos.bench.sections import choose_sections
from llmos.config import ConfigError
from llmos.errors import LlmosError
from syscalls.errno import SyscallError

SECTIONS = ("checks", "peaks", "kernels", "step", "formats", "prefill", "paging", "swap", "serving")
SERVING_SECONDS = 70.0  # of llmos, and of transformers, each
REHEARSAL = "a rehearsal, on the processor: none of these numbers measures anything"


def main(*, only: str | None, is_rehearsal: bool, json_path: str | None) -> int:
    """Measure, write each row as it is known, print the table last.

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
    failed = _measure(report, sections, is_rehearsal)
    report.print_table()
    if is_rehearsal:
        print(REHEARSAL)
    if failed:
        raise MeasurementFailed(f"not all of it was measured, or good: {'; '.join(failed)}")
    return 0


def _measure(report: Report, sections: Sequence[str], is_rehearsal: bool) -> list[str]:
    """Fill the report, section by section; a process that ends early is followed by one for what is left.

    Returns:
        What failed, and why.

    Raises:
        MeasurementFailed: nothing can be measured here.
    """
    failed: list[str] = []
    serving_seconds = REHEARSAL_SECONDS if is_rehearsal else SERVING_SECONDS
    left = [section for section in sections if section != "serving"]
    is_first = True
    seconds_left = REHEARSAL_SECONDS if is_rehearsal else TOTAL_SECONDS
    while left and seconds_left > 0:
        child = GpuChild(left, is_rehearsal, seconds_left)
        _gather(report, child, failed, is_first)
        seconds_left -= child.seconds
        left = left[max(1, child.num_started) :]  # so this comes to an end
        is_first = False
    for case in left:
        _drop(failed, case, "no time was left")
    if "serving" in sections:
        try:
            served = _serve(is_rehearsal, serving_seconds)
        except (LlmosError, SyscallError, OSError, trio.TooSlowError, ExceptionGroup) as error:
            _drop(failed, "serving", f"{type(error).__name__}: {error}")
        else:
            _gather(report, GpuChild(["serving"], is_rehearsal, serving_seconds, served), failed, is_first)
    return failed


def _serve(is_rehearsal: bool, seconds: float) -> list[str]:
    """What llmos serves, as an option of the module that measures; from here, as it takes a kernel."""
    served = gpu_serve.REHEARSAL if is_rehearsal else gpu_serve.FULL
    options = gpu_serve.REHEARSAL_OPTIONS if is_rehearsal else gpu_serve.FULL_OPTIONS
    rate = gpu_serve.measure_rate(served, *options, seconds=seconds)
    numbers = (served.num_prompts, served.prompt_tokens, served.output_tokens, rate)
    return ["--served", *map(str, numbers)]


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
