"""Whole models on the driver's engine, without a server, against the machine's roof.

    roof = max((weight bytes + bytes of keys and values) / read bandwidth, operations of products / peak)

The time of a step is all that the driver does for it: page tables, the forward pass, sampling. Weights are
random, in the shapes of real models.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from drivers.bench.peaks import Peaks
from drivers.bench.random_model import SHAPES, RandomDriver
from drivers.bench.roof import RoofMeasurement, measure_roof
from drivers.engine import Engine
from drivers.model.packed import WEIGHT_FORMATS
from llmos.device import Bind, Edit, Load, Loaded, Map, Release, Reserve, Row, Sampling, Step

__all__ = ["DrivenModel", "ModelMeasurement", "measure_decode", "measure_prefill", "measure_sampling"]

MAX_SPACES, MAX_MODEL_LEN = 32, 1024
SECONDS_PER_RUN = 0.25
MAX_STEPS_PER_RUN = 16


class ModelMeasurement(RoofMeasurement, frozen=True, kw_only=True):
    """A model's steps of one kind: medians over the repetitions."""

    tokens_per_second: float


class DrivenModel:
    """A model with random weights, loaded by an engine of its own.

    Args:
        shape: a name of random_model.SHAPES.
        weights: the format.
        num_threads: that share a step.

    Raises:
        RuntimeError: it cannot be loaded.
    """

    def __init__(self, shape: str, weights: str, num_threads: int) -> None:
        driver = RandomDriver(num_threads)
        self._engine = Engine(driver, debug=False)
        self.is_integer = WEIGHT_FORMATS[weights].is_quantised
        kv = "fp16" if self.is_integer else weights
        loaded = self._engine.load(
            Load(shape, shape, weights, kv, None, None, MAX_SPACES, MAX_MODEL_LEN, MAX_MODEL_LEN),
            lambda done, total, what: None,
        )
        if not isinstance(loaded, Loaded):
            raise RuntimeError(loaded.message)
        self.num_threads = num_threads
        self._kv, self._vocab_size = loaded.kv, loaded.model.vocab_size
        self._weight_bytes = driver.weight_bytes
        config = SHAPES[shape]
        width = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
        per_layer = config.hidden_size * (width + 3 * config.intermediate_size)
        self._num_layer_weights = config.num_layers * per_layer
        self._num_head_weights = config.hidden_size * config.vocab_size
        self.sampled: tuple[int | None, ...] = ()  # by the last step
        self._lengths: list[int] = []  # of the contexts in the open spaces

    def close(self) -> None:
        """Give the memory back."""
        self._engine.close()

    def open_spaces(self, num_spaces: int, sampling: Sampling | None = None) -> None:
        """Release what is open and reserve new spaces, each with memory for the longest context.

        Args:
            num_spaces: at most MAX_SPACES.
            sampling: of all of them; None: greedy.
        """
        edits: list[Edit] = [Release(asid) for asid in range(len(self._lengths))]
        pages_per_space = self._kv.num_pages(MAX_MODEL_LEN)
        for asid in range(num_spaces):
            edits += [Reserve(asid), Bind(asid, sampling or Sampling(), (), 0)]
            for vpn in range(pages_per_space):
                page = asid * pages_per_space + vpn
                edits.append(Map(asid, vpn, (2 * page, 2 * page + 1)))
        self._lengths = [0] * num_spaces
        self._run(edits, [])

    def prefill(self, num_tokens: int) -> float:
        """Append so many random tokens to each space in one step, and sample; its seconds."""
        draw = np.random.default_rng(num_tokens).integers
        rows = [
            Row(asid, length, tuple(draw(0, self._vocab_size, num_tokens).tolist()), True)
            for asid, length in enumerate(self._lengths)
        ]
        self._lengths = [length + num_tokens for length in self._lengths]
        return self._run([], rows)

    def decode(self) -> float:
        """Append to each space the token that it sampled last, and sample; the step's seconds."""
        rows = [Row(asid, length, (), True) for asid, length in enumerate(self._lengths)]
        self._lengths = [length + 1 for length in self._lengths]
        return self._run([], rows)

    def least_seconds(self, num_tokens: int, peaks: Peaks) -> tuple[float, float]:
        """What the last step takes at least to read, and to multiply.

        Args:
            num_tokens: that it appended to each space.
            peaks: of the moment.
        """
        num_spaces = len(self._lengths)
        kv_bytes = sum(segment.bytes_per_token for segment in self._kv.segments) * sum(self._lengths)
        products = num_spaces * (self._num_layer_weights * num_tokens + self._num_head_weights)
        return (
            (self._weight_bytes + kv_bytes) / peaks.read_bytes_per_second,
            2 * products / peaks.operations_per_second,
        )

    def _run(self, edits: Sequence[Edit], rows: Sequence[Row]) -> float:
        step = Step(0, tuple(edits), tuple(rows))
        began = time.perf_counter()
        done = self._engine.run_step(step)
        seconds = time.perf_counter() - began
        if done.faults:
            raise RuntimeError(f"a step that was to be timed failed: {done.faults[0].message}")
        self.sampled = done.tokens
        return seconds


def measure_decode(
    model: DrivenModel, batch: int, prompt_tokens: int, repetitions: int, stream: np.ndarray
) -> ModelMeasurement:
    """Steps of one token for each of `batch` sequences, behind prompts, and the peaks, in turn.

    Raises:
        ValueError: the contexts would grow beyond MAX_MODEL_LEN.
    """
    num_steps = min(MAX_STEPS_PER_RUN, (MAX_MODEL_LEN - prompt_tokens - 1) // repetitions)
    if num_steps < 1:
        raise ValueError(f"{repetitions} runs behind {prompt_tokens} tokens need more than {MAX_MODEL_LEN}")
    model.open_spaces(batch)
    model.prefill(prompt_tokens)
    warm = model.decode()
    num_steps = max(1, min(num_steps, round(SECONDS_PER_RUN / warm)))
    return _measure(
        model,
        lambda: sum(model.decode() for _ in range(num_steps)) / num_steps,
        1,
        batch,
        repetitions,
        stream,
    )


def measure_prefill(
    model: DrivenModel, num_tokens: int, repetitions: int, stream: np.ndarray
) -> ModelMeasurement:
    """A step of one prompt, each time in a new space, and the peaks, in turn."""

    def run() -> float:
        model.open_spaces(1)
        return model.prefill(num_tokens)

    run()  # the first one makes the step's buffers
    return _measure(model, run, num_tokens, num_tokens, repetitions, stream)


def measure_sampling(
    model: DrivenModel, batch: int, sampling: Sampling, repetitions: int
) -> tuple[float, float]:
    """Seconds of a step of `batch` tokens that are sampled so, and of the same step when all are greedy.

    Each is the median over the repetitions, in which both take turns.
    """
    pairs = []
    for _ in range(repetitions):
        times = []
        for chosen in (sampling, None):
            model.open_spaces(batch, chosen)
            model.prefill(1)
            times.append(statistics.median(model.decode() for _ in range(3)))
        pairs.append(times)
    sampled, greedy = map(statistics.median, zip(*pairs, strict=True))
    return sampled, greedy


def _measure(
    model: DrivenModel, run: Callable[[], float], num_tokens: int, num_counted: int, repetitions: int,
    stream: np.ndarray,
) -> ModelMeasurement:  # fmt: skip
    seconds, roof = measure_roof(
        run, lambda peaks: model.least_seconds(num_tokens, peaks), stream,
        is_integer=model.is_integer, num_threads=model.num_threads, repetitions=repetitions,
    )  # fmt: skip
    return ModelMeasurement(tokens_per_second=num_counted / seconds, **msgspec.structs.asdict(roof))
