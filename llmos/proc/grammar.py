"""A grammar on one device: a text that processes bring with them, and whether the device has compiled it."""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class Grammar:
    """One grammar, shared by all processes of a device that follow it. Written by the device's Core only."""

    id: int  # what the device calls it
    source: str
    is_ready: bool = False  # the device has compiled it; else those who follow it wait
    num_users: int = 0
