"""`make gpu` without a GPU: every part once, tiny, under the interpreter and on the stand-in library."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("triton") is None:  # not imported: that would choose between compiler and interpreter
    pytest.skip("triton is not installed (extra: cuda)", allow_module_level=True)

from drivers.bench import gpu as measurer
from drivers.bench.gpu import SECONDS
from drivers.bench.gpu_setup import Setup, rehearsal_sizes
from drivers.bench.rows import Dropped, Measured, Started
from llmos.bench import gpu, gpu_serve
from llmos.bench.gpu import REHEARSAL, SECTIONS
from llmos.bench.report import Report, read_rows
from llmos.config import ConfigError
from tests.fake_cuda import load_fake

ROOT = Path(__file__).parents[2]


def bench_gpu(library: str, *arguments: str, control: str = "") -> subprocess.CompletedProcess[str]:
    """Run `llmos bench gpu …`; `control` names the stand-in's file of orders."""
    environment = os.environ | {"LLMOS_LIBCUDA": library, "FAKE_CUDA_CONTROL": control}
    environment.pop("TRITON_INTERPRET", None)  # tests of kernels set it; served is by torch
    return subprocess.run(
        [sys.executable, "-m", "llmos.cli", "bench", "gpu", *arguments], cwd=ROOT,
        capture_output=True, text=True, timeout=500, check=False, env=environment,
    )  # fmt: skip


def test_a_rehearsal_runs_every_part() -> None:
    """It says that it measures nothing before the table and behind it, and has rows of every section."""
    result = bench_gpu(load_fake().library, "--rehearse")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == REHEARSAL
    assert "not measured" not in result.stdout
    for case in (
        "checks: properties and parity", "peaks: matrix product", "attention: decode, batch 2",
        "attention: prompt of 8", "kernels: product of 1 rows", "kernels: sampling by typical",
        "step: decode, batch 2, context 16", "step: decode, batch 1, context 16, two in flight",
        "step: decode, batch 1, context 16, graphs", "step: decode, FP32 weights, int8 keys and values",
        "step: decode, W8A8 weights, int8 keys and values", "step: decode, W4A8 weights", "step: prompt of 8",
        "step: decode, batch 1, context 16, mapping", "attention: torch's, prompt of 1000 one by one",
        "paging: cuMemSetAccess", "paging: map and set access", "swap: device to host",
        "swap: host to device", "serving: llmos up", "serving: the device at steps, 2 prompts",
    ):  # fmt: skip
        assert case in result.stdout, case
    assert "transformers" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("cuMemCreate 1 700", "CudaFault: cuMemCreate: CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("cuMemCreate 1 -1", "it took more than 30 s, and was ended"),
    ],
    ids=["fails", "hangs"],
)
def test_a_section_that_fails_or_hangs_takes_no_other_with_it(
    tmp_path: Path, order: str, reason: str
) -> None:
    """The rest is measured in another process; the table is last, and the command fails by name."""
    control = tmp_path / "orders"
    control.write_text(order)
    result = bench_gpu(load_fake().library, "--rehearse", "--only", "paging,swap", control=str(control))
    assert result.returncode != 0
    assert f"not all of it was measured, or good: paging: {reason}" in result.stderr
    _, table = result.stdout.split(f"not measured: paging: {reason}")
    assert "swap: host to device" in table
    assert result.stdout.splitlines()[-1] == REHEARSAL


def messages_of(*arguments: str, control: str = "") -> list[dict[str, object]]:
    """What the process that measures says, tiny, on the stand-in."""
    environment = os.environ | {"LLMOS_LIBCUDA": load_fake().library, "FAKE_CUDA_CONTROL": control}
    told = subprocess.run(
        [sys.executable, "-m", "drivers.bench.gpu", "--rehearse", *arguments], cwd=ROOT,
        capture_output=True, text=True, timeout=500, check=True, env=environment,
    )  # fmt: skip
    return [json.loads(line) for line in told.stdout.splitlines()]


def test_what_there_is_no_time_for_is_named() -> None:
    """Case by case: nothing else is measured, and it is no failure."""
    sections = ("kernels", "step", "formats", "prefill", "paging", "swap")
    told = messages_of("--seconds", "0", "--sections", *sections)
    assert [each["case"] for each in told if each["type"] == "started"] == list(sections)
    dropped = {each["case"] for each in told if each["type"] == "dropped"}
    assert all(each["reason"] == "no time was left" for each in told if each["type"] == "dropped")
    assert {
        "kernels: product of 1 rows, 64 x 32", "kernels: W8A8 product of 1 rows, 64 x 32",
        "kernels: sampling by typical, batch 2", "attention: decode, batch 2, context 16",
        "step: decode, batch 1, context 16", "step: decode, batch 1, context 16, ablation",
        "step: decode, W4A8 weights, int8 keys and values", "step: prompt of 8", "paging", "swap",
    } <= dropped  # fmt: skip
    assert {each["type"] for each in told} == {"plan", "started", "dropped"}


def test_too_little_memory_ends_a_section_and_no_more(tmp_path: Path) -> None:
    """The library's refusal is told with the call; the next section is measured by the same process."""
    control = tmp_path / "orders"
    control.write_text("cuMemCreate 1 2")
    told = messages_of("--sections", "paging", "swap", control=str(control))
    (dropped,) = (each for each in told if each["type"] == "dropped")
    assert dropped["case"] == "paging: the rest of it"
    assert dropped["reason"] == "too little memory: cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY"
    assert not dropped["is_failure"]
    assert any(str(each["case"]).startswith("swap: ") for each in told if each["type"] == "measured")


@pytest.mark.parametrize("section", [section for section in SECTIONS if section != "serving"])
def test_torch_without_memory_is_no_failure(monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    """In any section, after any row: that row stays, and the section behind it begins."""
    row = Measured("a case", "time", 1.0, "us", "itself", 1.0, 1)

    def exhausted() -> Iterator[Measured]:
        yield row
        raise torch.OutOfMemoryError("CUDA out of memory")

    sections = dict.fromkeys(SECTIONS, lambda: iter([row])) | {section: exhausted}
    monkeypatch.setattr(measurer, "open_sections", lambda setup: sections)
    with contextlib.closing(load_fake().open()) as memory:
        setup = Setup(torch.device("cpu"), memory, rehearsal_sizes(), 0.0)
        told = list(measurer.run([section, "serving"], setup, time.monotonic() + 60))
    assert [type(each) for each in told[1:]] == [Started, Measured, Dropped, Started, Measured]
    assert told[3] == Dropped(f"{section}: the rest of it", "too little memory: CUDA out of memory")


def test_rows_are_in_the_file_as_they_come(tmp_path: Path) -> None:
    """Whoever ends the command has what was measured by then."""
    path = tmp_path / "rows.jsonl"
    path.write_text("old\n")
    report = Report("gpu")
    for nowhere in (tmp_path, tmp_path / "nowhere" / "rows.jsonl"):
        with pytest.raises(PermissionError, match="no rows can be written to"):
            report.open_json(str(nowhere))
    report.open_json(str(path))
    assert path.read_text() == "old\n"  # there may be nothing to measure on
    for count in (1, 2):
        report.add("a case", "time", 1.0, "us", against="itself", ratio=1.0, runs=1)
        assert read_rows([path]) == report.rows
        assert len(report.rows) == count


def test_without_a_gpu_it_refuses() -> None:
    """No library, or a stand-in that was not asked for: one line says so, and no table is printed."""
    for library, message in (
        ("/nowhere/libcuda.so.1", "no GPU to measure: "),
        (load_fake().library, "is a stand-in without a processor; give --rehearse"),
    ):
        result = bench_gpu(library, "--only", "peaks")
        assert result.returncode != 0
        assert message in result.stderr
        assert not result.stdout


def test_both_sides_have_the_same_sections() -> None:
    """In the same order, in less than 8 minutes; a file of a rehearsal is refused."""
    assert tuple(SECONDS) == SECTIONS
    kept = gpu.SERVED_SECONDS + gpu.BASELINE_SECONDS + gpu.STOP_SECONDS
    assert sum(SECONDS.values()) - SECONDS["serving"] < gpu.TOTAL_SECONDS - kept - 20
    assert SECONDS["serving"] < gpu.BASELINE_SECONDS
    assert gpu.TOTAL_SECONDS <= 480 - 10
    with pytest.raises(ConfigError, match="nothing to write"):
        gpu.main(only=None, is_rehearsal=True, json_path="rows.jsonl")


@pytest.mark.parametrize("build_seconds", [0.0, 120.0, 400.0])
def test_all_of_it_ends_in_time(monkeypatch: pytest.MonkeyPatch, build_seconds: float) -> None:
    """Whatever each part takes of what it may: build and all, the last one ends within 8 minutes."""
    now = build_seconds
    monkeypatch.setattr(gpu.time, "monotonic", lambda: now)
    sections: list[str] = []

    def spend(seconds: float) -> None:
        nonlocal now
        assert seconds >= 0.0
        now += seconds

    class SlowChild:
        """Takes all of its time, and has begun all of its sections."""

        def __init__(
            self, named: list[str], is_rehearsal: bool, seconds: float, options: Sequence[str] = ()
        ) -> None:
            self.sections, self.seconds, self.num_started, self.ending = named, seconds, len(named), ""

        def messages(self) -> Iterator[Dropped]:
            """See GpuChild."""
            sections.extend(self.sections)
            spend(self.seconds)
            yield from ()

    def serve(served: gpu_serve.Served, *options: str, seconds: float) -> gpu_serve.Result:
        spend(seconds + gpu.STOP_SECONDS)
        return gpu_serve.Result(1.0, {8: 0.9})

    monkeypatch.setattr(gpu, "GpuChild", SlowChild)
    monkeypatch.setattr(gpu_serve, "measure", serve)
    report = Report("gpu")
    failed = gpu._measure(report, SECTIONS, False, gpu.TOTAL_SECONDS - build_seconds)
    assert now <= max(gpu.TOTAL_SECONDS, build_seconds + gpu.STOP_SECONDS)
    assert [row.case for row in report.rows] == [
        "serving: the device at steps, 8 prompts of 512 tokens, 512 out"
    ]
    if build_seconds < 200:
        assert sections == list(SECTIONS)
        assert not failed
    else:
        assert failed == [f"{section}: no time was left" for section in SECTIONS[:-1]]
