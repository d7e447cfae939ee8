"""What the engine needs to know of a kind of device; `cpu.py` and `cuda.py` implement it."""

from __future__ import annotations

from typing import Protocol

from drivers.arena import Arena
from drivers.model.loader import ProgressCallback
from drivers.model.step_queue import StepQueue
from drivers.model.transformer import Model
from drivers.ops.kv_pages import KVPages
from llmos.device import KVFormat, Load, Quality

__all__ = ["Backend", "DeviceUnavailable", "outlive"]


class DeviceUnavailable(RuntimeError):
    """There is no such device here; the message says what is missing."""


class Backend(Protocol):
    """One device: its memory, and how to run on it."""

    kind: str  # "cpu", "cuda"
    num_threads: int
    memory_bytes: int  # of the device; 0 when there is none

    def describe(self) -> str:
        """One line for people: processor or board. Never raises."""

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Model, Quality | None]:
        """Load the model that `load` names, in its formats; with what a quantised one costs.

        Raises:
            ModelError: the files, or the formats, cannot be served here.
        """

    @property
    def granularity_bytes(self) -> int:
        """The size of a frame has to be a multiple of this."""

    def choose_pool_bytes(self) -> int:
        """A share of the memory that is free now, for frames."""

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """Most frames that the arena takes; None: no limit but memory."""

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> Arena:
        """Set up memory. Raises ArenaError, OSError or torch.OutOfMemoryError."""

    def open_queue(self, model: Model, pages: KVPages, max_spaces: int) -> StepQueue | None:
        """Open the queue that launches steps of a model, two in flight. None: here they end as they begin.

        Args:
            model: that `load_model` returned.
            pages: of an arena that `open_arena` returned.
            max_spaces: asids are below it.
        """

    def close(self) -> None:
        """Give the device back, after everything that was opened on it. Idempotent."""

    def check_health(self) -> None:
        """Raise when the device is beyond use after an exception, so that only a new process helps."""


def outlive(backend: Backend, error: Exception) -> None:
    """Return after an exception, unless the device is beyond use: then raise it, the first that says so."""
    try:
        backend.check_health()
    except Exception as loss:
        raise error from loss
