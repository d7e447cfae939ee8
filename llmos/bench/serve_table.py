"""What a load has come to, as a person reads it: times by percentile, then what was done in the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from llmos.bench.report import BenchRow

PLACES = ("mean", "P50", "P95", "P99")
TIMES = ("TTFT", "TPOT", "TBT", "end to end")


def print_table(rows: Iterable[BenchRow], title: str) -> None:
    """Show the rows of one load on standard output: what was not measured is left out."""
    by_metric = {row.metric: row for row in rows}
    table = Table()
    table.add_column("ms")
    for place in PLACES:
        table.add_column(place, justify="right")
    for time in TIMES:
        cells = [by_metric.pop(f"{place} {time}", None) for place in PLACES]
        if all(cell is None for cell in cells):
            continue
        table.add_row(time, *("" if cell is None else f"{cell.value:,.4g}" for cell in cells))
    console = Console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    if table.row_count:
        console.print(table)
    for line in _lines(by_metric.values()):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(rows: Iterable[BenchRow]) -> Iterator[str]:
    for row in rows:
        share = f", {row.ratio:.0%} of those that arrived" if row.against == "arrived" else ""
        yield f"{row.metric}: {row.value:,.4g} {row.unit}{share}"
