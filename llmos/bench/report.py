"""One shape for every benchmark: rows, a table on the terminal, one JSON object per row in a file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class BenchRow(msgspec.Struct, frozen=True):
    """One measured number beside what it is held against. What was not measured has no row."""

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    against: str  # the baseline, or the limit
    ratio: float  # times better than `against` (above 1 is better), or the fraction of a limit
    runs: int
    machine: str
    commit: str


def describe_machine() -> str:
    """Cores, processor and what vectors it has."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = named.get("flags", "").split()
    vectors = "AVX-512 VNNI" if "avx512_vnni" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    return f"{len(os.sched_getaffinity(0))} cores {named.get('model name', 'CPU')}, {vectors}"


def current_commit() -> str:
    """Short hash of the checkout, "+" when it has changes; empty outside one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else ""

    commit = git("rev-parse", "--short", "HEAD")
    return commit + "+" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


class Report:
    """Gathers rows of one benchmark."""

    def __init__(self, bench: str) -> None:
        self._bench = bench
        self._machine = describe_machine()
        self._commit = current_commit()
        self.rows: list[BenchRow] = []
        self._json_path: str | None = None
        self._is_begun = False  # the file

    def name_device(self, device: str) -> None:
        """Say what the rows that follow are of, beside the processor."""
        self._machine = f"{device}, {describe_machine()}"

    def add(
        self, case: str, metric: str, value: float, unit: str, *, against: str, ratio: float, runs: int
    ) -> None:
        """Add one measured number."""
        row = BenchRow(
            self._bench, case, metric, value, unit, against, ratio, runs, self._machine, self._commit
        )
        self.rows.append(row)
        if self._json_path is not None:
            with open(self._json_path, "ab" if self._is_begun else "wb") as file:
                file.write(msgspec.json.encode(row) + b"\n")
            self._is_begun = True

    def open_json(self, path: str) -> None:
        """Begin a file anew with the first row; each is in it as soon as it is added.

        Until then the file is as it was: whoever cannot measure loses no rows of before.

        Raises:
            OSError: there can be no such file.
        """
        if not os.access(Path(path).parent, os.W_OK) or Path(path).is_dir():
            raise PermissionError(f"no rows can be written to {path}: its folder must be there, and writable")
        self._json_path = path

    def print_table(self) -> None:
        """Show the rows on standard output."""
        table = Table(title=f"llmos bench {self._bench} · {self._machine} · {self._commit}")
        for heading in ("case", "metric", "value", "unit", "against", "ratio", "runs"):
            table.add_column(heading, justify="right" if heading in ("value", "ratio", "runs") else "left")
        for row in self.rows:
            table.add_row(
                row.case,
                row.metric,
                f"{row.value:,.4g}",
                row.unit,
                row.against,
                f"{row.ratio:.2f}",
                str(row.runs),
            )
        console = Console()
        if not console.is_terminal:
            console = Console(width=160)  # a file or a pipe: nobody scrolls, nothing is to be cut
        console.print(table)

    def write_json(self, path: str) -> None:
        """Write one JSON object per line."""
        Path(path).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in self.rows))


def read_rows(paths: Sequence[Path]) -> list[BenchRow]:
    """Read rows back, in the order of the files."""
    decoder = msgspec.json.Decoder(BenchRow)
    return [decoder.decode(line) for path in paths for line in path.read_bytes().splitlines()]
