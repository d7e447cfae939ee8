"""The states of a process, the moves between them, and the one function that makes a move."""

from __future__ import annotations

import enum
from typing import Protocol

import attrs

from llmos.errors import KernelPanic


class Movable(Protocol):
    """The part of a process that this module writes."""

    @property
    def pid(self) -> int: ...

    state: ProcState
    blocked_on: BlockReason | None


class ProcState(enum.Enum):
    """Where a process is in its life."""

    EMBRYO = "EMBRYO"  # being made; not on any queue
    READY = "READY"  # wants the device, waits in the run queue
    SWAPPED = "SWAPPED"  # the same, and its memory is on a lower tier
    RUNNING = "RUNNING"  # resident, takes part in steps
    BLOCKED = "BLOCKED"  # waits for something; `blocked_on` says for what
    STOPPED = "STOPPED"  # by request; its memory stays
    ZOMBIE = "ZOMBIE"  # ended; its exit status waits to be collected


@attrs.frozen
class Input:
    """The next turn of an interactive process."""

    def __str__(self) -> str:
        return "Input"


@attrs.frozen
class Prefill:
    """The prefill of a sibling, whose pages will be shared copy-on-write."""

    pid: int

    def __str__(self) -> str:
        return f"Prefill({self.pid})"


@attrs.frozen
class Swap:
    """Its memory, which is on its way back to the device."""

    def __str__(self) -> str:
        return "Swap"


@attrs.frozen
class Grammar:
    """Its grammar, which the device is compiling."""

    def __str__(self) -> str:
        return "Grammar"


BlockReason = Input | Prefill | Swap | Grammar

WAITING = frozenset({ProcState.READY, ProcState.SWAPPED})  # in the run queue

TRANSITIONS: dict[ProcState, frozenset[ProcState]] = {
    ProcState.EMBRYO: frozenset(
        {ProcState.READY, ProcState.SWAPPED, ProcState.BLOCKED, ProcState.STOPPED, ProcState.ZOMBIE}
    ),
    ProcState.READY: frozenset(
        {ProcState.SWAPPED, ProcState.RUNNING, ProcState.BLOCKED, ProcState.STOPPED, ProcState.ZOMBIE}
    ),
    ProcState.SWAPPED: frozenset(
        {ProcState.READY, ProcState.RUNNING, ProcState.BLOCKED, ProcState.STOPPED, ProcState.ZOMBIE}
    ),
    ProcState.RUNNING: frozenset(
        {ProcState.READY, ProcState.SWAPPED, ProcState.BLOCKED, ProcState.STOPPED, ProcState.ZOMBIE}
    ),
    ProcState.BLOCKED: frozenset(  # the move to itself is to another reason
        {
            ProcState.READY,
            ProcState.SWAPPED,
            ProcState.RUNNING,
            ProcState.BLOCKED,
            ProcState.STOPPED,
            ProcState.ZOMBIE,
        }
    ),
    ProcState.STOPPED: frozenset({ProcState.READY, ProcState.SWAPPED, ProcState.BLOCKED, ProcState.ZOMBIE}),
    ProcState.ZOMBIE: frozenset(),
}


def move(process: Movable, state: ProcState, blocked_on: BlockReason | None = None) -> None:
    """Move a process to `state`. Mutates it.

    Raises:
        KernelPanic: the table has no such move, or `blocked_on` is not given exactly with BLOCKED.
    """
    if state not in TRANSITIONS[process.state]:
        raise KernelPanic(f"process {process.pid}: no move from {process.state.value} to {state.value}")
    if (state is ProcState.BLOCKED) != (blocked_on is not None):
        raise KernelPanic(f"process {process.pid}: {state.value} with blocked_on {blocked_on}")
    process.state = state
    process.blocked_on = blocked_on
