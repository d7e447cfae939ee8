"""How long the steps of a loaded model take: a few are run at load, on memory of their own, and fitted.

Other work on the machine only ever makes a step longer, and not each by as much. So the fit is made to the
shortest run of each kind of step, and then raised to what runs have usually taken.

Nothing of it stays: the arena is closed again, nothing is sampled, and no state of the engine is touched.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from attrs import frozen

from drivers.arena import Arena
from drivers.backend import Backend
from drivers.model.transformer import Model
from llmos.cost import CostModel, Profile, StepWork
from llmos.device import KVFormat, Load, Map, Row

__all__ = ["MeasuredStep", "fit_cost", "profile_model"]

MANY_ROWS, SOME_ROWS = 32, 8  # of decode; a lone row is always measured
LARGE_CHUNK = 256  # tokens of a prompt
LONG_CONTEXT = 1024  # most tokens that each of SOME_ROWS reads
CONTEXT_SHARE = 0.25  # bytes of keys and values for each parameter: enough to show beside weights
MIN_CONTEXT_BYTES, MAX_CONTEXT_BYTES = 16 << 20, 256 << 20
MAX_REPETITIONS = 6  # of a step, unless two or more have taken ENOUGH_SECONDS
ENOUGH_SECONDS = 0.02
LONG_STEP_SECONDS = 0.4  # what takes longer is run once
MIN_PAIRS_PER_KEY = 4  # in some step, for the two to be told apart
MAX_FREE_TOKENS = 1024  # that a device computes while it reads its weights
MAX_SECONDS = 1.5  # of everything: what would take longer is left out
MIN_KINDS = 2  # that are measured in any case


@frozen
class MeasuredStep:
    """What a step held, and the seconds that it took."""

    work: StepWork
    seconds: float


@frozen
class _Kind:
    """A step of equal rows."""

    num_rows: int
    num_tokens: int  # of each row
    start: int

    @property
    def work(self) -> StepWork:
        work = StepWork()
        for _ in range(self.num_rows):
            work = work.with_row(self.start, self.num_tokens)
        return work


def profile_model(model: Model, backend: Backend, kv: KVFormat, load: Load) -> Profile:
    """Measure a model that nothing else runs on meanwhile, in little more than MAX_SECONDS at most.

    Args:
        model: loaded.
        backend: opens the memory.
        kv: how the model's pages will be laid out.
        load: says how large steps will be.

    Raises:
        ArenaError, OSError, torch.OutOfMemoryError: there is no room for some pages.
    """
    began = time.perf_counter()
    bench = _Bench(model, backend, kv, load.max_spaces)
    try:
        runs = _measure(bench, load.max_step_tokens, began + MAX_SECONDS)
    finally:
        bench.close()
    steps = [MeasuredStep(kind.work, min(seconds)) for kind, seconds in runs.items()]
    cost = fit_cost(steps)
    error = max(abs(cost.step_seconds(step.work) / step.seconds - 1) for step in steps)
    usual = statistics.median(
        taken / cost.step_seconds(kind.work) for kind, seconds in runs.items() for taken in seconds
    )
    num_steps = sum(map(len, runs.values()))
    return Profile(cost.scaled(usual), error, num_steps, time.perf_counter() - began)


def _measure(bench: _Bench, max_step_tokens: int, deadline: float) -> dict[_Kind, list[float]]:
    """Run steps of some kinds, the telling ones first, and leave those out that would miss the deadline."""
    some = bench.num_long
    long = bench.capacity(some)
    chunk = min(64, long)
    kinds = (
        _Kind(1, 1, 0),
        _Kind(1, 64, 0),
        _Kind(some, 1, 0),
        _Kind(1, 16, 0),
        _Kind(MANY_ROWS, 1, 0),
        _Kind(some, 1, long - 1),
        _Kind(1, chunk, long - chunk),
        _Kind(1, LARGE_CHUNK, 0),
    )
    runs: dict[_Kind, list[float]] = {}
    per_token = math.inf  # seconds, of the step where a token takes least
    for kind in kinds:
        num_tokens = kind.num_rows * kind.num_tokens
        if num_tokens > max_step_tokens or kind.start + kind.num_tokens > bench.capacity(kind.num_rows):
            continue
        if len(runs) >= MIN_KINDS and time.perf_counter() + num_tokens * per_token > deadline:
            continue
        runs[kind] = bench.time(kind)
        per_token = min(per_token, min(runs[kind]) / num_tokens)
    return runs


class _Bench:
    """A model with pages for a few spaces: SOME_ROWS of a long context, and more with a page each."""

    def __init__(self, model: Model, backend: Backend, kv: KVFormat, max_spaces: int) -> None:
        self._num_spaces = min(MANY_ROWS, max_spaces)
        self.num_long = min(SOME_ROWS, self._num_spaces)
        bytes_per_token = sum(segment.bytes_per_token for segment in kv.segments)
        context_bytes = max(MIN_CONTEXT_BYTES, int(CONTEXT_SHARE * model.info.num_parameters))
        most = min(context_bytes, MAX_CONTEXT_BYTES) // (self.num_long * bytes_per_token)
        most = max(LARGE_CHUNK, min(LONG_CONTEXT, most))
        self._num_pages = kv.num_pages(min(most, model.info.max_model_len))
        self._model, self._kv = model, kv
        num_pages = self._num_spaces + self.num_long * (self._num_pages - 1)
        self._arena: Arena = backend.open_arena(
            kv, num_pages * kv.frames_per_page, self._num_spaces, self._num_pages
        )
        try:
            self._map()
            self._pages = model.view_pages(self._arena.segments, kv, self._arena.page_index)
        except BaseException:
            self._arena.close()
            raise

    def _map(self) -> None:
        pfn = 0
        for asid in range(self._num_spaces):
            self._arena.reserve(asid)
            for vpn in range(self._num_pages if asid < self.num_long else 1):
                self._arena.map(Map(asid, vpn, tuple(range(pfn, pfn + self._kv.frames_per_page))))
                pfn += self._kv.frames_per_page

    def capacity(self, num_rows: int) -> int:
        """Tokens that each of so many rows has room for; 0: there are not as many spaces."""
        if num_rows > self._num_spaces:
            return 0
        num_pages = self._num_pages if num_rows <= self.num_long else 1
        return min(num_pages * self._kv.tokens_per_page, self._model.info.max_model_len)

    def time(self, kind: _Kind) -> list[float]:
        """Run a step of a kind some times; seconds.

        Every row samples, so that a step is done when it returns, on every device. The first run allocates,
        and counts only where there is no second.
        """
        rows = [Row(asid, kind.start, (0,) * kind.num_tokens, True) for asid in range(kind.num_rows)]
        if kind.start and kind.num_rows > 1:
            self._run(rows)  # reads most of the memory for the first time
        seconds: list[float] = []
        enough = LONG_STEP_SECONDS
        while len(seconds) < MAX_REPETITIONS and sum(seconds) < enough:
            seconds.append(self._run(rows))
            enough = ENOUGH_SECONDS if len(seconds) > 1 else LONG_STEP_SECONDS
        return seconds[1:] or seconds

    def _run(self, rows: Sequence[Row]) -> float:
        began = time.perf_counter()
        self._model.choose(rows, self._pages, [None] * len(rows))
        return time.perf_counter() - began

    def close(self) -> None:
        """Give the pages back."""
        self._arena.close()


def fit_cost(steps: Sequence[MeasuredStep]) -> CostModel:
    """Fit a cost model to measured steps, by least squares of relative errors; no coefficient is negative.

    Every set of coefficients is tried, and the best fit without a negative one taken. Pairs are left out
    where no step has many more of them than of keys: nothing then tells one from the other. However short
    the largest steps were, tokens are not free: they take as long as all else with MAX_FREE_TOKENS of them.

    Args:
        steps: at least one, of more than no time.
    """
    held = np.array([(1, *step.work) for step in steps], dtype=np.float64)
    usable = list(range(held.shape[1]))
    if held[:, 4].max() < MIN_PAIRS_PER_KEY * held[:, 3].max():
        usable.remove(4)
    columns = held / [[step.seconds] for step in steps]
    best, least = np.zeros(held.shape[1]), np.inf
    for size in range(1, len(usable) + 1):
        for chosen in combinations(usable, size):
            solution = np.linalg.lstsq(columns[:, chosen], np.ones(len(steps)), rcond=None)[0]
            error = float(((columns[:, chosen] @ solution - 1) ** 2).sum())
            if (solution >= 0).all() and error < least * (1 - 1e-6):
                best, least = np.zeros(held.shape[1]), error
                best[list(chosen)] = solution
    base, per_token, per_row, per_context_token, per_pair = (float(coefficient) for coefficient in best)
    per_token = max(per_token, base / MAX_FREE_TOKENS)
    return CostModel(base, per_token, per_row, per_context_token, per_pair)
