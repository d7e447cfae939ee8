"""How a step's work gets to the device: at once, or as a graph that was recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

import torch

__all__ = ["DirectLauncher", "Fence", "GraphLauncher", "Launcher"]


class Fence(Protocol):
    """A point in the device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come there."""


class Launcher(Protocol):
    """Issues work in order, and says when it is done."""

    num_recorded: int  # graphs

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Issue work. Under one key it always is the same calls on the same memory."""

    def mark(self) -> Fence:
        """A fence behind what was issued so far."""

    def host_memory(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros on the host that the device can reach while the host goes on."""


class _Passed:
    """A fence that was passed when it was set."""

    def synchronize(self) -> None:
        """See Fence."""


class DirectLauncher:
    """Calls the work. On a processor it is then done; on a GPU it is issued, kernel by kernel."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.num_recorded = 0

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """See Launcher."""
        work()

    def mark(self) -> Fence:
        """See Launcher."""
        if self._device.type == "cpu":
            return _Passed()
        event = torch.cuda.Event()
        event.record()
        return event

    def host_memory(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Launcher."""
        return torch.zeros(size, dtype=dtype, pin_memory=self._device.type == "cuda")


class GraphLauncher(DirectLauncher):
    """Records work as a CUDA graph, one for each key, and replays it: one launch for hundreds of kernels.

    The first time, work is called: triton compiles then, and libraries set themselves up, which cannot be
    recorded. It is recorded right after that; recording carries nothing out.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()  # one replays at a time, so all share their memory

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """See Launcher."""
        if (graph := self._graphs.get(key)) is not None:
            graph.replay()
            return
        work()
        graph = torch.cuda.CUDAGraph()
        # other threads map memory and copy meanwhile, on streams of their own
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._graphs[key] = graph
        self.num_recorded = len(self._graphs)
