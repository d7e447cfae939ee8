"""Copies of frames that no thread of the host can touch: out to pinned memory, or in from it.

Straight from or to the host area, where that is the other end; else through one of a few buffers, from which
native threads write to a file, or into which they read one, checksums and all. A copy that does not fit a
buffer goes piece by piece, and while one piece is on the bus another one is on the disk.
"""

from __future__ import annotations

import mmap
import select
from collections import deque
from enum import Enum, auto

import attrs

from drivers.areas import CopyRefused, open_host_area
from drivers.running_copy import RunningCopy
from llmos.device import CopyDone, Place
from native.cuda.copier import CudaCopier, CudaCopy
from native.cuda.pinned import PinnedArea
from native.transfer import Ended, File, Memory, Transfer, TransferEngine

__all__ = ["DeviceCopies"]

NUM_BUFFERS = 4
BUFFER_BYTES = 32 << 20  # of each one; a frame, where that is larger


class _Stage(Enum):
    """What a piece goes through, in this order, as far as it needs it."""

    OUT = auto()  # from the device to a buffer, or the host area
    FILE = auto()  # by threads, between a buffer and a file, or a host area that is checked
    IN = auto()  # from a buffer, or the host area, to the device


@attrs.define(eq=False)
class _Piece:
    """Some slots of a copy, and where they have come to."""

    running: RunningCopy
    far: Memory | File | None  # the end that threads can touch
    indices: list[int]  # into the copy's slots; those at fault leave
    todo: deque[_Stage]
    needs_buffer: bool
    buffer: int | None = None  # which one it has
    buffer_slots: dict[int, int] = attrs.field(factory=dict)  # by index

    def slots(self, place: Place) -> list[int]:
        """The piece's slots at one end of the copy."""
        return [place.slots[index] for index in self.indices]


class DeviceCopies:
    """What a driver's copies from and to such a device go through. One user; close it before the arena.

    Args:
        copier: of the device; closed with this.
        engine: whose threads move what is in the buffers; it tells of them in `take`.
        host: the host area; None: there is none.
        slot_bytes: of a frame, and of a slot in every tier.
        piece_bytes: copy in pieces of so many bytes; 0: whole runs.
    """

    def __init__(
        self,
        copier: CudaCopier,
        engine: TransferEngine,
        host: mmap.mmap | None,
        slot_bytes: int,
        piece_bytes: int,
    ) -> None:
        self._copier = copier
        self._engine = engine
        self._slot_bytes = slot_bytes
        self._piece_bytes = piece_bytes
        self._host = copier.open_area(host, slot_bytes) if host is not None else None
        self._memory: mmap.mmap | None = None  # of the buffers
        self._buffers: PinnedArea | None = None
        self._slots_per_buffer = max(1, BUFFER_BYTES // slot_bytes)
        self._free = list(range(NUM_BUFFERS))
        self._waiting: deque[_Piece] = deque()  # for a buffer
        self._by_threads: dict[int, _Piece] = {}  # by the engine's id
        self._by_copier: dict[CudaCopy, _Piece] = {}
        self._num_pieces: dict[RunningCopy, int] = {}  # that have not ended
        self._done: list[CopyDone] = []
        self._poll = select.epoll()
        for each in (copier, engine):
            self._poll.register(each.fileno(), select.EPOLLIN)

    @property
    def num_running(self) -> int:
        """Copies that were begun and not collected."""
        return len(self._num_pieces) + len(self._done)

    def fileno(self) -> int:
        """A descriptor that polls as readable when something has ended, here or in the engine."""
        return self._poll.fileno()

    def begin(self, running: RunningCopy, source: Memory | File | None, target: Memory | File | None) -> None:
        """Begin a copy; None is the device.

        Raises:
            CopyRefused: it cannot be carried out.
            OSError: there is no memory for buffers.
            CudaFault: the device is beyond use.
        """
        copy, indices = running.copy, running.indices
        if source is None and target is None and copy.checksums:
            raise CopyRefused("a copy within the device cannot be checked")
        is_direct = "host" in (copy.source.tier, copy.target.tier) and not copy.checksums
        todo = [_Stage.OUT] if source is None else []
        if not is_direct and (source or target) is not None:
            todo.append(_Stage.FILE)
        todo += [_Stage.IN] if target is None else []
        if not is_direct and self._buffers is None:
            self._memory = open_host_area(NUM_BUFFERS * self._slots_per_buffer * self._slot_bytes)
            self._buffers = self._copier.open_area(self._memory, self._slot_bytes)
        size = len(indices) if is_direct else self._slots_per_buffer
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            self._waiting.append(_Piece(running, source or target, part, deque(todo), not is_direct))
        self._num_pieces[running] = -(-len(indices) // size)
        self._start_waiting()

    def take(self, ended: Ended) -> None:
        """The engine's threads have ended something."""
        piece = self._by_threads.pop(ended.id)
        piece.running.take(piece.indices, ended)
        self._go_on(piece)

    def collect(self) -> list[CopyDone]:
        """The copies that have ended since the last call. Raises CudaFault."""
        for job in self._copier.collect():
            piece = self._by_copier.pop(job)
            if job.error is not None:
                for index in piece.indices:
                    piece.running.fail(index, str(job.error))
            self._go_on(piece)
        done, self._done = self._done, []
        return done

    def wait(self) -> None:
        """Wait until nothing is on the bus. Blocks."""
        self._copier.wait()

    def close(self) -> None:
        """Give up what was not copied yet, and give everything back; the engine is closed. Idempotent."""
        self._poll.close()
        self._copier.close()
        for area in (self._host, self._buffers):
            if area is not None:
                area.close()
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        for running in self._num_pieces:
            running.close()
        self._num_pieces.clear()

    def _start_waiting(self) -> None:
        """Start pieces, in order, while there are buffers."""
        while self._waiting and (self._free or not self._waiting[0].needs_buffer):
            piece = self._waiting.popleft()
            if piece.needs_buffer:
                piece.buffer = self._free.pop()
                first = piece.buffer * self._slots_per_buffer
                piece.buffer_slots = {index: first + i for i, index in enumerate(piece.indices)}
            self._go_on(piece)

    def _go_on(self, piece: _Piece) -> None:
        """Begin the next stage of a piece, or end it."""
        running = piece.running
        piece.indices = [index for index in piece.indices if index not in running.faults]
        if piece.indices and piece.todo:
            stage = piece.todo.popleft()
            if stage is _Stage.FILE:
                self._by_threads[self._engine.submit(self._transfer(piece))] = piece
            else:
                job = self._device_copy(piece, is_out=stage is _Stage.OUT)
                self._copier.submit(job)
                self._by_copier[job] = piece
            return
        if piece.buffer is not None:
            self._free.append(piece.buffer)
        self._num_pieces[running] -= 1
        if not self._num_pieces[running]:
            del self._num_pieces[running]
            self._done.append(running.finish())
        self._start_waiting()

    def _device_copy(self, piece: _Piece, *, is_out: bool) -> CudaCopy:
        """All slots of a piece, from the device or to it."""
        copy = piece.running.copy
        device, other = (copy.source, copy.target) if is_out else (copy.target, copy.source)
        if piece.buffer is None:
            area, slots = self._host, piece.slots(other)
        else:
            area, slots = self._buffers, self._in_buffer(piece)
        assert area is not None
        return CudaCopy(
            is_out=is_out, pfns=piece.slots(device), area=area, slots=slots, piece_bytes=self._piece_bytes
        )

    def _transfer(self, piece: _Piece) -> Transfer:
        """All slots of a piece, between its buffer and the end that threads can touch."""
        assert piece.far is not None
        assert self._memory is not None
        copy, near = piece.running.copy, Memory(self._memory)
        is_out = copy.source.tier == "device"
        far_slots, near_slots = piece.slots(copy.target if is_out else copy.source), self._in_buffer(piece)
        return Transfer(
            source=near if is_out else piece.far,
            target=piece.far if is_out else near,
            slot_bytes=self._slot_bytes,
            source_slots=near_slots if is_out else far_slots,
            target_slots=far_slots if is_out else near_slots,
            expected=piece.running.expected(piece.indices),
            wants_checksums=copy.target.tier in ("disk", "file"),
            piece_bytes=self._piece_bytes,
        )

    def _in_buffer(self, piece: _Piece) -> list[int]:
        return [piece.buffer_slots[index] for index in piece.indices]
