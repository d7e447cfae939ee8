"""A CUDA graph's manners without a GPU: calls are recorded with the memory that they read and write.

Recording leaves all memory as it was. A replay makes the same calls on the same memory, whatever lies there
by then, and asks nothing of whoever was recorded. So what a real graph would get wrong shows: a value that
the host has put into a call, memory that is another step's by now.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from attrs import define, field
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton_device import IS_INTERPRETED

__all__ = ["StandInGraph", "record", "refuse_reads"]

READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.equal, torch.ops.aten.is_nonzero)
MEMORY = (torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like)


@define(eq=False)
class StandInGraph:
    """Calls, in order."""

    calls: list[Callable[[], None]] = field(factory=list)
    num_replays: int = 0

    @torch.inference_mode()
    def replay(self) -> None:
        """See Graph."""
        self.num_replays += 1
        for call in self.calls:
            call()


class _Recorder(TorchDispatchMode):
    """Carries calls out, notes how to make them again, and keeps what they overwrite."""

    def __init__(self, graph: StandInGraph) -> None:
        super().__init__()
        self._graph = graph
        self._own: set[int] = set()  # addresses of memory that was made on the way
        self._kept: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See TorchDispatchMode."""
        keywords = kwargs or {}
        if func.overloadpacket in READS:
            raise RuntimeError(f"{func}: the host reads what the device computes while it is recorded")
        with self:
            if (made := func.decompose(*args, **keywords)) is not NotImplemented:
                return made
        if func._schema.is_mutable:
            self.keep(tree_leaves((args, keywords)))
        results = func(*args, **keywords)
        outputs = _tensors(tree_leaves(results))
        if func._schema.is_mutable:
            self._graph.calls.append(lambda: func(*args, **keywords))
        elif not any(each.alias_info is not None for each in func._schema.returns):
            self._own |= {each.untyped_storage().data_ptr() for each in outputs}

            def again() -> None:
                for output, new in zip(outputs, _tensors(tree_leaves(func(*args, **keywords))), strict=True):
                    output.copy_(new)

            if func.overloadpacket not in MEMORY:
                self._graph.calls.append(again)
        return results

    def keep(self, leaves: Iterable[Any]) -> None:
        """These may be overwritten."""
        for tensor in _tensors(leaves):
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in self._own and address not in self._kept:
                self._kept[address] = (storage, storage.clone())

    def restore(self) -> None:
        """Nothing has happened."""
        for storage, content in self._kept.values():
            storage.copy_(content)


def _tensors(leaves: Iterable[Any]) -> list[torch.Tensor]:
    return [each for each in leaves if isinstance(each, torch.Tensor)]


@torch.inference_mode()
def record(work: Callable[[], None]) -> StandInGraph:
    """Record work: torch's operations on the processor, and launches of triton's interpreter."""
    from triton.runtime.interpreter import InterpretedFunction

    graph = StandInGraph()
    recorder = _Recorder(graph)
    run = InterpretedFunction.run

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # what goes on inside is the kernel's
            recorder.keep((*args, *kwargs.values()))
            graph.calls.append(lambda: run(kernel, *args, **kwargs))
            return run(kernel, *args, **kwargs)

    with mock.patch.object(InterpretedFunction, "run", launch), recorder:
        work()
    recorder.restore()
    return graph


class _NoReads(TorchDispatchMode):
    """Refuses what a GPU's host would wait for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See TorchDispatchMode."""
        if func.overloadpacket in (*READS, torch.ops.aten.nonzero, torch.ops.aten.masked_select):
            raise RuntimeError(f"{func}: the host waits for what the device computes")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def refuse_reads() -> Iterator[None]:
    """Whatever waits for the device raises RuntimeError: on a GPU torch says so, here its operations do."""
    if not IS_INTERPRETED:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def launch(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # what goes on inside is the kernel's
            return run(kernel, *args, **kwargs)

    def refuse(tensor: torch.Tensor, *args: Any) -> Any:
        raise RuntimeError("the host waits for a copy of what the device computes")

    with (
        mock.patch.object(InterpretedFunction, "run", launch),
        mock.patch.object(torch.Tensor, "tolist", refuse),
        mock.patch.object(torch.Tensor, "cpu", refuse),
        _NoReads(),
    ):
        yield
