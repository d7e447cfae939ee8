"""The tiers of memory below a device: the host area, the swap file, and other files; copies between them.

The host area is anonymous memory that is taken as it is first written. The swap file has no name, so that
nothing of it outlives the driver, however that ends; it grows as it is written, with holes.

Native threads copy between all memory and files that they can touch. What they cannot, the frames of a GPU,
is for `DeviceCopies`.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence

import attrs

from drivers.areas import CopyRefused, open_host_area, open_regular_file, open_swap_file
from drivers.arena import Arena
from drivers.device_copies import DeviceCopies
from drivers.running_copy import RunningCopy, answer_copy, name_slot
from llmos.device import Copy, CopyDone, Place
from native.transfer import File, Memory, Transfer, TransferEngine

__all__ = ["Tiers"]

SMALL_BYTES = 2 << 20  # some tenths of a millisecond from memory to memory


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
    _device: DeviceCopies | None = attrs.field(init=False, default=None)
    _running: dict[int, RunningCopy] = attrs.field(init=False, factory=dict)  # by the engine's id
    _ended: list[CopyDone] = attrs.field(init=False, factory=list)  # while somebody waited

    def __attrs_post_init__(self) -> None:
        self._slot_bytes = self.arena.kv.frame_bytes
        self.num_host_slots = self.host_bytes // self._slot_bytes
        self.num_disk_slots = self.disk_bytes // self._slot_bytes
        self._engine = TransferEngine()
        try:
            if self.num_host_slots:
                self._host = open_host_area(self.num_host_slots * self._slot_bytes)
            if self.num_disk_slots:
                self._disk = open_swap_file(self.disk_folder or tempfile.gettempdir())
            if (copier := self.arena.open_copier()) is not None:
                self._device = DeviceCopies(
                    copier, self._engine, self._host, self._slot_bytes, self.piece_bytes
                )
        except BaseException:
            self.close()
            raise

    @property
    def num_running(self) -> int:
        """Copies that were begun and not collected."""
        return len(self._running) + len(self._ended) + (self._device.num_running if self._device else 0)

    def fileno(self) -> int:
        """A descriptor that polls as readable when there may be something to collect."""
        return self._device.fileno() if self._device else self._engine.fileno()

    def begin(self, copy: Copy) -> CopyDone | None:
        """Begin a copy; None: it is under way, and `collect` will have it. Never raises for what it asks.

        Raises:
            CudaFault: the device is beyond use.
        """
        running = RunningCopy(copy, [], {})
        try:
            running.faults = self._find_faults(copy)
            running.indices = [i for i in range(len(copy.source.slots)) if i not in running.faults]
            if not running.indices:
                return answer_copy(copy, running.faults)
            source = self._open(copy.source, running, is_target=False)
            target = self._open(copy.target, running, is_target=True)
            if source is None or target is None:
                assert self._device is not None
                self._device.begin(running, source, target)
            else:
                self._running[self._engine.submit(self._transfer(running, source, target))] = running
        except (CopyRefused, OSError, MemoryError, ValueError) as error:
            running.close()
            message = str(error) or type(error).__name__
            count = max(len(copy.source.slots), len(copy.target.slots))
            return answer_copy(copy, dict.fromkeys(range(count), message))
        return None

    def collect(self) -> list[CopyDone]:
        """The copies that have ended since the last call.

        Raises:
            CudaFault: the device is beyond use.
        """
        done, self._ended = self._ended, []
        for ended in self._engine.collect():
            if (running := self._running.pop(ended.id, None)) is not None:
                running.take(running.indices, ended)
                done.append(running.finish(ended.seconds))
            elif self._device is not None:
                self._device.take(ended)
        if self._device is not None:
            done += self._device.collect()
        return done

    @property
    def num_slots_below(self) -> int:
        """Of the host area and the swap file."""
        return self.num_host_slots + self.num_disk_slots

    def finish_small(self) -> None:
        """Wait for the copies under way where that takes tenths of a millisecond. Blocks.

        Whoever asked for them might else be told after the next step, which takes many times as long.
        """
        num_slots = 0
        for running in self._running.values():
            if not {running.copy.source.tier, running.copy.target.tier} <= {"device", "host"}:
                return
            num_slots += len(running.copy.source.slots)
        if num_slots and num_slots * self._slot_bytes <= SMALL_BYTES:
            self._engine.wait()

    def wait(self) -> None:
        """Wait until every copy has ended; they are still to be collected. Blocks. Raises as `collect`."""
        self._engine.wait()
        while self._device is not None and self._device.num_running:
            self._device.wait()
            self._engine.wait()
            self._ended = self.collect()

    def close(self) -> None:
        """Give up what has not been copied yet, and give everything back. Idempotent. Blocks."""
        if self._running or (self._device is not None and self._device.num_running):
            self._engine.cancel()
        self._engine.close()
        if self._device is not None:
            self._device.close()
            self._device = None
        for running in self._running.values():
            running.close()
        self._running.clear()
        if self._host is not None:
            self._host.close()
            self._host = None
        if self._disk is not None:
            os.close(self._disk)
            self._disk = None

    def _find_faults(self, copy: Copy) -> dict[int, str]:
        """What is wrong with single slots. Raises CopyRefused when the lists do not belong together."""
        source, target = copy.source, copy.target
        count = len(source.slots)
        if len(target.slots) != count:
            raise CopyRefused(f"{count} slots of {source.tier} to {len(target.slots)} of {target.tier}")
        if copy.checksums and len(copy.checksums) != count:
            raise CopyRefused(f"{count} slots of {source.tier} with {len(copy.checksums)} checksums")
        faults: dict[int, str] = {}
        for place in (source, target):
            limit = self._num_slots(place)
            for index, slot in enumerate(place.slots):
                if not 0 <= slot < limit:
                    faults[index] = f"{name_slot(place, slot)} is outside the {limit} there are"
        is_within_one = (source.tier, source.path) == (target.tier, target.path)
        taken = set(source.slots) if is_within_one else set()
        for index, slot in enumerate(target.slots):
            if slot in taken:
                faults.setdefault(index, f"{name_slot(target, slot)} is in the copy twice, and once a target")
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
        raise CopyRefused(f"there is no tier {place.tier!r}")

    def _open(self, place: Place, running: RunningCopy, *, is_target: bool) -> Memory | File | None:
        """One end of a copy; None: threads cannot touch it. Raises OSError."""
        match place.tier:
            case "host":
                return Memory(self._host)
            case "disk":
                assert self._disk is not None
                return File(self._disk)
            case "file":
                running.opened.append(open_regular_file(place.path, is_target=is_target))
                return File(running.opened[-1])
        return None if self._device is not None else Memory(self.arena.memory)

    def _transfer(self, running: RunningCopy, source: Memory | File, target: Memory | File) -> Transfer:
        """All of a copy, for threads."""

        def slots(place: Place) -> Sequence[int]:
            return [place.slots[index] for index in running.indices]

        copy = running.copy
        return Transfer(
            source=source,
            target=target,
            slot_bytes=self._slot_bytes,
            source_slots=slots(copy.source),
            target_slots=slots(copy.target),
            expected=running.expected(running.indices),
            wants_checksums=copy.target.tier in ("disk", "file"),
            piece_bytes=self.piece_bytes,
        )
