"""An NVIDIA GPU as a device."""

from __future__ import annotations

import torch

from drivers.arena import TableArena
from drivers.backend import DeviceUnavailable
from drivers.model.loader import ProgressCallback, load_reference, open_model
from drivers.model.transformer import Model
from llmos.device import KVFormat, Load, Quality

__all__ = ["CudaDriver", "describe"]

POOL_SHARE = 0.8  # of the memory that is free after the weights were loaded; the rest is for activations


class CudaDriver:
    """A `Backend` of one GPU. It can be made where there is none: then a load says so.

    Args:
        index: which GPU.
        num_threads: for the host's side of torch.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, num_threads: int = 1) -> None:
        self.index = index
        self.num_threads = num_threads
        torch.set_num_threads(num_threads)
        self.memory_bytes = 0
        if explain_missing(index) is None:
            self.memory_bytes = torch.cuda.get_device_properties(index).total_memory

    @property
    def torch_device(self) -> torch.device:
        """See Backend."""
        if (reason := explain_missing(self.index)) is not None:
            raise DeviceUnavailable(reason)
        return torch.device("cuda", self.index)

    def describe(self) -> str:
        """See Backend."""
        return describe(self.index)

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Model, Quality | None]:
        """See Backend."""
        device = self.torch_device
        return load_reference(open_model(load.path, load.max_model_len), load, device, report), None

    def choose_pool_bytes(self) -> int:
        """See Backend."""
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(self.torch_device)
        return int(free_bytes * POOL_SHARE)

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """See Backend."""
        return None

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> TableArena:
        """See Backend."""
        return TableArena(kv, num_frames, max_spaces, pages_per_space, self.torch_device)

    def check_health(self) -> None:
        """See Backend. After an illegal access every later call fails, and only a new process helps."""
        torch.cuda.synchronize(self.torch_device)
        torch.cuda.empty_cache()


def explain_missing(index: int) -> str | None:
    """Say why there is no such GPU, or None when there is."""
    if torch.version.cuda is None:
        return f"cuda:{index} is not there: torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"cuda:{index} is not there: no NVIDIA driver or no GPU was found"
    if index >= torch.cuda.device_count():
        return f"cuda:{index} is not there: this machine has {torch.cuda.device_count()} GPUs"
    return None


def describe(index: int = 0) -> str:
    """One line about a GPU, or about why there is none. Never raises."""
    if (reason := explain_missing(index)) is not None:
        return reason
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, {properties.total_memory >> 30} GiB, compute capability {capability}"
