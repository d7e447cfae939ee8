"""A copy between tiers that is under way, and what is to be answered in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence

import attrs

from llmos.device import Copy, CopyDone, CopyFault, Place
from native.transfer import CHECKSUM, END_OF_FILE, Ended, explain_error

__all__ = ["RunningCopy", "answer_copy", "name_slot"]


@attrs.define(eq=False)
class RunningCopy:
    """What became of a copy's slots so far. An index is one into the lists of slots."""

    copy: Copy
    indices: list[int]  # of the slots that are being copied
    faults: dict[int, str]  # of the others
    bad_sources: set[int] = attrs.field(
        factory=set, init=False
    )  # of those: what lies there is not what it was
    opened: list[int] = attrs.field(factory=list)  # files to close in the end
    began: float = attrs.field(factory=time.perf_counter, init=False)
    checksums: dict[int, int] = attrs.field(factory=dict, init=False)

    def expected(self, indices: Sequence[int]) -> list[int]:
        """Checksums that slots should have; empty: they are not known."""
        return [self.copy.checksums[index] for index in indices] if self.copy.checksums else []

    def take(self, indices: Sequence[int], ended: Ended) -> None:
        """Remember what became of slots that threads have copied."""
        for position, error in ended.errors.items():
            self.fail(indices[position], explain_error(error))
            if error in (CHECKSUM, END_OF_FILE):
                self.bad_sources.add(indices[position])
        self.checksums.update(zip(indices, ended.checksums, strict=False))

    def fail(self, index: int, why: str) -> None:
        """A slot was not copied."""
        source, target = self.copy.source, self.copy.target
        names = name_slot(source, source.slots[index]), name_slot(target, target.slots[index])
        self.faults[index] = f"{names[0]} to {names[1]}: {why}"

    def finish(self, seconds: float | None = None) -> CopyDone:
        """Close what was opened, and say how it went; `seconds` None: since it began."""
        self.close()
        seconds = time.perf_counter() - self.began if seconds is None else seconds
        return answer_copy(self.copy, self.faults, seconds, self.checksums, self.bad_sources)

    def close(self) -> None:
        """Close what was opened. Idempotent."""
        while self.opened:
            os.close(self.opened.pop())


def answer_copy(
    copy: Copy,
    faults: dict[int, str],
    seconds: float = 0.0,
    checksums: dict[int, int] | None = None,
    bad_sources: Collection[int] = (),
) -> CopyDone:
    """The answer to a copy that has ended."""
    return CopyDone(
        copy.id,
        seconds,
        tuple(checksums.get(index, 0) for index in range(len(copy.source.slots))) if checksums else (),
        tuple(CopyFault(index, faults[index], index in bad_sources) for index in sorted(faults)),
    )


def name_slot(place: Place, slot: int) -> str:
    """What a slot is called in a fault."""
    return f"{place.tier} {place.path} slot {slot}" if place.path else f"{place.tier} slot {slot}"
