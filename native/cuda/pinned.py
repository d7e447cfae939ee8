"""Main memory that a GPU reaches directly, pinned as it is first used."""

from __future__ import annotations

import mmap
import sys
import threading
from collections.abc import Iterator
from typing import Any

from native.cuda.device import CudaDevice, CudaRefused, ffi

__all__ = ["PinnedArea"]

PIECE_BYTES = 32 << 20  # pinned at once, in about ten milliseconds


class PinnedArea:
    """Slots of main memory, for copies from and to a device.

    Pinning takes the memory at once, so it is done piece by piece, when a copy first comes to a piece. A
    piece that the driver does not want to pin is copied all the same, only slower; the first one is told to
    the operator, on standard error.

    Args:
        device: that copies.
        memory: anonymous; stays open until this is closed.
        slot_bytes: of one slot, a multiple of the system's page size; the memory is a whole number of slots.
    """

    def __init__(self, device: CudaDevice, memory: mmap.mmap, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self.num_slots = len(memory) // slot_bytes
        self._device = device
        self._hold = ffi.from_buffer("char[]", memory, require_writable=True)
        self._base = int(ffi.cast("uintptr_t", self._hold))
        self._slots_per_piece = max(1, PIECE_BYTES // slot_bytes)
        self._pieces: dict[int, bool] = {}  # those that were used: is it pinned?
        self._has_told = False
        self._lock = threading.Lock()  # two threads copy

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Slots [first, first + count) as runs that one copy may span, as first and count; pinned."""
        end = first + count
        while first < end:
            piece = first // self._slots_per_piece
            self._pin(piece)
            stop = min(end, (piece + 1) * self._slots_per_piece)  # no copy may span two pinned pieces
            yield first, stop - first
            first = stop

    def address(self, slot: int) -> int:
        """Where a slot lies."""
        return self._base + slot * self.slot_bytes

    def close(self) -> None:
        """Unpin everything; no copy is under way. Idempotent."""
        while self._pieces:
            piece, is_pinned = self._pieces.popitem()
            if is_pinned:
                self._device.call("cuMemHostUnregister", self._pointer(piece))
        if self._hold is not None:
            ffi.release(self._hold)
            self._hold = None

    def _pin(self, piece: int) -> None:
        with self._lock:
            if piece in self._pieces:
                return
            first = piece * self._slots_per_piece
            count = min(self._slots_per_piece, self.num_slots - first)
            try:
                self._device.call("cuMemHostRegister_v2", self._pointer(piece), count * self.slot_bytes, 0)
            except CudaRefused as error:
                self._pieces[piece] = False
                if not self._has_told:
                    self._has_told = True
                    print(
                        f"main memory beside the GPU is not pinned, and copies there are slower: {error}",
                        file=sys.stderr,
                        flush=True,
                    )
            else:
                self._pieces[piece] = True

    def _pointer(self, piece: int) -> Any:
        return ffi.cast("void *", self.address(piece * self._slots_per_piece))
