"""What the engine needs to know of a kind of device; `cpu.py` and `cuda.py` implement it."""

from __future__ import annotations

from typing import Protocol

import torch

from drivers.arena import Arena
from drivers.model.loader import LoadedWeights
from drivers.model.transformer import Model
from llmos.device import KVFormat

__all__ = ["Backend", "DeviceUnavailable"]


class DeviceUnavailable(RuntimeError):
    """There is no such device here; the message says what is missing."""


class Backend(Protocol):
    """One device: its memory, and how to run on it."""

    kind: str  # "cpu", "cuda"
    num_threads: int
    memory_bytes: int  # of the device; 0 when there is none

    @property
    def torch_device(self) -> torch.device:
        """Where tensors go. Raises DeviceUnavailable."""

    def describe(self) -> str:
        """One line for people: processor or board. Never raises."""

    def open_model(self, loaded: LoadedWeights) -> Model:
        """Make weights that are on `torch_device` into a model that runs here."""

    def choose_pool_bytes(self) -> int:
        """A share of the memory that is free now, for frames."""

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """Most frames that the arena takes; None: no limit but memory."""

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> Arena:
        """Set up memory. Raises ArenaError, OSError or torch.OutOfMemoryError."""

    def check_health(self) -> None:
        """Raise when the device is beyond use after an exception, so that only a new process helps."""
