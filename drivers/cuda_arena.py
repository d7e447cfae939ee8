"""The frames of a GPU: 2 MiB each, mapped where kernels expect them by the CUDA driver's own calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch

from drivers.device_tensor import tensor_over
from drivers.virtual_arena import VirtualArena
from llmos.device import KVFormat
from native.cuda.copier import CudaCopier
from native.cuda.device import CudaDevice
from native.cuda.mapper import CudaMapper
from native.cuda.paging import CudaPool, CudaRange

__all__ = ["CudaArena"]


class CudaArena(VirtualArena):
    """A `VirtualArena` of a GPU's memory. A mapping goes only after the last step with a row of its space.

    The first page of each segment always has a frame: launchers ask the driver about the address of a tensor
    before they hand it to a kernel, and about one without memory it knows nothing.

    Args:
        kv: format; frame_bytes is a multiple of the device's granularity.
        num_frames, max_spaces, pages_per_space, debug: see VirtualArena.
        device: whose memory.
        torch_device: the same, as torch calls it.

    Raises:
        CudaRefused: the device has too little memory, or too few addresses; nothing is kept.
    """

    def __init__(
        self,
        kv: KVFormat,
        num_frames: int,
        max_spaces: int,
        pages_per_space: int,
        *,
        device: CudaDevice,
        torch_device: torch.device,
        debug: bool = False,
    ) -> None:
        super().__init__(kv, num_frames, max_spaces, pages_per_space, debug=debug)
        self._last_steps = [0] * max_spaces  # for each space, whoever had it: the last with a row of it

        def stream() -> int:
            is_gpu = torch_device.type == "cuda"
            return torch.cuda.current_stream(torch_device).cuda_stream if is_gpu else 0

        with contextlib.ExitStack() as undo:
            self._frames = undo.enter_context(CudaPool(device, num_frames, kv.frame_bytes, stream))
            self._place = undo.enter_context(CudaRange(self._frames, self.num_pages, self._last_use))
            self._back_first_pages()
            mapper = CudaMapper(self._place)
            undo.pop_all()
        whole = tensor_over(self._place.base, self._place.size_bytes, torch_device)
        self.use(self._frames, self._place, mapper, whole)

    @property
    def memory(self) -> None:
        """See Arena: the host cannot touch it."""
        return None

    def open_copier(self) -> CudaCopier:
        """See Arena."""
        return CudaCopier(self._frames)

    def mark_step(self, asids: Iterable[int]) -> None:
        """See Arena."""
        number = self._frames.mark_step()
        for asid in asids:
            self._last_steps[asid] = number

    def _last_use(self, page: int) -> int:
        """The last step that may touch a page, by its number at the fence."""
        return self._last_steps[page % self._pages_per_segment // self.pages_per_space]

    def _unmap(self, asid: int) -> None:
        super()._unmap(asid)
        if asid == 0:
            self._back_first_pages()

    def _back_first_pages(self) -> None:
        """Any frames do: rows only reach pages that were mapped for them."""
        pages = range(0, self.num_pages, self._pages_per_segment)
        self._place.map_frames(pages, range(len(pages)))
