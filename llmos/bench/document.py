"""Makes docs/benchmarks.md from the rows under docs/benchmarks/: `python -m llmos.bench.document`."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

from llmos.bench.report import read_rows
from llmos.bench.summary import summarise

PREAMBLE = """# Benchmarks

Generated from the rows in `docs/benchmarks/`, which `llmos bench NAME --json FILE` writes; do not edit.
*ratio* says how many times better than *against* a value is (above 1 is better, whatever the metric), how
many times within a budget, or, where *against* is a peak of the machine, which fraction of it is reached.
Baselines and peaks are measured in turn with the value. Medians over *runs*; a row that was not measured is
absent. Where a whole benchmark was not, `unmeasured-NAME.md` says what it would have.
"""


def document(folder: Path) -> str:
    """The page as Markdown."""
    parts = [PREAMBLE]
    rows = read_rows(sorted(folder.glob("*.jsonl")))
    parts += summarise(rows)
    for (bench, machine, commit), group in groupby(
        rows, key=lambda row: (row.bench, row.machine, row.commit)
    ):
        parts.append(f"\n## {bench}\n\n{machine}; commit {commit}\n")
        for section, members in groupby(group, key=lambda row: row.case.rpartition(": ")[0]):
            parts += [f"### {section}\n"] if section else []
            parts.append(
                "| case | metric | value | against | ratio | runs |\n| --- | --- | ---: | --- | ---: | ---: |"
            )
            for row in members:
                case, value = row.case.rpartition(": ")[2], f"{row.value:,.4g} {row.unit}"
                parts.append(
                    f"| {case} | {row.metric} | {value} | {row.against} | {row.ratio:.2f} | {row.runs} |"
                )
            parts.append("")
    for file in sorted(folder.glob("unmeasured-*.md")):
        if file.stem.removeprefix("unmeasured-") not in {row.bench for row in rows}:
            parts.append("\n" + file.read_text())
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(document(Path("docs/benchmarks")))
