"""Physical frames of a GPU, and reserved address ranges whose pages they back.

The counterparts of `native.paging`, by the same names and with the same promises. A frame is one allocation;
it can be mapped at any number of places, which is how forks and prefixes share it.

Source: Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

from native.cuda.device import CudaDevice, CudaFault, CudaRefused, ffi
from native.cuda.fence import StepFence

__all__ = ["CudaPool", "CudaRange"]


class CudaPool:
    """All physical frames of a device, and a direct map of them at a fixed address.

    Args:
        device: whose memory.
        num_frames: at least 1.
        frame_bytes: a multiple of the device's granularity, 2 MiB as a rule.

    Raises:
        ValueError: a size is out of range.
        CudaRefused: there is too little memory; nothing is kept.
    """

    def __init__(self, device: CudaDevice, num_frames: int, frame_bytes: int) -> None:
        if num_frames < 1:
            raise ValueError(f"a pool needs a frame, got {num_frames}")
        if frame_bytes < 1 or frame_bytes % device.granularity_bytes:
            raise ValueError(
                f"frame of {frame_bytes} bytes is not a multiple of the device's {device.granularity_bytes}"
            )
        self.device = device
        self.num_frames = num_frames
        self.frame_bytes = frame_bytes
        self.size_bytes = num_frames * frame_bytes
        self.is_closed = False
        self.handles: list[int] = []
        self._direct: CudaRange | None = None
        self.fence = StepFence(device)
        try:
            handle = ffi.new("CUmemGenericAllocationHandle *")
            for _ in range(num_frames):
                device.call("cuMemCreate", handle, frame_bytes, device.memory, 0)
                self.handles.append(int(handle[0]))
            self._direct = CudaRange(self, num_frames)
            self._direct.map_frames(range(num_frames), range(num_frames))
        except BaseException:
            self.close()
            raise

    def copy_frames(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy frames one after the other, behind what was launched before and ahead of what comes after.

        Raises:
            ValueError: a number is not a frame of this pool, or a frame is to be copied onto itself.
        """
        self.check_frames(sources)
        self.check_frames(targets)
        pairs = list(zip(sources, targets, strict=True))
        if any(source == target for source, target in pairs):
            raise ValueError(f"a frame cannot be copied onto itself: {tuple(sources)} to {tuple(targets)}")
        for source, target in pairs:
            self.device.call(
                "cuMemcpyDtoDAsync_v2",
                self._address(target),
                self._address(source),
                self.frame_bytes,
                ffi.NULL,
            )

    def read_frames(self, pfns: Sequence[int], to: Any) -> None:
        """Copy frames into main memory, one behind the other. Blocks."""
        self.check_frames(pfns)
        start = ffi.from_buffer("char[]", to, require_writable=True)
        for index, pfn in enumerate(pfns):
            self.device.call(
                "cuMemcpyDtoH_v2", start + index * self.frame_bytes, self._address(pfn), self.frame_bytes
            )

    def write_frames(self, pfns: Sequence[int], data: Any) -> None:
        """Copy frames from main memory. Blocks."""
        self.check_frames(pfns)
        start = ffi.from_buffer("char[]", data)
        for index, pfn in enumerate(pfns):
            self.device.call(
                "cuMemcpyHtoD_v2", self._address(pfn), start + index * self.frame_bytes, self.frame_bytes
            )

    def check_frames(self, pfns: Sequence[int]) -> None:
        """Raise ValueError, naming it, when one of `pfns` is not a frame of this pool."""
        for pfn in pfns:
            if not 0 <= pfn < self.num_frames:
                raise ValueError(f"frame {pfn} is outside a pool of {self.num_frames}")

    def close(self) -> None:
        """Wait for the device and give the memory back. Close ranges first. Idempotent."""
        if not self.is_closed:
            self.device.synchronize()
            if self._direct is not None:
                self._direct.close()
            self.is_closed = True
            while self.handles:
                self.device.call("cuMemRelease", self.handles.pop())
            self.fence.close()

    def _address(self, pfn: int) -> int:
        if self.is_closed or self._direct is None:
            raise ValueError("the pool is closed")
        return self._direct.base + pfn * self.frame_bytes


class CudaRange:
    """Contiguous device addresses without memory, until frames are mapped at its pages. Any thread may map.

    A kernel that touches a page without a mapping ends the use of the device. So one goes, or gives way
    to another, only after the last step that was marked at the pool's fence is over.

    Args:
        pool: whose frames back it.
        num_pages: at least 1; a page is as large as a frame.

    Raises:
        ValueError: a size is out of range.
        CudaRefused: there are no such addresses.
    """

    def __init__(self, pool: CudaPool, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a range needs a page, got {num_pages}")
        self.pool = pool
        self.num_pages = num_pages
        self.size_bytes = num_pages * pool.frame_bytes
        self._frames: dict[int, int] = {}  # by page: what is mapped there
        self._lock = threading.Lock()  # held for driver calls on pages, never while waiting for a step
        base = ffi.new("CUdeviceptr *")
        pool.device.call("cuMemAddressReserve", base, self.size_bytes, 0, 0, 0)
        self._base: int | None = int(base[0])

    @property
    def base(self) -> int:
        """Address of page 0; valid until `close`."""
        if self._base is None or self.pool.is_closed:
            raise ValueError("the range or its pool is closed")
        return self._base

    def map_frames(self, pages: Sequence[int], pfns: Sequence[int]) -> None:
        """Back pages[i] by pfns[i], replacing what was mapped there; the last of equal pages counts.

        Raises:
            ValueError: a page or frame is out of range; nothing was mapped.
            CudaRefused: the driver refuses; of these pages some are mapped, to what they should be, or not.
        """
        self.check_pairs(pages, pfns)
        wanted = dict(zip(pages, pfns, strict=True))
        wanted = {page: pfn for page, pfn in wanted.items() if self._frames.get(page) != pfn}
        self._unmap([page for page in wanted if page in self._frames])
        with self._lock:
            for first, count in _runs(wanted):
                self._map_run(first, [wanted[page] for page in range(first, first + count)])

    def unmap_pages(self, first: int, count: int) -> None:
        """Take the memory from pages [first, first + count); those without are fine.

        Raises:
            ValueError: a page is out of range.
            CudaRefused: the driver refuses.
        """
        self._check_pages(first, count)
        self._unmap([page for page in range(first, first + count) if page in self._frames])

    def check_pairs(self, pages: Sequence[int], pfns: Sequence[int]) -> None:
        """Raise ValueError, saying why, when pages[i] cannot be backed by pfns[i]."""
        self.pool.check_frames(pfns)
        for page in pages:
            self._check_pages(page, 1)
        if len(pages) != len(pfns):
            raise ValueError(f"{len(pages)} pages for {len(pfns)} frames")

    def close(self) -> None:
        """Wait for the last step, unmap everything and give the addresses back. Idempotent."""
        if self._base is not None:
            self._unmap(sorted(self._frames))
            base, self._base = self._base, None
            self.pool.device.call("cuMemAddressFree", base, self.size_bytes)

    def _map_run(self, first: int, pfns: list[int]) -> None:
        """Map adjacent pages; access is set for all of them at once, because that is the dear call."""
        call, size = self.pool.device.call, self.pool.frame_bytes
        num_mapped = 0
        try:
            for pfn in pfns:
                call("cuMemMap", self._address(first + num_mapped), size, 0, self.pool.handles[pfn], 0)
                num_mapped += 1
            call("cuMemSetAccess", self._address(first), num_mapped * size, self.pool.device.access, 1)
        except CudaRefused:
            # a page that is mapped and cannot be accessed would be taken for a good one
            if num_mapped:
                call("cuMemUnmap", self._address(first), num_mapped * size)
            raise
        self._frames.update(enumerate(pfns, first))

    def _unmap(self, pages: list[int]) -> None:
        if not pages:
            return
        try:
            self.pool.fence.wait()
        except CudaFault:
            self._frames.clear()  # the driver has dropped them with the context
            raise
        with self._lock:
            for first, count in _runs(pages):
                size = count * self.pool.frame_bytes
                self.pool.device.call("cuMemUnmap", self._address(first), size)
                for page in range(first, first + count):
                    del self._frames[page]

    def _address(self, page: int) -> int:
        return self.base + page * self.pool.frame_bytes

    def _check_pages(self, first: int, count: int) -> None:
        self.base  # noqa: B018  raises when closed
        if count < 1 or first < 0 or first + count > self.num_pages:
            raise ValueError(f"pages {first} to {first + count} are outside a range of {self.num_pages}")


def _runs(pages: Sequence[int] | dict[int, int]) -> Iterator[tuple[int, int]]:
    """The runs of adjacent pages, as first and count."""
    ordered = sorted(pages)
    begin = 0
    for index in range(1, len(ordered) + 1):
        if index == len(ordered) or ordered[index] != ordered[index - 1] + 1:
            yield ordered[begin], index - begin
            begin = index
