"""When memory may go: after the last step that could touch it."""

from __future__ import annotations

from typing import Any

from native.cuda.device import CudaDevice, ffi

__all__ = ["DISABLE_TIMING", "StepFence"]

DISABLE_TIMING = 2  # an event that only says whether it has come


class StepFence:
    """Where the last step was launched that could touch what is mapped now.

    Args:
        device: whose streams.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        event = ffi.new("CUevent *")
        device.call("cuEventCreate", event, DISABLE_TIMING)
        self._event: Any = event[0]

    def mark(self, stream: int = 0) -> None:
        """A step was launched on a stream, given by its handle; 0: the default one."""
        self._device.call("cuEventRecord", self._event, ffi.cast("CUstream", stream))

    def wait(self) -> None:
        """Wait until the last step that was marked is over; at once when there was none."""
        self._device.call("cuEventSynchronize", self._event)

    def hold(self, stream: Any) -> None:
        """What is launched on a stream from now on waits for that step; nobody else does."""
        self._device.call("cuStreamWaitEvent", stream, self._event, 0)

    def close(self) -> None:
        """Forget the event. Idempotent."""
        if self._event is not None:
            event, self._event = self._event, None
            self._device.call("cuEventDestroy_v2", event)
