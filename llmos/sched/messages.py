"""What a Core is told: by syscalls, and by the host of its driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from llmos.device import Compiled, CopyDone, DriverLink, Loaded, StepDone
from llmos.mm.page_copy import PageCopy
from llmos.proc.image import Image
from llmos.proc.pcb import Process
from syscalls.errno import SyscallError

Done = Callable[[SyscallError | None], None]
"""Called once with the outcome of a command, synchronously; the caller may be gone by then."""


@attrs.frozen
class Enqueue:
    """Processes in state EMBRYO that belong to this device from now on.

    The first is the elder: the rest, if any, are its heirs and share its prefill.
    """

    processes: Sequence[Process]


@attrs.frozen
class Kill:
    """End a process, whatever it does. Never fails."""

    process: Process
    message: str
    done: Done


@attrs.frozen
class Stop:
    """Keep a process from running. EBUSY when it has exited."""

    process: Process
    done: Done


@attrs.frozen
class Cont:
    """Let a stopped process go on. EBUSY when it is not stopped."""

    process: Process
    done: Done


@attrs.frozen
class Renice:
    """Change the nice level. Never fails."""

    process: Process
    nice: int
    done: Done


@attrs.frozen
class WriteInput:
    """Start the next turn of an interactive process. EBUSY when it does not wait for input; E2BIG."""

    process: Process
    tokens: tuple[int, ...]
    max_tokens: int | None
    done: Done


@attrs.frozen
class Fork:
    """Give `children` (state EMBRYO, tokens and counters unset) the parent's history and memory.

    EBUSY when the parent has exited.
    """

    parent: Process
    children: Sequence[Process]
    done: Done


@attrs.frozen
class Save:
    """Write a process's memory to a file, and say what it was at that moment. `done` is called when both are.

    EBUSY when it has exited; EIO when its memory could not be written.
    """

    process: Process
    path: str
    done: Callable[[Image | SyscallError], None]


@attrs.frozen
class Restore:
    """A process in state EMBRYO that belongs to this device from now on, with its memory in a file."""

    process: Process
    pages: Sequence[PageCopy]


@attrs.frozen
class DropCache:
    """Give up the pages of the prefix cache that nobody maps. `done` is told how many. Never fails."""

    tenant: str | None  # None: everybody's
    done: Callable[[int], None]


@attrs.frozen
class Sleep:
    """Take no steps, and all memory from everybody, until Wake. EBUSY when that came before all was done."""

    done: Done


@attrs.frozen
class Wake:
    """Take steps again. Never fails."""


@attrs.frozen
class Vacate:
    """The device's model is gone, and nobody is left who would need it."""


@attrs.frozen
class StepFinished:
    """The device has done a step."""

    result: StepDone


@attrs.frozen
class CopyFinished:
    """The device has ended a copy between tiers."""

    result: CopyDone


@attrs.frozen
class GrammarFinished:
    """The device has compiled a grammar, or cannot."""

    result: Compiled


@attrs.frozen
class Sweep:
    """Time has passed: swap out who has been idle for so long."""

    idle_seconds: float


@attrs.frozen
class Reconsider:
    """What tenants may have is different now: ask the policy again who may run."""


@attrs.frozen
class DriverUp:
    """A driver has loaded the model and waits for steps."""

    link: DriverLink
    loaded: Loaded


@attrs.frozen
class DriverDown:
    """The driver is gone, and the device's memory with it."""

    reason: str
    is_final: bool  # it will not come back


Command = Kill | Stop | Cont | Renice | WriteInput | Fork
FromDevice = StepFinished | CopyFinished | GrammarFinished | DriverUp | DriverDown | Vacate
Message = Enqueue | Command | Save | Restore | DropCache | Sweep | Reconsider | Sleep | Wake | FromDevice
