"""When memory may go: after the last step that could touch it."""

from __future__ import annotations

from typing import Any

from native.cuda.device import CudaDevice, ffi

__all__ = ["StepFence"]

DISABLE_TIMING = 2  # an event that only says whether it has come


class StepFence:
    """Where in a stream the last step was launched that could touch what is mapped now.

    Args:
        device: whose stream; it is the default one, on which torch computes.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        event = ffi.new("CUevent *")
        device.call("cuEventCreate", event, DISABLE_TIMING)
        self._event: Any = event[0]

    def mark(self) -> None:
        """A step was launched."""
        self._device.call("cuEventRecord", self._event, ffi.NULL)

    def wait(self) -> None:
        """Wait until the last step that was marked is over; at once when there was none."""
        self._device.call("cuEventSynchronize", self._event)

    def close(self) -> None:
        """Forget the event. Idempotent."""
        if self._event is not None:
            event, self._event = self._event, None
            self._device.call("cuEventDestroy_v2", event)
