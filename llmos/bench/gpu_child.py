"""The process that measures a GPU, with a limit of time on each of its sections."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from llmos.bench.child import Dropped, Message, Started
from llmos.kernel.driver_link import DRIVER_ENVIRONMENT

START_SECONDS = 120.0  # until the first section begins
END_SECONDS = 10.0  # for a process to end after it has said that it failed
READ_BYTES = 1 << 16


class GpuChild:
    """Runs some sections. One that fails, or takes too long, ends the process, as a broken GPU would.

    Args:
        sections: in order.
        is_rehearsal: tiny, on the processor.
        seconds: for all of them.
        options: of the module, further ones.

    Attributes:
        sections: as given.
        num_started: sections that began.
        ending: why it ended early; empty: it did not.
    """

    def __init__(
        self, sections: Sequence[str], is_rehearsal: bool, seconds: float, options: Sequence[str] = ()
    ) -> None:
        self.sections = sections
        self.num_started = 0
        self.ending = ""
        self._limit = seconds
        self._until = 0.0  # by time.monotonic
        self._current = sections[0]
        self._command = [
            sys.executable, "-m", "drivers.bench.gpu", "--seconds", f"{seconds:.0f}",
            *(["--rehearse"] if is_rehearsal else []), "--sections", *sections, *options,
        ]  # fmt: skip

    def messages(self) -> Iterator[Message]:
        """What it says, as it says it, and what becomes of the section that it ends in. Blocks."""
        began = time.monotonic()
        process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, env=os.environ | DRIVER_ENVIRONMENT, start_new_session=True
        )
        assert process.stdout is not None
        decoder = msgspec.json.Decoder(Message)
        final = began + self._limit
        self._until = min(final, began + START_SECONDS)
        since, is_explained = began, False
        try:
            for line in _lines(process.stdout.fileno(), lambda: self._until):
                if line is None:
                    self.ending = f"it took more than {self._until - since:.0f} s, and was ended"
                    break
                try:
                    message: Message = decoder.decode(line)
                except msgspec.DecodeError:  # a library has something to say
                    print(line.decode(errors="replace"), file=sys.stderr)
                    continue
                if isinstance(message, Started):
                    self.num_started += 1
                    self._current = message.case
                    since = time.monotonic()
                    self._until = min(final, since + message.seconds)
                if isinstance(message, Dropped) and message.is_failure:
                    is_explained = True
                    self._until = min(self._until, time.monotonic() + END_SECONDS)
                yield message
            else:
                os.waitid(
                    os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
                )  # not reaped: the group is still its
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            code = process.wait()
            process.stdout.close()
            if code and not self.ending:
                self.ending = f"the process that measures ended with {code}"
        if self.ending and self.num_started and not is_explained:
            yield Dropped(self._current, self.ending, is_failure=True)


def _lines(descriptor: int, limit: Callable[[], float]) -> Iterator[bytes | None]:
    """Lines of a pipe until its end; None, at last, when no line came by the limit of time.monotonic."""
    rest = b""
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, limit() - time.monotonic()))
        if not ready:
            yield None
            return
        data = os.read(descriptor, READ_BYTES)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
