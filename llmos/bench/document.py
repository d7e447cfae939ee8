"""Makes docs/benchmarks.md from the rows under docs/benchmarks/: `python -m llmos.bench.document`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from llmos.bench.report import read_rows

PREAMBLE = """# Benchmarks

Generated from the rows in `docs/benchmarks/`, which `llmos bench NAME --json FILE` writes; do not edit.
*ratio* says how many times better than *against* a value is (above 1 is better, whatever the metric), or how
many times within a budget. Medians over *runs*; a row that was not measured is absent.
"""


def document(folder: Path) -> str:
    """The page as Markdown."""
    parts = [PREAMBLE]
    rows = read_rows(sorted(folder.glob("*.jsonl")))
    for (bench, machine, commit), group in groupby(
        rows, key=lambda row: (row.bench, row.machine, row.commit)
    ):
        parts.append(f"\n## {bench}\n\n{machine}; commit {commit}\n")
        parts.append(
            "| case | metric | value | against | ratio | runs |\n| --- | --- | ---: | --- | ---: | ---: |"
        )
        parts += [
            f"| {r.case} | {r.metric} | {r.value:,.4g} {r.unit} | {r.against} | {r.ratio:.2f} | {r.runs} |"
            for r in group
        ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document(Path("docs/benchmarks")))
