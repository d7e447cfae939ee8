"""The kernel's exceptions, grouped by whose fault it is: the caller's, pressure, or ours."""

from __future__ import annotations


class LlmosError(Exception):
    """Base of every error that the kernel raises on purpose."""


def first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first plain exception in a nest of groups: the one to tell the user."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# --- pressure: retryable; carries what was needed and what was free --------------------------------------


class PressureError(LlmosError):
    """A resource ran short. Nothing was changed; the same call may succeed later.

    Attributes:
        needed: how many the call asked for.
        free: how many could have been had.
    """

    resource = "resources"

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"needs {needed} {self.resource}, {free} free")
        self.needed = needed
        self.free = free


class OutOfFrames(PressureError):
    """Not enough physical frames, even after dropping what is only cached."""

    resource = "frames"


class OutOfSpaces(PressureError):
    """Every address-space identifier of the device is taken."""

    resource = "address spaces"


class OutOfSlots(PressureError):
    """Not enough slots of a lower tier of memory."""

    resource = "slots"


# --- ours ------------------------------------------------------------------------------------------------


class KernelPanic(LlmosError):
    """An invariant of the kernel is broken: a bug here, never the caller's doing."""
