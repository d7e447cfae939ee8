"""How a step's work gets to the device: at once, or as a graph that was recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import torch
from attrs import frozen

__all__ = ["DirectLauncher", "Fence", "Graph", "GraphLauncher", "Launcher"]


class Fence(Protocol):
    """A point in the device's work."""

    def synchronize(self) -> None:
        """Wait until the device has come there. Any thread may."""


class Launcher(Protocol):
    """Issues work in order, and says when it is done."""

    num_recorded: int  # graphs

    def run(self, key: Hashable, work: Callable[[], None], places: Sequence[torch.Tensor]) -> None:
        """Issue work. Under one key it is the same calls, and on the same memory while `places` stay."""

    def mark(self) -> Fence:
        """A fence behind what was issued so far."""

    def host_memory(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Zeros on the host that the device can reach while the host goes on."""


class Graph(Protocol):
    """Recorded work."""

    def replay(self) -> None:
        """Issue it again, as it was, on the memory of then."""


class _Passed:
    """A fence behind work that is done already."""

    def synchronize(self) -> None:
        """See Fence."""


class DirectLauncher:
    """Calls the work. On a processor it is then done; on a GPU it is issued, kernel by kernel."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.num_recorded = 0

    def run(self, key: Hashable, work: Callable[[], None], places: Sequence[torch.Tensor]) -> None:
        """See Launcher."""
        work()

    def mark(self) -> Fence:
        """See Launcher."""
        if self._device.type == "cpu":
            return _Passed()
        event = torch.cuda.Event(blocking=True)  # who waits sleeps, and leaves its processor to others
        event.record()
        return event

    def host_memory(self, size: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Launcher."""
        return torch.zeros(size, dtype=dtype, pin_memory=self._device.type == "cuda")


class CudaRecorder:
    """Records calls on a GPU as a CUDA graph: one launch for hundreds of kernels."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # one replays at a time, so all share their memory

    def __call__(self, work: Callable[[], None]) -> Graph:
        """Record what `work` issues; nothing of it is carried out."""
        graph = torch.cuda.CUDAGraph()
        # other threads map memory and copy meanwhile, on streams of their own
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        return graph


@frozen(eq=False)
class _Recorded:
    """A graph, and where the memory was that it is about."""

    graph: Graph
    addresses: tuple[int, ...]


class GraphLauncher(DirectLauncher):
    """Records work, one graph for each key, and replays it; records it again when its memory has moved.

    The first time, work is called: triton compiles then, and libraries set themselves up, which cannot be
    recorded. It is recorded right after that; recording carries nothing out. Where there is no memory for a
    graph, work of its key is called from then on.

    Args:
        device: where work is done.
        record: makes a graph of work without carrying it out; None: a CUDA graph.
    """

    def __init__(
        self, device: torch.device, record: Callable[[Callable[[], None]], Graph] | None = None
    ) -> None:
        super().__init__(device)
        self._record = record or CudaRecorder()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._too_large: set[Hashable] = set()  # keys whose graph there was no memory for

    def run(self, key: Hashable, work: Callable[[], None], places: Sequence[torch.Tensor]) -> None:
        """See Launcher."""
        addresses = tuple(place.data_ptr() for place in places)
        recorded = self._recorded.get(key)
        if recorded is not None and recorded.addresses == addresses:
            recorded.graph.replay()
            return
        work()
        if key in self._too_large:
            return
        try:
            self._recorded[key] = _Recorded(self._record(work), addresses)
        except RuntimeError as error:  # the step itself was launched: it is not at fault
            if not _lacks_memory(error):
                raise
            self._recorded.pop(key, None)
            self._too_large.add(key)
        self.num_recorded = len(self._recorded)


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether torch has run out of memory; what ends a recording may say something else after it."""
    while error is not None:
        if isinstance(error, RuntimeError) and "out of memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
