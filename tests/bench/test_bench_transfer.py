"""`llmos bench transfer`: a few bytes of each kind, through the child that measures."""

from __future__ import annotations

import os
from pathlib import Path

from run_bench import run_bench

from drivers.bench.transfer import ROUTES, Ends, Shape, shapes
from llmos.bench.report import read_rows
from native.transfer import TransferEngine


def test_every_route_is_measured(tmp_path: Path) -> None:
    """A quick run has rows of every route, in runs, in pieces and with checksums, and leaves no file."""
    file, folder = tmp_path / "rows.jsonl", tmp_path / "disk"
    folder.mkdir()
    result = run_bench("transfer", "--quick", "--runs", "2", "--folder", str(folder), "--json", str(file))
    assert result.returncode == 0, result.stderr
    rows = read_rows([file])
    assert [row.case for row in rows] == [shape.name for shape in shapes(True)]
    assert {row.case.split(":")[0] for row in rows} == set(ROUTES)
    assert all(row.bench == "transfer" and row.runs == 2 and row.value > 0 and row.ratio > 0 for row in rows)
    assert any("pieces" in row.case for row in rows)
    assert any("checksums" in row.case for row in rows)
    assert list(folder.iterdir()) == []
    assert "bench transfer" in result.stdout


def test_what_is_timed_moves_every_byte(tmp_path: Path) -> None:
    """After each route, in any shape, the target holds all bytes of the source, run by run."""
    ends = Ends(1 << 20, str(tmp_path))
    source = bytes(ends.source)
    with TransferEngine() as engine:
        for route in ROUTES:
            shape = Shape(route, 1 << 16, 4, piece_bytes=1 << 12, has_checksums=route != ROUTES[0])
            ends.write_files(engine, shape)
            ends.target[:] = bytes(1 << 20)
            ends.copy(engine, shape)
            moved = os.pread(ends.file, 1 << 20, 0) if route == "memory to disk" else bytes(ends.target)
            assert sorted(moved[i : i + (1 << 18)] for i in range(0, 1 << 20, 1 << 18)) == sorted(
                source[i : i + (1 << 18)] for i in range(0, 1 << 20, 1 << 18)
            )
    ends.close()


def test_nonsense_is_refused() -> None:
    """No run, and a folder that is not there, are named before anything is measured."""
    for arguments in (("--runs", "0"), ("--folder", "/nowhere")):
        result = run_bench("transfer", *arguments)
        assert result.returncode == 2, result.stdout
        assert "Traceback" not in result.stderr
