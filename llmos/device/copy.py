"""Copies between tiers: from which slots to which, and how that ended."""

from __future__ import annotations

from typing import Literal

import msgspec

Tier = Literal["device", "host", "disk", "file"]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Slots of one frame each, on one tier.

    On the device a slot is a frame; slot n of a file begins at byte n * frame_bytes of `path`, which is made
    if it does not exist.
    """

    tier: Tier
    slots: tuple[int, ...]
    path: str = ""  # of a "file"


class Copy(msgspec.Struct, frozen=True, tag="copy"):
    """Copy slots: source.slots[i] to target.slots[i], as they are when everything sent before was done.

    With `after` it may begin as soon as step `after` is done (0: at once), before steps that were sent before
    it: those touch none of its frames. A driver need not make use of that.

    It runs beside the steps that follow, and the driver answers `CopyDone` when it has ended; other answers
    may come before it, and copies may overtake each other. Until then the kernel gives no source slot to
    anybody who writes, and no target slot to anybody at all.

    Args:
        checksums: CRC-32C of each slot as it should be; a slot that differs is a fault. Empty: not checked.
    """

    id: int
    source: Place
    target: Place
    checksums: tuple[int, ...] = ()
    after: int | None = None


class CopyFault(msgspec.Struct, frozen=True, array_like=True):
    """One slot was not copied; the target's bytes mean nothing."""

    index: int  # into the slots of the copy
    message: str  # names the tier, the slot and what is wrong
    is_source: bool = False  # what lies there is not what was written; False also where that is not known


class CopyDone(msgspec.Struct, frozen=True, tag="copy_done"):
    """A copy has ended. Slots that are not in `faults` are whole."""

    id: int
    seconds: float  # from its start to its end
    checksums: tuple[int, ...] = ()  # CRC-32C of each slot, when the target is on disk or a file
    faults: tuple[CopyFault, ...] = ()
