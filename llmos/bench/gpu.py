"""`llmos bench gpu`: checks, kernels, steps, memory and serving on a GPU; or a rehearsal without one."""

from __future__ import annotations

from collections.abc import Sequence

from llmos.bench import gpu_serve
from llmos.bench.child import MeasurementFailed, gather
from llmos.bench.report import Report
from llmos.bench.sections import choose_sections
from llmos.bench.server import ServerDidNotStart
from llmos.config import ConfigError

SECTIONS = ("checks", "peaks", "kernels", "step", "prefill", "paging", "swap", "serving")
MODULE = "drivers.bench.gpu"
REHEARSAL = "a rehearsal, on the processor: none of these numbers measures anything"


def main(*, only: str | None, is_rehearsal: bool, json_path: str | None) -> int:
    """Measure, write the rows, print the table.

    Raises:
        ConfigError: there is no such section, or a file was asked for of a rehearsal.
        MeasurementFailed: a part ended early; the table has what came before, and nothing is written.
        ServerDidNotStart: likewise.
    """
    sections = choose_sections(only, SECTIONS)
    if is_rehearsal and json_path:
        raise ConfigError("--rehearse measures nothing, so there is nothing to write: leave out --json")
    report = Report("gpu")
    if is_rehearsal:
        print(REHEARSAL)
    try:
        _measure(report, sections, is_rehearsal)
    except (MeasurementFailed, ServerDidNotStart):
        if report.rows:
            report.print_table()
        raise
    report.print_table()
    if is_rehearsal:
        print(REHEARSAL)
    if json_path:
        report.write_json(json_path)
    return 0


def _measure(report: Report, sections: Sequence[str], is_rehearsal: bool) -> None:
    """Add rows of sections. What is served is measured from here: it takes a kernel, which has no torch."""
    flags = ["--rehearse"] if is_rehearsal else []
    if inside := [section for section in sections if section != "serving"]:
        gather(report, "gpu", MODULE, ["--sections", *inside, *flags])
    if "serving" in sections:
        served = gpu_serve.REHEARSAL if is_rehearsal else gpu_serve.FULL
        options = gpu_serve.REHEARSAL_OPTIONS if is_rehearsal else gpu_serve.FULL_OPTIONS
        rate = gpu_serve.measure_rate(served, *options)
        numbers = (served.num_prompts, served.prompt_tokens, served.output_tokens, rate)
        gather(report, "gpu", MODULE, ["--sections", "serving", "--served", *map(str, numbers), *flags])
