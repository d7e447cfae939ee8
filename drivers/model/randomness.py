"""Counter-based randomness: a number is a function of (seed, position), never of a shared stream."""

from __future__ import annotations

__all__ = ["XTC", "uniform"]

MASK = (1 << 64) - 1
XTC = 1  # a purpose beside that of the sample itself
GOLDEN = 0x9E3779B97F4A7C15  # odd, 2^64 / golden ratio: successive counters land far apart


def _mix(value: int) -> int:
    """A bijection of 64-bit integers in which every input bit reaches every output bit."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def uniform(seed: int, position: int, purpose: int = 0) -> float:
    """The random number in [0, 1) that belongs to one position of one process.

    Integer arithmetic up to the last step, so it is the same on every machine: splitmix64's finaliser over
    the counter, keyed by the finalised seed.

    Args:
        seed: any signed or unsigned 64-bit integer.
        position: absolute position of the token that is being sampled.
        purpose: what the number decides there; 0 is which token it is.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"; the idea of keyed
    counters is Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    key = _mix((seed & MASK) ^ GOLDEN)
    if purpose:
        key = _mix((key + purpose * GOLDEN) & MASK)
    return (_mix((key + _mix(((position + 1) * GOLDEN) & MASK)) & MASK) >> 11) * 2.0**-53
