"""`llmos bench gpu`: checks, kernels, steps, memory and serving on a GPU; or a rehearsal without one."""

from __future__ import annotations

from llmos.bench.child import run_measurements
from llmos.bench.sections import choose_sections
from llmos.config import ConfigError

SECTIONS = ("checks", "peaks", "kernels", "step", "prefill", "paging", "swap", "serving")
REHEARSAL = "a rehearsal, on the processor: none of these numbers measures anything"


def main(*, only: str | None, is_rehearsal: bool, json_path: str | None) -> int:
    """Measure, write the rows, print the table. Raises ConfigError, MeasurementFailed."""
    options = ["--sections", *choose_sections(only, SECTIONS)]
    if not is_rehearsal:
        return run_measurements("gpu", "drivers.bench.gpu", options, json_path)
    if json_path:
        raise ConfigError("--rehearse measures nothing, so there is nothing to write: leave out --json")
    print(REHEARSAL)
    code = run_measurements("gpu", "drivers.bench.gpu", [*options, "--rehearse"], None)
    print(REHEARSAL)
    return code
