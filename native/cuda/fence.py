"""When memory may go: after the last step that could touch it."""

from __future__ import annotations

from typing import Any

from native.cuda.device import CudaDevice, ffi

__all__ = ["DISABLE_TIMING", "StepFence"]

DISABLE_TIMING = 2  # an event that only says whether it has come
NUM_EVENTS = 8  # more than there are steps in flight; who asks for an older one waits for a later one


class StepFence:
    """Where steps were launched that could touch what is mapped, each with an event and a number from 1 on.

    One thread marks; any may wait.

    Args:
        device: whose streams.
    """

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._events: list[Any] = []
        self.num_marked = 0
        try:
            for _ in range(NUM_EVENTS):
                event = ffi.new("CUevent *")
                device.call("cuEventCreate", event, DISABLE_TIMING)
                self._events.append(event[0])
        except BaseException:
            self.close()
            raise

    def mark(self, stream: int = 0) -> int:
        """A step was launched on a stream, given by its handle; 0: the default one. Returns its number."""
        number = self.num_marked + 1
        self._device.call("cuEventRecord", self._event(number), ffi.cast("CUstream", stream))
        self.num_marked = number
        return number

    def wait(self, number: int) -> None:
        """Wait until a step that was marked is over, and all before it; 0: there was none."""
        if number:
            self._device.call("cuEventSynchronize", self._event(number))

    def hold(self, stream: Any, number: int) -> None:
        """What is launched on a stream from now on waits for that step; nobody else does."""
        if number:
            self._device.call("cuStreamWaitEvent", stream, self._event(number), 0)

    def close(self) -> None:
        """Forget the events. Idempotent."""
        while self._events:
            self._device.call("cuEventDestroy_v2", self._events.pop())

    def _event(self, number: int) -> Any:
        return self._events[number % NUM_EVENTS]
