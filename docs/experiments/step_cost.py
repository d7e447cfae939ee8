"""Which form of cost model predicts steps that it was not fitted to, on a model with random weights.

A grid of steps is run in turn, round after round; the shortest run of each counts. Forms are fitted to those
steps that a driver measures at load, and their errors are of all the others.

python docs/experiments/step_cost.py [SHAPE] [WEIGHTS] [THREADS] [SECONDS]
"""

from __future__ import annotations

import sys
import time

import msgspec
import numpy as np

from drivers.bench.random_model import random_native_model
from drivers.cpu import CpuDriver
from drivers.profile import MeasuredStep, fit_cost
from llmos.cost import CostModel, StepWork
from llmos.device import Map, Row, choose_kv_format

LONG = 1024
FITTED = [
    [(0, 1)], [(0, 1)] * 8, [(0, 1)] * 32, [(LONG - 1, 1)] * 8,
    [(0, 16)], [(0, 64)], [(LONG - 64, 64)], [(0, 256)],
]  # fmt: skip
HELD_OUT = [
    *([(start, 1)] * num_rows for num_rows in (2, 4, 16) for start in (0, 300, 900)),
    *([(start, num_tokens)] for num_tokens in (32, 128, 512) for start in (0, 512)),
    *([(200, 1)] * num_rows + [(0, num_tokens)] for num_rows in (1, 8, 16) for num_tokens in (16, 64, 200)),
]


def work_of(step: list[tuple[int, int]]) -> StepWork:
    """What a step holds, given (start, tokens) of its rows."""
    work = StepWork()
    for start, num_tokens in step:
        work = work.with_row(start, num_tokens)
    return work


def measure(shape: str, weights: str, num_threads: int, seconds: float) -> list[MeasuredStep]:
    """The shortest run of each step of FITTED and HELD_OUT, in this order."""
    kv_name = "fp16" if weights in ("w8a8", "w4a8") else weights
    model = random_native_model(shape, weights, kv_name, num_threads, LONG)
    kv = choose_kv_format(kv_name, model.segments, None)
    num_pages = kv.num_pages(LONG)
    arena = CpuDriver(num_threads).open_arena(kv, 32 * num_pages * kv.frames_per_page, 32, num_pages)
    for page in range(32 * num_pages):
        asid, vpn = divmod(page, num_pages)
        if not vpn:
            arena.reserve(asid)
        arena.map(Map(asid, vpn, (2 * page, 2 * page + 1)))
    pages = model.view_pages(arena.segments, kv, arena.page_index)
    steps = FITTED + HELD_OUT
    least = [np.inf] * len(steps)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not np.isfinite(least).all():
        for i, step in enumerate(steps):
            rows = [Row(asid, start, (0,) * count, True) for asid, (start, count) in enumerate(step)]
            began = time.perf_counter()
            model.choose(rows, pages, [None] * len(rows))
            least[i] = min(least[i], time.perf_counter() - began)
    arena.close()
    return [MeasuredStep(work_of(step), taken) for step, taken in zip(steps, least, strict=True)]


def without(name: str, steps: list[MeasuredStep]) -> list[MeasuredStep]:
    """The same steps, as if they held nothing of one kind."""
    return [MeasuredStep(step.work._replace(**{name: 0}), step.seconds) for step in steps]


def errors(cost: CostModel, steps: list[MeasuredStep]) -> np.ndarray:
    """By how much of each step a prediction is wrong."""
    return np.array([abs(cost.step_seconds(step.work) / step.seconds - 1) for step in steps])


def errors_with_turn(fitted: list[MeasuredStep], held_out: list[MeasuredStep]) -> np.ndarray:
    """Errors of a form where tokens are free up to a number of them: the best one for the fitted steps."""

    def bent(steps: list[MeasuredStep], turn: int) -> list[MeasuredStep]:
        works = [step.work._replace(num_tokens=max(0, step.work.num_tokens - turn)) for step in steps]
        return [MeasuredStep(work, step.seconds) for work, step in zip(works, steps, strict=True)]

    def misfit(turn: int) -> float:
        return float((errors(fit_cost(bent(fitted, turn)), bent(fitted, turn)) ** 2).sum())

    turn = min(range(64), key=misfit)
    return errors(fit_cost(bent(fitted, turn)), bent(held_out, turn))


def main(shape: str = "160m", weights: str = "w8a8", num_threads: str = "2", seconds: str = "30") -> None:
    """Print the coefficients, and a line for each form."""
    steps = measure(shape, weights, int(num_threads), float(seconds))
    fitted, held_out = steps[: len(FITTED)], steps[len(FITTED) :]
    cost = fit_cost(fitted)
    print(
        f"{shape} {weights}:", {name: f"{1e6 * c:.3g} us" for name, c in msgspec.structs.asdict(cost).items()}
    )
    forms = {"base + tokens + rows + keys + pairs": errors(cost, held_out)}
    for name in ("num_rows", "num_context_tokens", "num_pairs"):
        fit = fit_cost(without(name, fitted))
        forms[f"the same without {name[4:]}"] = errors(fit, without(name, held_out))
    forms["tokens free up to a number of them"] = errors_with_turn(fitted, held_out)
    for form, found in forms.items():
        print(f"{form:36} median {np.median(found):4.0%}  worst tenth {np.quantile(found, 0.9):4.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
