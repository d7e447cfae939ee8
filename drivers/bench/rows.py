"""What `python -m drivers.bench.…` writes, a JSON object a line, and what sections of it are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import msgspec
from attrs import field, frozen

from drivers.bench.roof import RoofMeasurement

__all__ = [
    "Case",
    "Dropped",
    "Latest",
    "Measured",
    "Options",
    "Plan",
    "Started",
    "against_roof",
]

T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    """How many cases follow, and on what."""

    num_cases: int
    device: str = ""  # "": the processor


class Started(msgspec.Struct, frozen=True, tag="started"):
    """A case begins."""

    case: str
    seconds: float = 0.0  # that it may take before whoever waits for it ends this process; 0: any


class Dropped(msgspec.Struct, frozen=True, tag="dropped"):
    """A case, or what is left of it, is not measured."""

    case: str
    reason: str
    is_failure: bool = False  # False: there was no time, or it does not fit


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """A number of the case that began last."""

    case: str
    metric: str
    value: float
    unit: str
    against: str  # the baseline or the limit, measured in turn with the value
    ratio: float  # times better than a baseline, or the fraction of a limit
    runs: int


@frozen
class Options:
    """What all sections are told."""

    num_threads: int
    runs: int
    is_quick: bool  # one tiny case of each kind: shows that it works, not how fast
    stream_bytes: int  # larger than the caches, unless it is quick

    @property
    def thread_counts(self) -> tuple[int, ...]:
        """One, and all."""
        return (1,) if self.num_threads == 1 else (1, self.num_threads)


@frozen
class Case:
    """One thing to measure; what it needs is made when it is called."""

    name: str
    measure: Callable[[], Iterable[Measured]]


@frozen(eq=False)
class Latest(Generic[T]):
    """Keeps what was made last, and lets go of it before it makes another: weights fill the memory."""

    make: Callable[..., T]
    let_go: Callable[[T], None] = lambda thing: None
    _kept: dict[tuple[object, ...], T] = field(factory=dict, init=False)

    def __call__(self, *key: object) -> T:
        """What `make` gives for these arguments, made now or kept since the last call."""
        if key not in self._kept:
            while self._kept:
                self.let_go(self._kept.popitem()[1])
            self._kept[key] = self.make(*key)
        return self._kept[key]


def against_roof(
    case: str, metric: str, value: float, unit: str, found: RoofMeasurement, is_integer: bool
) -> Measured:
    """A row whose baseline is the peak that limits it, and whose ratio is the fraction of it."""
    if found.bandwidth_fraction >= found.arithmetic_fraction:
        limit = f"read {found.read_bytes_per_second / 1e9:.1f} GB/s"
    else:
        limit = f"{'int8' if is_integer else 'fp32'} {found.operations_per_second / 1e9:.0f} GOP/s"
    return Measured(case, metric, value, unit, limit, found.roof_fraction, found.repetitions)
