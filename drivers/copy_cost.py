"""How long copies between a device and its lower tiers take: a few are made at load, and fitted.

A frame that goes out comes back to where it was, so memory is afterwards as it was before. Copies are timed
from the request to the answer, as the kernel sees them.
"""

from __future__ import annotations

import statistics
import time

from drivers.note import note
from drivers.tiers import Tiers
from llmos.cost import CopyCost
from llmos.device import Copy, Place, Tier

__all__ = ["fit_copy_cost", "measure_copy_cost"]

LARGE_BYTES = 4 << 20  # beyond the second-level cache, and a millisecond of most memories
NUM_RUNS = 5


def measure_copy_cost(tiers: Tiers, tier: Tier, num_slots: int) -> CopyCost | None:
    """Measure copies out and back in. Takes some tens of milliseconds.

    Returns:
        None: the tier has no slots, or does not take them now: say, its disk is full. That is told on
        standard error, and no reason not to serve: a driver that is started again must not depend on it.
    """
    if not num_slots:
        return None
    try:
        return _measure(tiers, tier, num_slots)
    except OSError as error:
        note(f"what copies take is not known: {error}")
        return None


def _measure(tiers: Tiers, tier: Tier, num_slots: int) -> CopyCost:
    """As above. Raises OSError: the tier does not take a copy."""
    slot_bytes = tiers.arena.kv.frame_bytes
    most = max(1, min(num_slots, tiers.arena.num_frames, LARGE_BYTES // slot_bytes))
    _time_both_ways(tiers, tier, most)  # takes memory and blocks of the disk for the first time
    small = statistics.median(_time_both_ways(tiers, tier, 1) for _ in range(NUM_RUNS))
    large = statistics.median(_time_both_ways(tiers, tier, most) for _ in range(NUM_RUNS))
    return fit_copy_cost(slot_bytes, small, most * slot_bytes, large)


def fit_copy_cost(small_bytes: int, small_seconds: float, large_bytes: int, large_seconds: float) -> CopyCost:
    """The line through a small copy and a large one; if it does not rise, all time counts as bandwidth."""
    if large_bytes > small_bytes and large_seconds > small_seconds:
        bytes_per_second = (large_bytes - small_bytes) / (large_seconds - small_seconds)
        base = small_seconds - small_bytes / bytes_per_second
        if base >= 0:
            return CopyCost(base, bytes_per_second)
    return CopyCost(0.0, large_bytes / large_seconds)


def _time_both_ways(tiers: Tiers, tier: Tier, num_slots: int) -> float:
    """Seconds of one way: half of a copy out and one back in."""
    device, other = Place("device", tuple(range(num_slots))), Place(tier, tuple(range(num_slots)))
    began = time.perf_counter()
    for source, target in ((device, other), (other, device)):
        done = tiers.begin(Copy(0, source, target))
        if done is None:
            tiers.wait()
            (done,) = tiers.collect()
        if done.faults:
            raise OSError(done.faults[0].message)
    return (time.perf_counter() - began) / 2
