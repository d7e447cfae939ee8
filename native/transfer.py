"""The transfer engine: slots moved between memory and files by native threads, beside whatever else runs.

Every copy between tiers of memory goes through it. See native/cpu/transfer.c for how threads share the work,
and native/cpu/slot_copy.c for how they copy.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from attrs import field, frozen

from native._cpu import ffi, lib

__all__ = [
    "CHECKSUM",
    "END_OF_FILE",
    "Ended",
    "File",
    "Memory",
    "Transfer",
    "TransferEngine",
    "explain_error",
]

CHECKSUM: int = lib.LLMOS_TRANSFER_CHECKSUM
END_OF_FILE: int = lib.LLMOS_TRANSFER_END

NUM_THREADS = 2  # one saturates neither memory nor a disk; more than two take turns at the same bus
MAX_ACTIVE = 8  # jobs in turn: small ones pass large ones, and still the first to come end first


@frozen(eq=False)
class Memory:
    """A contiguous buffer that holds slots from its first byte on."""

    buffer: Any
    num_bytes: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "num_bytes", memoryview(self.buffer).nbytes)


@frozen
class File:
    """A file that can be read or written at any offset; slot n begins at byte n * slot_bytes."""

    fd: int


@frozen(eq=False, kw_only=True)
class Transfer:
    """One job: slot source_slots[i] of one end goes to slot target_slots[i] of the other.

    No slot of `target` is named twice, and none overlaps a slot that is read. Both ends stay as they are,
    open and mapped, until the job is collected.
    """

    source: Memory | File
    target: Memory | File
    slot_bytes: int
    source_slots: Sequence[int]
    target_slots: Sequence[int]
    expected: Sequence[int] = ()  # CRC-32C of each slot as it should be; empty: not checked
    wants_checksums: bool = False
    piece_bytes: int = 0  # each copied by a call of its own, for comparison; 0: whole runs


@frozen
class Ended:
    """What became of a job. Slots that are not in `errors` are whole."""

    id: int
    seconds: float  # from its first slot to its last
    checksums: tuple[int, ...]  # CRC-32C of each slot, where they were wanted
    errors: dict[int, int]  # index into the job's slots: errno, CHECKSUM or END_OF_FILE


class TransferEngine:
    """A few threads that copy, never holding the interpreter's lock. One user.

    Close it, or use it as a context manager.

    Args:
        num_threads: that copy.
        max_active: jobs that take turns; those beyond it wait until one of them has ended.
        niceness: of the threads, added to that of the program; 0 to 19.

    Raises:
        OSError: the system has no more threads or file descriptors.
    """

    def __init__(
        self, num_threads: int = NUM_THREADS, max_active: int = MAX_ACTIVE, niceness: int = 0
    ) -> None:
        if num_threads < 1 or max_active < 1 or not 0 <= niceness <= 19:
            raise ValueError(f"{num_threads} threads, {max_active} jobs in turn, niceness {niceness}")
        out = ffi.new("llmos_transfers **")
        if error := lib.llmos_transfers_open(num_threads, max_active, niceness, out):
            raise OSError(error, f"cannot start {num_threads} threads that copy: {os.strerror(error)}")
        self._engine = out[0]
        self._jobs: dict[int, tuple[int, Any, tuple[Any, ...]]] = {}  # by address: id, job, what it points to
        self._next_id = 0

    @property
    def num_jobs(self) -> int:
        """Jobs that were submitted and not collected."""
        return len(self._jobs)

    def fileno(self) -> int:
        """A descriptor that polls as readable when there may be a job to collect."""
        return int(lib.llmos_transfers_event(self._open_engine()))

    def submit(self, transfer: Transfer) -> int:
        """Take a job on, without waiting for anything; returns its id.

        Raises:
            ValueError: lengths differ, a slot is outside the memory, or the target cannot be written to.
        """
        engine = self._open_engine()
        slots = [_checked_slots(transfer, side) for side in ("source", "target")]
        count = len(transfer.source_slots)
        if not len(transfer.target_slots) == count == (len(transfer.expected) or count):
            raise ValueError(
                f"{count} slots to {len(transfer.target_slots)}, with {len(transfer.expected)} checksums"
            )
        job = ffi.new("llmos_transfer *")
        expected = (
            ffi.from_buffer("uint32_t[]", array("I", transfer.expected)) if transfer.expected else ffi.NULL
        )
        checksums = ffi.new("uint32_t[]", count) if transfer.wants_checksums else ffi.NULL
        errors, order = ffi.new("int32_t[]", count), ffi.new("size_t[]", count)
        source_fd, source = _pointer(transfer.source, is_target=False)
        target_fd, target = _pointer(transfer.target, is_target=True)
        job.source_fd, job.target_fd, job.source, job.target = source_fd, target_fd, source, target
        job.source_slots, job.target_slots = slots
        job.slot_bytes, job.num_slots, job.piece_bytes = transfer.slot_bytes, count, transfer.piece_bytes
        job.expected, job.checksums, job.errors, job.order = expected, checksums, errors, order
        self._next_id += 1
        kept = (*slots, expected, checksums, errors, order, source, target)
        self._jobs[_address(job)] = (self._next_id, job, kept)
        lib.llmos_transfers_submit(engine, job)
        return self._next_id

    def collect(self) -> list[Ended]:
        """What has ended since the last call, in the order in which it did."""
        ended: list[Ended] = []
        engine = self._open_engine()
        while self._jobs and (job := lib.llmos_transfers_collect(engine)) != ffi.NULL:
            id_, _, _ = self._jobs.pop(_address(job))
            count = job.num_slots
            checksums = tuple(ffi.unpack(job.checksums, count)) if job.checksums else ()
            errors = ffi.unpack(job.errors, count)
            failed = {i: error for i, error in enumerate(errors) if error} if any(errors) else {}
            ended.append(Ended(id_, job.seconds, checksums, failed))
        return ended

    def wait(self) -> None:
        """Wait until every job has ended; they are still to be collected. Blocks."""
        lib.llmos_transfers_wait(self._open_engine())

    def cancel(self) -> None:
        """Give up slots that are not being copied yet: they fail with ECANCELED."""
        lib.llmos_transfers_cancel(self._open_engine())

    def close(self) -> None:
        """Wait for the jobs there are (`cancel` makes that short), and end the threads. Idempotent."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            lib.llmos_transfers_close(engine)
            self._jobs.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_engine(self) -> Any:
        if self._engine is None:
            raise ValueError("the transfer engine is closed")
        return self._engine


def explain_error(error: int) -> str:
    """Words for an entry of `Ended.errors`."""
    if error == CHECKSUM:
        return "its checksum is not what it should be"
    if error == END_OF_FILE:
        return "the file ends before it"
    return os.strerror(error)


def _checked_slots(transfer: Transfer, side: str) -> Any:
    """The slots of one end for C, all of them inside it. Raises ValueError."""
    end: Memory | File = getattr(transfer, side)
    slots: Sequence[int] = getattr(transfer, f"{side}_slots")
    if transfer.slot_bytes < 1 or transfer.piece_bytes < 0:
        raise ValueError(f"slots of {transfer.slot_bytes} bytes, pieces of {transfer.piece_bytes}")
    limit = (end.num_bytes if isinstance(end, Memory) else 1 << 62) // transfer.slot_bytes
    try:
        numbers = ffi.from_buffer("uint64_t[]", array("Q", slots))  # a tenth of what a list takes
    except OverflowError:  # below zero, or beyond any memory
        numbers = None
    if numbers is None or lib.llmos_transfer_find_outside(numbers, len(slots), limit) < len(slots):
        raise ValueError(f"{side} slots {min(slots)} to {max(slots)} are outside the {limit} there are")
    return numbers


def _pointer(end: Memory | File, *, is_target: bool) -> tuple[int, Any]:
    """What C is told of an end: a descriptor and an address, of which one means nothing."""
    if isinstance(end, File):
        return end.fd, ffi.NULL
    return -1, ffi.from_buffer("char[]", end.buffer, require_writable=is_target)


def _address(job: Any) -> int:
    return int(ffi.cast("uintptr_t", job))
