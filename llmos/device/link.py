"""The kernel's end of the line to a driver."""

from __future__ import annotations

from typing import Protocol

from llmos.device.message import FromDriver, ToDriver


class DriverLost(Exception):
    """The driver's end of the link is gone: it exited, was killed, or was hung and has been killed."""


class DriverLink(Protocol):
    """The kernel's end of the line to a driver: a socket to a process, or a queue to the simulator."""

    async def send(self, message: ToDriver) -> None:
        """Send one message. A checkpoint. Raises DriverLost."""

    async def receive(self) -> FromDriver:
        """Wait for the next message. A checkpoint. Raises DriverLost."""

    def kill(self) -> None:
        """End a driver that hangs, by force. Whoever receives on this link then sees DriverLost."""

    async def aclose(self) -> None:
        """Stop the driver: politely, then after a grace period by force. Idempotent."""
