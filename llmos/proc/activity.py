"""What a process does with its time: exactly one thing at every moment, so that times add up to its age."""

from __future__ import annotations

import enum


class Activity(enum.StrEnum):
    """What time is spent on."""

    QUEUED = "queued"  # for its turn
    MEMORY = "memory"  # waits for memory: none was free, or its own was taken
    SWAPPED = "swapped"  # its memory is on a lower tier, or on its way back
    DEVICE = "device"  # waits for the device to come back
    SIBLING = "sibling"  # waits for a prefill whose pages it will share
    GRAMMAR = "grammar"  # waits for the device to compile its grammar
    PREFILL = "prefill"
    DECODE = "decode"
    INPUT = "input"  # waits for its next turn
    BLOCKED = "blocked"  # waits for something else; its state says for what
    STOPPED = "stopped"
    ENDED = "ended"


OF_REASON = {
    "Input": Activity.INPUT,
    "Prefill": Activity.SIBLING,
    "Swap": Activity.SWAPPED,
    "Grammar": Activity.GRAMMAR,
}
"""By the name of the reason that ps prints."""

WAITS = (
    Activity.QUEUED, Activity.MEMORY, Activity.SWAPPED, Activity.DEVICE, Activity.SIBLING, Activity.GRAMMAR,
)  # fmt: skip
"""Time that is lost to others: neither the device works on the process, nor does its client keep it."""
