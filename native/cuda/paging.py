"""Physical frames of a GPU, and reserved address ranges whose pages they back.

The counterparts of `native.paging`, by the same names and with the same promises. A frame is one allocation;
it can be mapped at any number of places, which is how forks and prefixes share it. What is written at one of
them is seen at another one by whatever begins later: a step, or a copy behind it, but not the same kernel.

Source: Prabhu et al. 2024, "vAttention", arXiv:2405.04437.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from native.cuda.device import CudaDevice, CudaFault, CudaRefused, ffi
from native.cuda.fence import StepFence
from native.pages import FramePool, PageRange

__all__ = ["CudaPool", "CudaRange"]


class CudaPool(FramePool):
    """All physical frames of a device, and a direct map of them at a fixed address.

    Args:
        device: whose memory.
        num_frames: at least 1.
        frame_bytes: a multiple of the device's granularity, 2 MiB as a rule.
        stream: says on which stream steps are launched, by its handle; 0: the default one.

    Raises:
        ValueError: a size is out of range.
        CudaRefused: there is too little memory; nothing is kept.
    """

    def __init__(
        self, device: CudaDevice, num_frames: int, frame_bytes: int, stream: Callable[[], int] = lambda: 0
    ) -> None:
        super().__init__(num_frames, frame_bytes, device.granularity_bytes)
        self.device = device
        self.handles: list[int] = []
        self._stream = stream
        self._direct: CudaRange | None = None
        self._fence = StepFence(device)
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

    @property
    def fence(self) -> StepFence:
        """Where steps were launched; see `mark_step`."""
        return self._fence

    def mark_step(self) -> int:
        """A step was launched: what it may touch stays mapped until it is over. Returns its number."""
        return self._fence.mark(self._stream())

    def copy_frames(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy frames one after the other, behind what was launched before and ahead of what comes after.

        Raises:
            ValueError: a number is not a frame of this pool, or a frame is to be copied onto itself.
        """
        self.check_copy(sources, targets)
        stream = ffi.cast("CUstream", self._stream())
        for source, target in zip(sources, targets, strict=True):
            self.device.call(
                "cuMemcpyDtoDAsync_v2", self.address(target), self.address(source), self.frame_bytes, stream
            )

    def address(self, pfn: int) -> int:
        """Where a frame lies in the direct map."""
        self.check_open()
        assert self._direct is not None
        return self._direct.base + pfn * self.frame_bytes

    def close(self) -> None:
        """Wait for the device and give the memory back. Close ranges first. Idempotent."""
        if not self.is_closed:
            self.device.synchronize()
            if self._direct is not None:
                self._direct.close()
            self.is_closed = True
            while self.handles:
                self.device.call("cuMemRelease", self.handles.pop())
            self._fence.close()


class CudaRange(PageRange[CudaPool]):
    """Contiguous device addresses without memory, until frames are mapped at its pages. Any thread may map.

    A kernel that touches a page without a mapping ends the use of the device. So one goes, or gives way
    to another, only after the last step that could touch it is over.

    Args:
        pool: whose frames back it.
        num_pages: at least 1; a page is as large as a frame.
        last_use: of a page: the number that the last step which may touch it has at the pool's fence; None:
            whatever was launched may touch any page.

    Raises:
        ValueError: a size is out of range.
        CudaRefused: there are no such addresses.
    """

    def __init__(self, pool: CudaPool, num_pages: int, last_use: Callable[[int], int] | None = None) -> None:
        super().__init__(pool, num_pages)
        self._last_use = last_use or (lambda page: pool.fence.num_marked)
        self._frames: dict[int, int] = {}  # by page: what is mapped there
        self._lock = threading.Lock()  # held for driver calls on pages, never while waiting for a step
        base = ffi.new("CUdeviceptr *")
        pool.device.call("cuMemAddressReserve", base, self.size_bytes, 0, 0, 0)
        self._base = int(base[0])

    @property
    def base(self) -> int:
        """Address of page 0; valid until `close`."""
        self.check_open()
        return self._base

    def last_use(self, pages: Iterable[int]) -> int:
        """The number of the last step that was launched until now and may touch one of some pages."""
        return max(map(self._last_use, pages), default=0)

    def map_frames(self, pages: Sequence[int], pfns: Sequence[int], after: int | None = None) -> None:
        """Back pages[i] by pfns[i], replacing what was mapped there; the last of equal pages counts.

        Args:
            pages: of this range.
            pfns: of its pool.
            after: the last step that may touch what is replaced; None: `last_use` of now.

        Raises:
            ValueError: a page or frame is out of range; nothing was mapped.
            CudaRefused: the driver refuses; of these pages some are mapped, to what they should be, or not.
        """
        self.check_pairs(pages, pfns)
        wanted = dict(zip(pages, pfns, strict=True))
        wanted = {page: pfn for page, pfn in wanted.items() if self._frames.get(page) != pfn}
        self._unmap([page for page in wanted if page in self._frames], after)
        with self._lock:
            for first, count in _runs(wanted):
                self._map_run(first, [wanted[page] for page in range(first, first + count)])

    def unmap_pages(self, first: int, count: int) -> None:
        """Take the memory from pages [first, first + count); those without are fine.

        Raises:
            ValueError: a page is out of range.
            CudaRefused: the driver refuses.
        """
        self.check_pages(first, count)
        self._unmap([page for page in range(first, first + count) if page in self._frames])

    def close(self) -> None:
        """Wait for steps that may touch them, unmap all pages and give the addresses back. Idempotent."""
        if not self.is_closed:
            self._unmap(sorted(self._frames))
            self.is_closed = True
            self.pool.device.call("cuMemAddressFree", self._base, self.size_bytes)

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

    def _unmap(self, pages: list[int], after: int | None = None) -> None:
        if not pages:
            return
        try:
            self.pool.fence.wait(self.last_use(pages) if after is None else after)
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


def _runs(pages: Sequence[int] | dict[int, int]) -> Iterator[tuple[int, int]]:
    """The runs of adjacent pages, as first and count."""
    ordered = sorted(pages)
    begin = 0
    for index in range(1, len(ordered) + 1):
        if index == len(ordered) or ordered[index] != ordered[index - 1] + 1:
            yield ordered[begin], index - begin
            begin = index
