"""The processor as a device."""

from __future__ import annotations

import mmap
import os
import platform
from pathlib import Path

import torch

from drivers.host_arena import HostArena, max_virtual_frames
from drivers.model.loader import ProgressCallback, load_reference, open_model
from drivers.model.native_loader import load_native
from drivers.model.native_transformer import explain_unfit
from drivers.model.transformer import Model
from drivers.ops.kv_pages import KVPages
from llmos.device import KVFormat, Load, Quality
from native.memory import available_memory_bytes

__all__ = ["CpuDriver"]

POOL_SHARE = 0.25  # of the memory that is available after the weights were loaded


class CpuDriver:
    """A `Backend` of some threads and a share of main memory.

    Args:
        num_threads: that share a step; 0: as many as processors that it may run on.
        cpus: processors to pin this process to, one for each thread where there are as many; empty: none in
            particular.
        native: run models on native/cpu where it can; else on the torch reference.

    Raises:
        OSError: there is no such processor.
    """

    kind = "cpu"

    def __init__(self, num_threads: int = 1, cpus: tuple[int, ...] = (), *, native: bool = True) -> None:
        if cpus:
            os.sched_setaffinity(0, cpus)
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self.memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        torch.set_num_threads(self.num_threads)
        self._processors = cpus if len(cpus) >= self.num_threads else ()
        self._native = native
        self._debug = os.environ.get("LLMOS_DEBUG") == "1"

    def describe(self) -> str:
        """See Backend."""
        return f"{_processor_name()}, {self.num_threads} of {os.cpu_count()} threads"

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Model, Quality | None]:
        """See Backend."""
        opened = open_model(load.path, load.max_model_len)
        if self._native and explain_unfit(opened.config) is None:
            return load_native(opened, load, self.num_threads, report, self._processors)
        return load_reference(opened, load, torch.device("cpu"), report), None

    @property
    def granularity_bytes(self) -> int:
        """See Backend: a page of the system."""
        return mmap.PAGESIZE

    def choose_pool_bytes(self) -> int:
        """See Backend. Frames take memory as they are first written, so an idle pool costs nothing."""
        return int(available_memory_bytes() * POOL_SHARE)

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """See Backend."""
        return max_virtual_frames(max_spaces, num_segments)

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> HostArena:
        """See Backend."""
        return HostArena(kv, num_frames, max_spaces, pages_per_space, debug=self._debug)

    def open_queue(self, model: Model, pages: KVPages, max_spaces: int) -> None:
        """See Backend: a processor is done with a step when it returns from it."""

    def close(self) -> None:
        """See Backend. There is nothing to give back."""

    def check_health(self) -> None:
        """See Backend. A processor recovers from every exception."""


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
