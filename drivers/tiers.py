"""The tiers of memory below a device: the host area, the swap file, and other files; copies between them.

The host area is anonymous memory that is taken as it is first written. The swap file has no name, so that
nothing of it outlives the driver, however that ends; it grows as it is written, with holes.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import tempfile
from collections.abc import Sequence

import attrs

from drivers.arena import Arena, TableArena
from llmos.device import Copy, CopyDone, CopyFault, Place
from native.transfer import Ended, File, Memory, Transfer, TransferEngine, explain_error

__all__ = ["Tiers", "open_swap_file"]


class _Refused(Exception):
    """A whole copy cannot be carried out; the message names the limit."""


@attrs.define(eq=False)
class _Running:
    """A copy that the engine has taken on."""

    copy: Copy
    indices: list[int]  # into the copy's slots: those that are being copied
    faults: dict[int, str]  # of the others
    opened: list[int]  # files to close in the end
    staged: memoryview | None = None  # what the device's frames pass through, where they are not addressable


@attrs.define(eq=False)
class Tiers:
    """What a driver copies between. One user; `close` it, or nothing of it is given back.

    Args:
        arena: the device's frames.
        host_bytes: of the host area; rounded down to whole slots.
        disk_bytes: most bytes of the swap file; rounded down to whole slots.
        disk_folder: where that lies; None: the system's folder for temporary files.
        piece_bytes: copy in pieces of so many bytes; 0: whole runs.

    Raises:
        OSError: there is no room for the area, or no swap file can be made in the folder.
    """

    arena: Arena
    host_bytes: int = 0
    disk_bytes: int = 0
    disk_folder: str | None = None
    piece_bytes: int = 0
    num_host_slots: int = attrs.field(init=False)
    num_disk_slots: int = attrs.field(init=False)
    _slot_bytes: int = attrs.field(init=False)
    _host: mmap.mmap | None = attrs.field(init=False, default=None)
    _disk: int | None = attrs.field(init=False, default=None)
    _engine: TransferEngine = attrs.field(init=False)
    _running: dict[int, _Running] = attrs.field(init=False, factory=dict)  # by the engine's id

    def __attrs_post_init__(self) -> None:
        self._slot_bytes = self.arena.kv.frame_bytes
        self.num_host_slots = self.host_bytes // self._slot_bytes
        self.num_disk_slots = self.disk_bytes // self._slot_bytes
        self._engine = TransferEngine()
        try:
            if self.num_host_slots:
                self._host = _open_host_area(self.num_host_slots * self._slot_bytes)
            if self.num_disk_slots:
                self._disk = open_swap_file(self.disk_folder or tempfile.gettempdir())
        except BaseException:
            self.close()
            raise

    @property
    def num_running(self) -> int:
        """Copies that were begun and not collected."""
        return len(self._running)

    def fileno(self) -> int:
        """A descriptor that polls as readable when there may be something to collect."""
        return self._engine.fileno()

    def begin(self, copy: Copy) -> CopyDone | None:
        """Begin a copy; None: it is under way, and `collect` will have it. Never raises for what it asks."""
        opened: list[int] = []
        try:
            faults = self._find_faults(copy)
            indices = [index for index in range(len(copy.source.slots)) if index not in faults]
            if not indices:
                return _ended(copy, faults)
            running = _Running(copy, indices, faults, opened)
            source, source_slots = self._open(copy.source, running, is_target=False)
            target, target_slots = self._open(copy.target, running, is_target=True)
            transfer = Transfer(
                source=source,
                target=target,
                slot_bytes=self._slot_bytes,
                source_slots=source_slots,
                target_slots=target_slots,
                expected=[copy.checksums[index] for index in indices] if copy.checksums else (),
                wants_checksums=copy.target.tier in ("disk", "file"),
                piece_bytes=self.piece_bytes,
            )
            self._running[self._engine.submit(transfer)] = running
        except (_Refused, OSError, MemoryError, RuntimeError, ValueError) as error:
            _close_all(opened)
            message = str(error) or type(error).__name__
            count = max(len(copy.source.slots), len(copy.target.slots))
            return _ended(copy, dict.fromkeys(range(count), message))
        return None

    def collect(self) -> list[CopyDone]:
        """The copies that have ended since the last call."""
        return [self._finish(self._running.pop(ended.id), ended) for ended in self._engine.collect()]

    def wait(self) -> None:
        """Wait until every copy has ended; they are still to be collected. Blocks."""
        self._engine.wait()

    def close(self) -> None:
        """Give up what has not been copied yet, and give everything back. Idempotent. Blocks."""
        if self._running:
            self._engine.cancel()
        self._engine.close()
        for running in self._running.values():
            _close_all(running.opened)
        self._running.clear()
        if self._host is not None:
            self._host.close()
            self._host = None
        if self._disk is not None:
            os.close(self._disk)
            self._disk = None

    def _find_faults(self, copy: Copy) -> dict[int, str]:
        """What is wrong with single slots. Raises _Refused when the lists do not belong together."""
        source, target = copy.source, copy.target
        count = len(source.slots)
        if len(target.slots) != count:
            raise _Refused(f"{count} slots of {source.tier} to {len(target.slots)} of {target.tier}")
        if copy.checksums and len(copy.checksums) != count:
            raise _Refused(f"{count} slots of {source.tier} with {len(copy.checksums)} checksums")
        faults: dict[int, str] = {}
        for place in (source, target):
            limit = self._num_slots(place)
            for index, slot in enumerate(place.slots):
                if not 0 <= slot < limit:
                    faults[index] = f"{_name(place, slot)} is outside the {limit} there are"
        is_within_one = (source.tier, source.path) == (target.tier, target.path)
        taken = set(source.slots) if is_within_one else set()
        for index, slot in enumerate(target.slots):
            if slot in taken:
                faults.setdefault(index, f"{_name(target, slot)} is in the copy twice, and once a target")
            taken.add(slot)
        return faults

    def _num_slots(self, place: Place) -> int:
        match place.tier:
            case "device":
                return self.arena.num_frames
            case "host":
                return self.num_host_slots
            case "disk":
                return self.num_disk_slots
            case "file":
                return (1 << 62) // self._slot_bytes
        raise _Refused(f"there is no tier {place.tier!r}")

    def _open(
        self, place: Place, running: _Running, *, is_target: bool
    ) -> tuple[Memory | File, Sequence[int]]:
        """One end of a copy, with the slots to copy. Raises OSError."""
        slots = [place.slots[index] for index in running.indices]
        match place.tier:
            case "host":
                return Memory(self._host), slots
            case "disk":
                assert self._disk is not None
                return File(self._disk), slots
            case "file":
                running.opened.append(_open_file(place.path, is_target=is_target))
                return File(running.opened[-1]), slots
        if not isinstance(self.arena, TableArena):
            return Memory(self.arena.memory), slots
        running.staged = self.arena.stage(len(slots))
        if not is_target:
            self.arena.read_frames(slots, running.staged)
        return Memory(running.staged), range(len(slots))

    def _finish(self, running: _Running, ended: Ended) -> CopyDone:
        """Close what was opened, and say how it went."""
        _close_all(running.opened)
        copy, faults = running.copy, running.faults
        for position, error in ended.errors.items():
            index = running.indices[position]
            names = _name(copy.source, copy.source.slots[index]), _name(copy.target, copy.target.slots[index])
            faults[index] = f"{names[0]} to {names[1]}: {explain_error(error)}"
        if isinstance(self.arena, TableArena) and running.staged is not None and copy.target.tier == "device":
            frames = [copy.target.slots[index] for index in running.indices]
            try:
                self.arena.write_frames(frames, running.staged)  # those at fault mean nothing anyway
            except RuntimeError as error:  # the device has no room, or is beyond use: the next step will tell
                faults.update(dict.fromkeys(running.indices, f"device: {error}"))
        checksums = dict(zip(running.indices, ended.checksums, strict=False))
        return _ended(copy, faults, ended.seconds, checksums)


def open_swap_file(folder: str) -> int:
    """A file in a folder that nobody else can open and that has no name: it goes with its descriptor.

    Raises:
        OSError: the folder is not there, or takes no files.
    """
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, path = tempfile.mkstemp(prefix="llmos-swap-", dir=folder)  # a file system without nameless files
    os.unlink(path)
    return fd


def _open_host_area(num_bytes: int) -> mmap.mmap:
    area = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages
        # one fault for two megabytes, not for each page: the first copy into a slot need not be much slower
        area.madvise(mmap.MADV_HUGEPAGE)
    return area


def _open_file(path: str, *, is_target: bool) -> int:
    """Open what a "file" place names. Raises OSError, and _Refused for what is no regular file."""
    flags = os.O_RDWR | os.O_CREAT if is_target else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)  # a pipe must not hold the driver up
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _Refused(f"{path} is no regular file")
    return fd


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _name(place: Place, slot: int) -> str:
    return f"{place.tier} {place.path} slot {slot}" if place.path else f"{place.tier} slot {slot}"


def _ended(
    copy: Copy, faults: dict[int, str], seconds: float = 0.0, checksums: dict[int, int] | None = None
) -> CopyDone:
    """The answer to a copy."""
    return CopyDone(
        copy.id,
        seconds,
        tuple(checksums.get(index, 0) for index in range(len(copy.source.slots))) if checksums else (),
        tuple(CopyFault(index, faults[index]) for index in sorted(faults)),
    )
