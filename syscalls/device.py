"""Device family: sleep, wake."""

from __future__ import annotations

import msgspec


class Sleep(msgspec.Struct, frozen=True, tag="sleep"):
    """Have every device come to rest, until `Wake`; replies `Done` when all of them have.

    No process ends, and none notices but by the time: each goes on afterwards with the same tokens. New ones
    are taken, and wait. On level 1 the memory of all processes is copied to lower tiers, or given up where it
    is cheaper to compute again, the prefix cache is dropped, and no step is taken; weights stay. On level 2
    drivers end, and with them all that a device holds: weights, keys and values, and copies of those on lower
    tiers. `Wake` loads the weights again, and processes compute again what they had.

    Errors: EPERM (administrators only), EINVAL (no such level), EBUSY (a device is not ready, or was woken
    before it had come to rest; those that have come to rest stay so).
    """

    level: int = 1  # 1 or 2


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """Have every device that sleeps go on; replies `Done` when all of them serve. One that is awake stays so.

    Errors: EPERM (administrators only), EIO (a device could not load its model again; `dmesg` says why).
    """
