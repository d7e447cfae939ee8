"""An NVIDIA GPU as a device."""

from __future__ import annotations

import os

import torch

from drivers.backend import DeviceUnavailable
from drivers.cuda_arena import CudaArena
from drivers.model.int8_loader import load_int8
from drivers.model.launch import DirectLauncher, GraphLauncher
from drivers.model.loader import ProgressCallback, load_reference, open_model
from drivers.model.step_queue import StepQueue
from drivers.model.transformer import Model, Transformer
from drivers.ops.interface import Ops
from drivers.ops.kv_pages import KVPages
from drivers.ops.reference import ReferenceOps
from llmos.device import KVFormat, Load, Quality
from native.cuda.device import CudaDevice, CudaRefused

__all__ = ["CudaDriver"]

POOL_SHARE = 0.8  # of the memory that is free after the weights were loaded; the rest is for activations


class CudaDriver:
    """A `Backend` of one GPU. It can be made where there is none: then a load says so.

    Memory is had by the CUDA driver's own calls, computations by torch. A driver library that knows of no
    multiprocessors is a stand-in whose frames are main memory: there torch computes on the processor.

    Args:
        index: which GPU.
        num_threads: for the host's side of torch.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, num_threads: int = 1) -> None:
        self.index = index
        self.num_threads = num_threads
        torch.set_num_threads(num_threads)
        self._debug = os.environ.get("LLMOS_DEBUG") == "1"
        self._opened: CudaDevice | None = None
        self._reason = ""  # why there is no such device
        try:
            self._opened = CudaDevice(index)
            self._reason = explain_torch(self._opened) or ""
            if self._opened.num_multiprocessors and not self._reason:
                torch.cuda.set_device(index)  # where triton launches
        except CudaRefused as error:
            self._reason = f"cuda:{index} is not there: {error}"
        self.memory_bytes = 0 if self._opened is None or self._reason else self._opened.total_bytes

    @property
    def torch_device(self) -> torch.device:
        """Where torch computes. Raises DeviceUnavailable."""
        return torch.device("cuda", self.index) if self.is_gpu else torch.device("cpu")

    @property
    def is_gpu(self) -> bool:
        """False of a stand-in. Raises DeviceUnavailable."""
        return self._device.num_multiprocessors > 0

    @property
    def granularity_bytes(self) -> int:
        """See Backend: 2 MiB as a rule."""
        return self._device.granularity_bytes

    def describe(self) -> str:
        """See Backend."""
        return self._reason or describe(self._device)

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[Model, Quality | None]:
        """See Backend."""
        device, opened = self.torch_device, open_model(load.path, load.max_model_len)
        if load.weights in ("w8a8", "w4a8"):
            return load_int8(opened, load, device, self.num_threads, report, self._choose_ops()), None
        return load_reference(opened, load, device, report, self._choose_ops()), None

    def choose_pool_bytes(self) -> int:
        """See Backend."""
        if self.is_gpu:
            torch.cuda.empty_cache()
        return int(self._device.free_bytes * POOL_SHARE)

    def max_frames(self, max_spaces: int, num_segments: int) -> int | None:
        """See Backend."""
        return None

    def open_arena(self, kv: KVFormat, num_frames: int, max_spaces: int, pages_per_space: int) -> CudaArena:
        """See Backend."""
        return CudaArena(
            kv,
            num_frames,
            max_spaces,
            pages_per_space,
            device=self._device,
            torch_device=self.torch_device,
            debug=self._debug,
        )

    def open_queue(self, model: Model, pages: KVPages, max_spaces: int) -> StepQueue:
        """See Backend. Steps of lone tokens are recorded as graphs on a GPU."""
        assert isinstance(model, Transformer)
        launcher = (GraphLauncher if self.is_gpu else DirectLauncher)(self.torch_device)
        return StepQueue(model, pages, max_spaces, launcher)

    def check_health(self) -> None:
        """See Backend. After an illegal access every later call fails, and only a new process helps."""
        self._device.synchronize()
        if self.is_gpu:
            torch.cuda.synchronize(self.torch_device)
            torch.cuda.empty_cache()

    def close(self) -> None:
        """See Backend."""
        if self._opened is not None:
            self._opened.close()

    def _choose_ops(self) -> Ops:
        """Triton's on a GPU, and on a stand-in where its interpreter is on; else torch's."""
        if not self.is_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            return ReferenceOps()
        try:
            from drivers.triton_ops.ops import TritonOps
        except ImportError as error:
            raise DeviceUnavailable(f"cuda:{self.index} needs the extra cuda: {error}") from None
        return TritonOps()

    @property
    def _device(self) -> CudaDevice:
        if self._reason or self._opened is None:
            raise DeviceUnavailable(self._reason)
        return self._opened


def explain_torch(device: CudaDevice) -> str | None:
    """Say why torch cannot compute on a device that the CUDA driver has, or None when it can."""
    name = f"cuda:{device.index}"
    if not device.num_multiprocessors:
        return None
    if torch.version.cuda is None:
        return f"{name} is there, and torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available() or device.index >= torch.cuda.device_count():
        return f"{name} is there, and torch {torch.__version__} (CUDA {torch.version.cuda}) does not find it"
    return None


def describe(device: CudaDevice) -> str:
    """One line about a device."""
    if not device.num_multiprocessors:
        return f"{device.name}: torch computes on the processor"
    capability = ".".join(map(str, device.capability))
    return f"{device.name}, {device.total_bytes >> 30} GiB, compute capability {capability}"
