"""Physical frames in a memfd, and reserved address ranges whose pages they back."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from native._cpu import ffi, lib
from native.pages import FramePool, PageRange

__all__ = ["MemoryPool", "ReservedRange", "count_mappings", "mapping_limit"]


class MemoryPool(FramePool):
    """All physical frames of a device: one memfd, and a direct map of it at a fixed address.

    A frame takes memory from its first write on. Close it, or use it as a context manager; whatever still
    points into it is then dangling.

    Args:
        num_frames: at least 1.
        frame_bytes: a multiple of the system's page size.

    Raises:
        ValueError: a size is out of range.
        OSError: the system refuses; the message says what was tried.
    """

    def __init__(self, num_frames: int, frame_bytes: int) -> None:
        super().__init__(num_frames, frame_bytes, mmap.PAGESIZE)
        self.fd = os.memfd_create("llmos-frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, self.size_bytes)
            # a frame that a file shrank away from under us would be SIGBUS
            fcntl.fcntl(
                self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            out = ffi.new("void **")
            _check(
                lib.llmos_map_file(self.fd, self.size_bytes, out), f"map a pool of {self.size_bytes} bytes"
            )
        except BaseException:
            os.close(self.fd)
            raise
        self._base = out[0]

    def buffer(self) -> Any:
        """The direct map: a writable buffer over all frames, valid until `close`."""
        self.check_open()
        return ffi.buffer(self._base, self.size_bytes)

    def copy_frames(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy frames one after the other.

        Raises:
            ValueError: a number is not a frame of this pool, or a frame is to be copied onto itself.
        """
        self.check_copy(sources, targets)
        lib.llmos_copy_frames(self._base, self.frame_bytes, len(sources), _array(sources), _array(targets))

    def close(self) -> None:
        """Unmap the frames and close the memfd; the memory goes with the last mapping. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self.fd)
            _check(lib.llmos_release(self._base, self.size_bytes), "unmap a pool")


class ReservedRange(PageRange[MemoryPool]):
    """Contiguous addresses without memory, until frames are mapped at its pages.

    Touching a page that is not mapped ends the process. Close it, or use it as a context manager.

    Args:
        pool: whose frames back it.
        num_pages: at least 1; a page is as large as a frame.

    Raises:
        ValueError: a size is out of range.
        OSError: the system refuses; the message says what was tried.
    """

    def __init__(self, pool: MemoryPool, num_pages: int) -> None:
        super().__init__(pool, num_pages)
        out = ffi.new("void **")
        _check(lib.llmos_reserve(self.size_bytes, out), f"reserve {self.size_bytes} bytes of address space")
        self._base = out[0]

    @property
    def base(self) -> Any:
        """Address of page 0; valid until `close`."""
        self.check_open()
        return self._base

    def buffer(self) -> Any:
        """A writable buffer over the whole range, valid until `close`."""
        return ffi.buffer(self.base, self.size_bytes)

    def map_frames(self, pages: Sequence[int], pfns: Sequence[int]) -> None:
        """Back pages[i] by pfns[i], replacing what was mapped there.

        Raises:
            ValueError: a page or frame is out of range; nothing was mapped.
            OSError: the system refuses (ENOMEM: too many mappings, see `mapping_limit`); the pages before the
                one it names are mapped.
        """
        self.check_pairs(pages, pfns)
        done = ffi.new("size_t *")
        error = lib.llmos_map_frames(
            self._base, self.pool.frame_bytes, self.pool.fd, len(pages), _array(pages), _array(pfns), done
        )
        if error:
            _check(error, f"map frame {pfns[done[0]]} at page {pages[done[0]]}")

    def unmap_pages(self, first: int, count: int) -> None:
        """Take the memory from pages [first, first + count); those without are fine.

        Raises:
            ValueError: a page is out of range.
            OSError: the system refuses.
        """
        self.check_pages(first, count)
        error = lib.llmos_unmap_pages(self._base, self.pool.frame_bytes, first, count)
        _check(error, f"unmap {count} pages from page {first} on")

    def close(self) -> None:
        """Give the addresses back. Idempotent."""
        if not self.is_closed:
            self.is_closed = True
            _check(lib.llmos_release(self._base, self.size_bytes), "release a reserved range")


def mapping_limit() -> int:
    """Most mappings that the system lets a process have."""
    return int(Path("/proc/sys/vm/max_map_count").read_text())


def count_mappings() -> int:
    """Mappings that this process has now."""
    with Path("/proc/self/maps").open("rb") as maps:
        return sum(1 for _ in maps)


def _array(values: Sequence[int]) -> Any:
    return ffi.new("uint64_t[]", values)


def _check(error: int, what: str) -> None:
    if error:
        raise OSError(error, f"cannot {what}: {os.strerror(error)}")
