"""`llmos bench map`: a tiny model decodes under every way of mapping, through the child that runs it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from run_bench import run_bench

from drivers.bench import map as theirs
from llmos.bench import map as bench
from llmos.bench import map_driver as ours
from llmos.bench.report import read_rows


def test_no_step_waits_for_a_map_ahead_of_need(tmp_path: Path) -> None:
    """Without it some do, and in spaces that come back to their asids nobody does."""
    file = tmp_path / "rows.jsonl"
    result = run_bench("map", "--quick", "--runs", "1", "--threads", "1", "--json", str(file))
    assert result.returncode == 0, result.stderr
    rows = read_rows([file])
    assert all(row.bench == "map" and row.ratio > 0 for row in rows)
    waits = {
        (row.case.rpartition(": ")[2], row.metric.rpartition(", ")[2]): row.value
        for row in rows
        if row.metric.startswith("steps that wait")
    }
    assert {key: share > 0 for key, share in waits.items()} == {
        (name, mode): mode == "sync" and name != "spaces reused"
        for name in bench.PASSES
        for mode in ("ahead", "sync")
    }
    told = {row.metric for row in rows}
    assert told >= {"P99 of 160 steps, ahead", "P99 of 160 steps, sync", "map, median"}
    (calls,) = [row for row in rows if row.metric.startswith("pages mapped by system calls")]
    assert calls.ratio > 1.5  # spaces that fit what is mapped need fewer calls, whatever the machine does
    sizes = [row.case for row in rows if row.metric == "memory without tokens, per process"]
    assert len(sizes) == len(bench.FRAME_KIB)


def test_both_sides_know_the_same_times() -> None:
    """What the child says of calls is what the parent reads."""
    fields = [
        [(field.name, field.type) for field in msgspec.structs.fields(side.CallTimes)]
        for side in (ours, theirs)
    ]
    assert fields[0] == fields[1]


def test_what_cannot_be_loaded_is_named() -> None:
    """A driver that refuses, or is gone, ends the measurement."""
    with ours.running_driver(1) as driver:
        with pytest.raises(ours.MeasurementFailed, match="too small"):
            driver.load("tiny", 65536, 2, 128, 1)
        driver.load("tiny", 65536, 2, 128, 1 << 20)
    assert driver.farewell is not None


def test_nonsense_is_refused() -> None:
    """Before anything is measured."""
    for arguments in (("--runs", "0"), ("--threads", "0"), ("--shapes", "base,huge")):
        result = run_bench("map", *arguments)
        assert result.returncode == 2, result.stdout
        assert "Traceback" not in result.stderr
