"""What a driver measures of a model, and the cost model that it makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_zoo import load_request, save_checkpoint

from drivers.cpu import CpuDriver
from drivers.engine import Engine
from drivers.profile import MeasuredStep, fit_cost, profile_model
from llmos.cost import CostModel, StepWork
from llmos.device import (
    Bind,
    Load,
    Loaded,
    Map,
    Reserve,
    Row,
    Sampling,
    Step,
    choose_kv_format,
)

SHAPES = [(1, 1, 0), (8, 1, 0), (1, 16, 0), (32, 1, 0), (1, 64, 0), (8, 1, 999), (1, 64, 900), (1, 256, 0)]


def work_of(num_rows: int, num_tokens: int, start: int) -> StepWork:
    """A step of equal rows."""
    work = StepWork()
    for _ in range(num_rows):
        work = work.with_row(start, num_tokens)
    return work


def measured(cost: CostModel, noise: float = 0.0, shapes=SHAPES) -> list[MeasuredStep]:
    """Steps on a device that takes what a cost model says, give or take."""
    random = np.random.default_rng(0)
    steps = [work_of(*shape) for shape in shapes]
    return [
        MeasuredStep(work, cost.step_seconds(work) * (1 + random.uniform(-noise, noise))) for work in steps
    ]


HELD_OUT = [work_of(*shape) for shape in [(4, 1, 300), (16, 1, 200), (1, 128, 0), (1, 32, 700), (2, 100, 50)]]
TRUTHS = [
    CostModel(base=5e-3, per_token=4e-4, per_row=1e-4, per_context_token=2e-6, per_pair=3e-7),
    CostModel(base=0.08, per_token=3e-3, per_row=5e-4, per_context_token=1e-6, per_pair=1e-6),
    CostModel(per_token=1e-4, per_row=1e-5),
]


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_device_of_this_form_is_found(truth: CostModel) -> None:
    """Steps that were not measured are predicted to 2 per cent; with 5 per cent of noise, to 25."""
    exact, noisy = fit_cost(measured(truth)), fit_cost(measured(truth, noise=0.05))
    for work in HELD_OUT:
        assert exact.step_seconds(work) == pytest.approx(truth.step_seconds(work), rel=0.02)
        assert noisy.step_seconds(work) == pytest.approx(truth.step_seconds(work), rel=0.25)


@given(st.lists(st.tuples(st.sampled_from(SHAPES), st.floats(1e-6, 10)), min_size=1, max_size=8))
def test_nonsense_gives_a_cost_that_grows(steps: list[tuple[tuple[int, int, int], float]]) -> None:
    """Whatever was measured, no coefficient is negative and tokens are not free."""
    cost = fit_cost([MeasuredStep(work_of(*shape), seconds) for shape, seconds in steps])
    assert min(cost.base, cost.per_row, cost.per_context_token, cost.per_pair) >= 0
    assert cost.step_seconds(work_of(1, 100_000, 0)) > 0
    for small, large in [((1, 1, 0), (1, 2, 0)), ((1, 16, 0), (2, 16, 0)), ((1, 16, 0), (1, 16, 500))]:
        assert cost.step_seconds(work_of(*small)) <= cost.step_seconds(work_of(*large))


def test_tokens_are_not_free() -> None:
    """Where no step takes longer than another, many more tokens than were measured still do."""
    steps = [MeasuredStep(work_of(1, num_tokens, 0), 0.05) for num_tokens in (1, 4, 16)]
    cost = fit_cost(steps)
    assert cost.step_seconds(work_of(1, 16, 0)) == pytest.approx(0.05, rel=0.05)
    assert cost.step_seconds(work_of(1, 4096, 0)) > 0.14


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama."""
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(folder, "LlamaForCausalLM")
    return folder


class CountingDriver(CpuDriver):
    """Keeps the arenas that were opened."""

    def __init__(self, native: bool = True) -> None:
        super().__init__(1, native=native)
        self.arenas = []

    def open_arena(self, *arguments):
        """See Backend."""
        self.arenas.append(super().open_arena(*arguments))
        return self.arenas[-1]


@pytest.mark.parametrize("native", [True, False])
def test_a_load_comes_with_a_profile_and_leaves_nothing(checkpoint: Path, native: bool) -> None:
    """The arena that steps were measured on is closed, the one that serves is untouched, and serves."""
    driver = CountingDriver(native)
    engine = Engine(driver)
    loaded = engine.load(load_request(checkpoint, "fp32"), lambda *report: None)
    assert isinstance(loaded, Loaded)
    assert loaded.profile is not None
    assert loaded.profile.num_steps >= 6
    assert 0 < loaded.profile.seconds < loaded.seconds
    assert loaded.profile.cost.step_seconds(work_of(1, 64, 0)) > 0
    measured_on, serving = driver.arenas
    assert len(measured_on.segments) == 0
    assert serving.num_mappings == 0
    assert [serving.num_mapped_pages(asid) for asid in range(4) if serving.table.is_open(asid)] == []
    edits = (Reserve(0), Map(0, 0, (0, 1)), Bind(0, Sampling(), (5, 6), 2))
    done = engine.run_step(Step(1, edits, (Row(0, 0, (5, 6), True),)))
    assert done.faults == ()
    engine.close()


@pytest.mark.parametrize(
    ("max_spaces", "max_model_len", "max_step_tokens", "frame_bytes"),
    [(1, 1, 1, None), (1, 512, 512, 4096), (3, 20, 7, None), (64, 512, 64, 1 << 21)],
)
def test_small_limits_are_kept(
    checkpoint: Path, max_spaces: int, max_model_len: int, max_step_tokens: int, frame_bytes: int | None
) -> None:
    """No step is measured that the kernel could never send; what is left is enough for a fit."""
    load = Load(
        str(checkpoint), "test", "fp32", "auto", None, frame_bytes, max_spaces, max_model_len, max_step_tokens
    )
    driver = CountingDriver()
    model, _ = driver.load_model(load, lambda *report: None)
    seen: list[tuple[int, int]] = []
    choose = model.choose

    def watch(rows, *arguments):
        seen.append((sum(len(row.tokens) for row in rows), max(row.start + len(row.tokens) for row in rows)))
        assert len(rows) <= max_spaces
        return choose(rows, *arguments)

    model.choose = watch
    profile = profile_model(model, driver, choose_kv_format("fp32", model.segments, frame_bytes), load)
    assert 0 < profile.num_steps <= len(seen)
    assert max(num_tokens for num_tokens, _ in seen) <= max_step_tokens
    assert max(end for _, end in seen) <= max_model_len
    assert profile.cost.step_seconds(work_of(1, 1, 0)) > 0
