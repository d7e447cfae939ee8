"""`llmos bench cpu`: one tiny case of each kind, through the child that measures."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from run_bench import run_bench

from drivers.bench import rows as theirs
from drivers.bench.sections import SECTIONS
from llmos.bench import child
from llmos.bench import cpu as ours
from llmos.bench.report import read_rows
from llmos.bench.sections import choose_sections
from llmos.config import ConfigError


def test_every_section_measures(tmp_path: Path) -> None:
    """A quick run has rows of every section, for one thread and for two, and all are above zero."""
    file = tmp_path / "rows.jsonl"
    result = run_bench("cpu", "--quick", "--runs", "1", "--threads", "2", "--json", str(file))
    assert result.returncode == 0, result.stderr
    rows = read_rows([file])
    assert {row.case.split(":")[0] for row in rows} == set(ours.SECTIONS)
    assert all(row.bench == "cpu" and row.runs == 1 and row.value > 0 and row.ratio > 0 for row in rows)
    assert {row.case.rsplit(", ", 1)[1] for row in rows} == {"threads 1", "threads 2"}
    assert "bench cpu" in result.stdout


def test_sections_are_chosen_by_name(tmp_path: Path) -> None:
    """Only the sections asked for are measured."""
    file = tmp_path / "rows.jsonl"
    result = run_bench(
        "cpu", "--quick", "--runs", "2", "--threads", "1", "--only", "peaks", "--json", str(file)
    )
    assert result.returncode == 0, result.stderr
    assert {row.case.split(":")[0] for row in read_rows([file])} == {"peaks"}
    assert choose_sections("decode, gemm", ours.SECTIONS) == ["gemm", "decode"]
    assert choose_sections(None, ours.SECTIONS) == list(ours.SECTIONS)


def test_both_sides_know_the_same_lines() -> None:
    """The child's sections and messages are those that the parent reads."""
    assert tuple(SECTIONS) == ours.SECTIONS
    for name in ("Plan", "Started", "Measured"):
        fields = [
            [(field.name, field.type) for field in msgspec.structs.fields(getattr(side, name))]
            for side in (child, theirs)
        ]
        assert fields[0] == fields[1], name


def test_nonsense_is_refused() -> None:
    """A section that is not there, no run and no thread are named, before anything is measured."""
    for arguments in (("--only", "gemm,fft"), ("--runs", "0"), ("--threads", "0")):
        result = run_bench("cpu", *arguments)
        assert result.returncode == 2, result.stdout
        assert "Traceback" not in result.stderr
    with pytest.raises(ConfigError, match="'fft'"):
        choose_sections("gemm,fft", ours.SECTIONS)


def test_a_child_that_fails_is_an_error() -> None:
    """Measurements that end early are no result."""
    with child.measuring("drivers.bench.cpu", "--no-such-option") as messages:
        with pytest.raises(child.MeasurementFailed, match="2"):
            list(messages)
