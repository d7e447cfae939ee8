"""Simulated tiers below a device: what was copied there, and that nobody touches what a copy is using."""

from __future__ import annotations

import itertools
import struct
import zlib
from enum import StrEnum
from pathlib import Path

import attrs

from drivers.sim_memory import ProtocolViolation, SimFrame, SimMemory
from llmos.device import Copy, CopyDone, CopyFault, Load, Place, Tier

_HEAD = struct.Struct("<HHQ")  # tokens, segment, state before the first one


def pack_frame(frame: SimFrame) -> bytes:
    """The bytes of a frame, as they lie on a lower tier."""
    count = len(frame.after)
    return _HEAD.pack(count, frame.segment, frame.before) + struct.pack(f"<{count}Q", *frame.after)


def unpack_frame(data: bytes) -> SimFrame:
    """What `pack_frame` packed."""
    count, segment, before = _HEAD.unpack_from(data)
    return SimFrame(segment, before, list(struct.unpack_from(f"<{count}Q", data, _HEAD.size)))


# What a copy carries: between the device and the host area as it is, else in bytes, which have a checksum.
Data = bytes | SimFrame


def _as_bytes(data: Data) -> bytes:
    return data if isinstance(data, bytes) else pack_frame(data)


def _as_frame(data: Data) -> SimFrame:
    return unpack_frame(data) if isinstance(data, bytes) else data


class _Use(StrEnum):
    """What a copy does with a slot."""

    READ = "read"
    WRITTEN = "written"


@attrs.define(eq=False)
class SimTiers:
    """The host area and the swap file of one simulated device, and files for images (those are real).

    Args:
        memory: of the device.
        num_slots: of "host" and "disk".
    """

    memory: SimMemory
    num_slots: dict[Tier, int]
    contents: dict[tuple[Tier, int], bytes] = attrs.field(factory=dict)  # of the swap file
    _host: dict[int, SimFrame] = attrs.field(factory=dict)
    _in_use: dict[tuple[Tier, str, int], _Use] = attrs.field(factory=dict)  # by copies
    _results: dict[int, tuple[Copy, list[Data | CopyFault]]] = attrs.field(factory=dict)

    def begin(self, copy: Copy) -> None:
        """Read the sources, as they are now; nobody may change them, or look at the targets, until `end`."""
        source, target = copy.source, copy.target
        if len(source.slots) != len(target.slots):
            raise ProtocolViolation(
                f"copy {copy.id} of {len(source.slots)} slots to {len(target.slots)} slots"
            )
        results: list[Data | CopyFault] = []
        for index, slot in enumerate(source.slots):
            self._check(source, slot, _Use.READ)
            data = self._read(source, slot)
            if data is None:
                results.append(CopyFault(index, f"{source.tier} slot {slot} cannot be read", True))
            elif copy.checksums and zlib.crc32(_as_bytes(data)) != copy.checksums[index]:
                message = f"{source.tier} slot {slot} does not have its checksum"
                results.append(CopyFault(index, message, True))
            else:
                results.append(data)
        for slot in target.slots:
            self._check(target, slot, _Use.WRITTEN)
        for place, use in ((source, _Use.READ), (target, _Use.WRITTEN)):
            for slot in place.slots:
                self._in_use[place.tier, place.path, slot] = use
            if place.tier == "device":
                uses = self.memory.being_read if use is _Use.READ else self.memory.being_filled
                uses.update(place.slots)
        self._results[copy.id] = (copy, results)

    def end(self, done: CopyDone) -> CopyDone:
        """Write the targets; returns the answer with what is known now."""
        copy, results = self._results.pop(done.id)
        for place in (copy.source, copy.target):
            for slot in place.slots:
                self._in_use.pop((place.tier, place.path, slot), None)
                if place.tier == "device":
                    self.memory.being_read.discard(slot)
                    self.memory.being_filled.discard(slot)
        failed = {fault.index: fault for fault in done.faults}
        checksums = []
        for index, (slot, data) in enumerate(zip(copy.target.slots, results, strict=True)):
            if isinstance(data, CopyFault):
                failed[index] = data
            if index in failed:
                checksums.append(0)
                self._write(copy.target, slot, SimFrame())  # junk
                continue
            assert not isinstance(data, CopyFault)
            self._write(copy.target, slot, data)
            if copy.target.tier in ("disk", "file"):
                checksums.append(zlib.crc32(_as_bytes(data)))
        return CopyDone(
            done.id,
            done.seconds,
            tuple(checksums) if copy.target.tier in ("disk", "file") else (),
            tuple(failed[index] for index in sorted(failed)),
        )

    def num_runs(self, copy: Copy) -> int:
        """Runs of slots that are adjacent at both ends."""
        pairs = list(zip(copy.source.slots, copy.target.slots, strict=True))
        return len(pairs) - sum((a[0] + 1, a[1] + 1) == b for a, b in itertools.pairwise(pairs))

    def seconds(self, copy: Copy, load: Load, base: float, bytes_per_second: float) -> float:
        """What a copy takes: each run, or piece of one, costs a dispatch."""
        frame_bytes = self.memory.kv.frame_bytes
        num_bytes = len(copy.source.slots) * frame_bytes
        pieces = self.num_runs(copy)
        if load.copy_piece_bytes is not None:
            pieces = max(pieces, num_bytes // load.copy_piece_bytes)
        return pieces * base + num_bytes / bytes_per_second

    def _check(self, place: Place, slot: int, use: _Use) -> None:
        key = (place.tier, place.path, slot)
        if (other := self._in_use.get(key)) is not None and _Use.WRITTEN in (use, other):
            raise ProtocolViolation(f"{place.tier} slot {slot} is {use} by a copy while {other} by another")
        limit = self.memory.num_frames if place.tier == "device" else self.num_slots.get(place.tier)
        if slot < 0 or (limit is not None and slot >= limit):
            raise ProtocolViolation(f"{place.tier} slot {slot} does not exist; there are {limit}")

    def _read(self, place: Place, slot: int) -> Data | None:
        if place.tier == "device":
            return self.memory.frame(slot).copy()
        if place.tier == "host":
            return self._host.get(slot)
        if place.tier == "file":
            size = self.memory.kv.frame_bytes
            try:
                data = Path(place.path).read_bytes()[slot * size : (slot + 1) * size]
                return pack_frame(unpack_frame(data))
            except (OSError, struct.error):
                return None
        return self.contents.get((place.tier, slot))

    def _write(self, place: Place, slot: int, data: Data) -> None:
        if place.tier == "device":
            self.memory.fill(slot, _as_frame(data).copy())
        elif place.tier == "host":
            self._host[slot] = _as_frame(data)
        elif place.tier == "file":
            path = Path(place.path)
            path.touch()
            with path.open("r+b") as file:
                file.seek(slot * self.memory.kv.frame_bytes)
                file.write(_as_bytes(data).ljust(self.memory.kv.frame_bytes, b"\0"))
        else:
            self.contents[place.tier, slot] = _as_bytes(data)
