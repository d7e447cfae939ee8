"""Nights: times in which a device has no driver on purpose."""

from __future__ import annotations

import trio


class Night:
    """One time that a device has no driver.

    Args:
        forgets_model: its model is unloaded, and it stays empty until it is given another one; False: it
            sleeps, and loads what it had when it is woken.
    """

    def __init__(self, *, forgets_model: bool = False) -> None:
        self.forgets_model = forgets_model
        self.fell_asleep = trio.Event()
        self.morning = trio.Event()  # somebody wakes it, or gives it a model
        self.ended = trio.Event()  # it serves again, or does not
        self.problem = ""  # why it does not
