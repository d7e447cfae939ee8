"""`mix` of many states at once: one large integer holds them all, each in a lane of 128 bits.

A lane's upper half is empty before a product, so one of 64 by 64 bits stays within its lane. Numpy takes two
thirds of the time, and 0.1 s to import in the kernel's process, which has no other use for it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

_LANE_BYTES = 16


@lru_cache(maxsize=8)
def _every_lane(value: int, num_lanes: int) -> int:
    """One 64-bit number, in each lane."""
    return int.from_bytes(value.to_bytes(_LANE_BYTES, "little") * num_lanes, "little")


def pack_lanes(values: Sequence[int]) -> int:
    """Put 64-bit numbers into lanes, the first lowest."""
    return int.from_bytes(struct.pack("<" + "Q8x" * len(values), *values), "little")


def unpack_lanes(lanes: int, num_lanes: int) -> list[int]:
    """Take the numbers out of lanes again."""
    data = lanes.to_bytes(num_lanes * _LANE_BYTES, "little")
    return list(struct.unpack("<" + "Q8x" * num_lanes, data))


def mix_lanes(states: int, values: int, num_lanes: int) -> int:
    """Fold `values` into `states`, lane by lane: each comes to what `mix` makes of the two."""
    mask = _every_lane((1 << 64) - 1, num_lanes)
    x = (states * 0x9E3779B97F4A7C15 + values + _every_lane(0xD1B54A32D192ED03, num_lanes)) & mask
    # A shift brings bits of the next lane into this one's upper half; the mask takes them away.
    x = ((x ^ (x >> 30)) & mask) * 0xBF58476D1CE4E5B9 & mask
    x = ((x ^ (x >> 27)) & mask) * 0x94D049BB133111EB & mask
    return (x ^ (x >> 31)) & mask
