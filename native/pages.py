"""What every pool of frames and every range of pages has, whatever memory is behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["FramePool", "PageRange"]


class _Closable(ABC):
    """Has memory until it is closed, also as a context manager."""

    is_closed: bool

    @abstractmethod
    def close(self) -> None:
        """Give it back; closed already is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FramePool(_Closable):
    """All physical frames of a device, numbered from 0.

    Args:
        num_frames: at least 1.
        frame_bytes: a multiple of `granularity_bytes`.
        granularity_bytes: what the memory is given out in.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(self, num_frames: int, frame_bytes: int, granularity_bytes: int) -> None:
        if num_frames < 1:
            raise ValueError(f"a pool needs a frame, got {num_frames}")
        if frame_bytes < 1 or frame_bytes % granularity_bytes:
            raise ValueError(f"frame of {frame_bytes} bytes is not a multiple of {granularity_bytes}")
        self.num_frames = num_frames
        self.frame_bytes = frame_bytes
        self.size_bytes = num_frames * frame_bytes
        self.is_closed = False

    def check_open(self) -> None:
        """Raise ValueError when the pool is closed."""
        if self.is_closed:
            raise ValueError("the pool is closed")

    def check_frames(self, pfns: Sequence[int]) -> None:
        """Raise ValueError, naming it, when one of `pfns` is not a frame of this pool."""
        for pfn in pfns:
            if not 0 <= pfn < self.num_frames:
                raise ValueError(f"frame {pfn} is outside a pool of {self.num_frames}")

    def check_copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Raise ValueError, saying why, when sources[i] cannot be copied to targets[i]."""
        self.check_open()
        self.check_frames(sources)
        self.check_frames(targets)
        if any(source == target for source, target in zip(sources, targets, strict=True)):
            raise ValueError(f"a frame cannot be copied onto itself: {tuple(sources)} to {tuple(targets)}")


Pool = TypeVar("Pool", bound=FramePool)


class PageRange(_Closable, Generic[Pool]):
    """Contiguous addresses without memory, until frames of a pool are mapped at its pages.

    Args:
        pool: whose frames back it.
        num_pages: at least 1; a page is as large as a frame.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(self, pool: Pool, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"a range needs a page, got {num_pages}")
        self.pool = pool
        self.num_pages = num_pages
        self.size_bytes = num_pages * pool.frame_bytes
        self.is_closed = False

    def check_open(self) -> None:
        """Raise ValueError when the range or its pool is closed."""
        if self.is_closed or self.pool.is_closed:
            raise ValueError("the range or its pool is closed")

    def check_pairs(self, pages: Sequence[int], pfns: Sequence[int]) -> None:
        """Raise ValueError, saying why, when pages[i] cannot be backed by pfns[i]."""
        self.check_open()
        self.pool.check_frames(pfns)
        for page in pages:
            self.check_pages(page, 1)
        if len(pages) != len(pfns):
            raise ValueError(f"{len(pages)} pages for {len(pfns)} frames")

    def check_pages(self, first: int, count: int) -> None:
        """Raise ValueError, saying why, when pages [first, first + count) are not all of this range."""
        self.check_open()
        if count < 1 or first < 0 or first + count > self.num_pages:
            raise ValueError(f"pages {first} to {first + count} are outside a range of {self.num_pages}")
