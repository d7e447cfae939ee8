"""The processor as a device."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from drivers.arena import VirtualArena, max_virtual_frames
from drivers.model.loader import LoadedWeights
from drivers.model.native_transformer import NativeTransformer, explain_unfit
from drivers.model.transformer import Model, Transformer
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import KVFormat

__all__ = ["CpuDriver", "available_memory_bytes"]

POOL_SHARE = 0.25  # of the memory that is available after the weights were loaded
CGROUP = Path("/sys/fs/cgroup")


class CpuDriver:
    """A `Backend` of some threads and a share of main memory.

    Args:
        num_threads: that share a step; 0: as many as processors that it may run on.
        cpus: processors to pin this process to; empty: none in particular.
        native: run models on native/cpu where it can; else on the torch reference.

    Raises:
        OSError: there is no such processor.
    """

    kind = "cpu"
    torch_device = torch.device("cpu")

    def __init__(self, num_threads: int = 1, cpus: tuple[int, ...] = (), *, native: bool = True) -> None:
        if cpus:
            os.sched_setaffinity(0, cpus)
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        torch.set_num_threads(self.num_threads)
        self._native = native
        self._debug = os.environ.get("LLMOS_DEBUG") == "1"

    def describe(self) -> str:
        """See Backend."""
        return f"{_processor_name()}, {self.num_threads} of {os.cpu_count()} threads"

    def make_ops(self) -> Ops:
        """The operations of a model that does not run on native ones."""
        return ReferenceOps()

    def open_model(self, loaded: LoadedWeights) -> Model:
        """See Backend."""
        if self._native and explain_unfit(loaded.config) is None:
            return NativeTransformer(loaded, self.num_threads)
        return Transformer(loaded.config, loaded.weights, self.make_ops(), loaded.info, loaded.segments)

    def choose_pool_bytes(self) -> int:
        """See Backend. Frames take memory as they are first written, so an idle pool costs nothing."""
        return int(available_memory_bytes() * POOL_SHARE)

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """See Backend."""
        return max_virtual_frames(max_spaces, num_segments)

    def open_arena(
        self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int
    ) -> VirtualArena:
        """See Backend."""
        return VirtualArena(kv, num_frames, max_spaces, pages_per_space, debug=self._debug)

    def check_health(self) -> None:
        """See Backend. A processor recovers from every exception."""


def available_memory_bytes() -> int:
    """Memory that can be had without swapping: what the system has, or less under a container's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) << 10
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available  # no cgroup v2 here: the machine is ours
    return available if limit == "max" else min(available, max(0, int(limit) - used))


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
