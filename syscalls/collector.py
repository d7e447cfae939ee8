"""Python's garbage collector, in a process that serves for long."""

from __future__ import annotations

import gc

# The collector looks at its young objects when so many more were made than freed. By default that is 700: a
# step of 256 rows starts it several times, and each hundredth time it may walk everything that lives.
YOUNG_OBJECTS = 10_000
MIDDLE_ROUNDS, OLD_ROUNDS = 50, 100


def settle_collector() -> None:
    """Leave alone what is there by now, and collect less often; once, when everything serves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, MIDDLE_ROUNDS, OLD_ROUNDS)
