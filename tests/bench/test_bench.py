"""The benchmarks' own arithmetic, and one run of each through real servers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_bench import run_bench

from llmos.bench.document import document
from llmos.bench.report import Report, read_rows
from llmos.bench.server import ServerDidNotStart, running_server
from llmos.bench.summary import PICKS, summarise
from llmos.bench.workload import choose_workloads, percentile, random_prompt, served_lengths
from llmos.config import ConfigError


def test_the_served_workload_is_fixed() -> None:
    """64 requests whose lengths never change, within their bounds."""
    lengths = served_lengths()
    assert lengths == served_lengths()
    assert len(lengths) == 64
    assert all(16 <= length <= 512 and 8 <= num_tokens <= 160 for length, num_tokens in lengths)
    assert (sum(p for p, _ in lengths), sum(n for _, n in lengths)) == (10_673, 3_645)


def test_prompts_are_fixed_and_distinct() -> None:
    """A prompt depends on its arguments alone, and keeps clear of special tokens."""
    prompt = random_prompt("m", 32_000, 100, "A0")
    assert prompt == random_prompt("m", 32_000, 100, "A0")
    assert prompt[:10] != random_prompt("m", 32_000, 100, "A1")[:10]
    assert min(prompt) >= 300
    assert max(random_prompt("m", 512, 1000, "x")) < 512


def test_workloads_are_chosen_by_name() -> None:
    """A letter stands for all of its batches, order and case do not matter, and a stranger is named."""
    assert choose_workloads("C,a") == ["A", "C"]
    assert choose_workloads("B") == ["B1", "B8", "B32"]
    assert choose_workloads("A, B8") == ["A", "B8"]
    with pytest.raises(ConfigError, match="'D'"):
        choose_workloads("A,D")


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=50), percent=st.floats(0, 100))
def test_percentile(values: list[float], percent: float) -> None:
    """The percentile is numpy's."""
    assert percentile(values, percent) == pytest.approx(
        float(np.percentile(values, percent)), rel=1e-9, abs=1e-9
    )


def test_rows_come_back_and_make_a_page(tmp_path: Path) -> None:
    """What a report writes is read back whole, and the page shows it."""
    report = Report("example")
    report.add("a case", "throughput", 1234.5, "tokens/s", against="a baseline", ratio=2.5, runs=7)
    report.add("part one: first", "time", 2.0, "us", against="a limit", ratio=0.5, runs=7)
    report.write_json(str(tmp_path / "example.jsonl"))
    assert read_rows([tmp_path / "example.jsonl"]) == report.rows
    page = document(tmp_path)
    assert "| a case | throughput |" in page
    assert "\n### part one\n\n| case |" in page
    assert "| first | time |" in page
    assert "2.50" in page
    (tmp_path / "unmeasured-example.md").write_text("not yet")
    (tmp_path / "unmeasured-other.md").write_text("## other: not measured")
    page = document(tmp_path)
    assert page.endswith("## other: not measured")
    assert "not yet" not in page


def test_the_summary_shows_rows_that_are_there() -> None:
    """Each pick is one row of the page, or the last of the same; what is worse than its baseline says so."""
    folder = Path(__file__).parents[2] / "docs/benchmarks"
    rows = read_rows(sorted(folder.glob("*.jsonl")))
    assert [pick.question for pick in PICKS if not any(map(pick.finds, rows))] == []
    lines = [line for line in summarise(rows) if line.startswith("| ")][2:]
    assert len(lines) == len(PICKS)
    for line in lines:
        *_, ratio, word, _ = line.split(" | ") if line.endswith("| ") else (*line[:-2].split(" | "), "")
        assert (float(ratio) < 0.95) == (word == "**worse**")


def test_the_page_is_generated() -> None:
    """docs/benchmarks.md is what the rows in docs/benchmarks/ make."""
    root = Path(__file__).parents[2]
    assert (root / "docs/benchmarks.md").read_text() == document(root / "docs/benchmarks")


def test_bench_kernel(tmp_path: Path) -> None:
    """One run of the kernel benchmark measures its four numbers."""
    result = run_bench("kernel", "--runs", "1", "--json", str(tmp_path / "rows.jsonl"))
    assert result.returncode == 0, result.stderr
    rows = read_rows([tmp_path / "rows.jsonl"])
    assert [row.unit for row in rows] == ["us", "us", "tokens/s", "tokens/s"]
    assert all(row.value > 0 and row.runs == 1 for row in rows)


def test_bench_workload() -> None:
    """One run of the workload, as lines for a comparison of servers."""
    options = ("--runs", "1", "--threads", "1", "--weights", "fp32", "--kv", "fp16")
    result = run_bench("workload", *options, "--jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["workload"], row.get("batch")) for row in rows] == [
        ("A", None), ("B", 1), ("B", 8), ("B", 32), ("C", None),
    ]  # fmt: skip
    assert {(row["prec"], row["kv"]) for row in rows} == {("fp32", "fp16")}
    assert rows[0]["prefill_tok_s"] > 0
    assert all(row["decode_tok_s"] > 0 for row in rows[1:4])
    assert rows[4]["ttft_p99_s"] >= rows[4]["ttft_p50_s"] > 0


def test_bench_refuses_nonsense() -> None:
    """A count of runs that measures nothing, or an address where nobody answers, is named."""
    assert run_bench("kernel", "--runs", "0").returncode == 2
    assert run_bench("workload", "--workloads", "Z").returncode == 2
    result = run_bench("workload", "--url", "http://127.0.0.1:1", "--runs", "1")
    assert result.returncode == 1
    assert "127.0.0.1" in result.stderr
    assert "Traceback" not in result.stderr


def test_bench_page(tmp_path: Path) -> None:
    """A few processes: what is sent is less than the whole state each time; the rows have their shape."""
    path = tmp_path / "page.jsonl"
    result = run_bench("page", "--quick", "--runs", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    rows = {row.metric: row for row in read_rows([path])}
    assert rows["sent"].ratio > 1
    assert {"kernel, for each look", "gateway, for each look"} <= rows.keys()


def test_a_server_that_does_not_come_up_in_time_is_ended() -> None:
    """It says so, and nothing is left that runs."""
    before = children()
    with (
        pytest.raises(ServerDidNotStart, match=r"llmos\.cli up .* was not ready within 0 s"),
        running_server("--device", "sim", gateway=False, start_seconds=0.0),
    ):
        pytest.fail("it is not ready")
    assert children() <= before


def children() -> set[int]:
    """Processes whose parent this one is."""
    return {
        int(child)
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
    }
