"""What a Core does when told to: one small function for each command.

They run between steps, in the Core's own task, and are synchronous: a command is whole before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, assert_never

import trio

from llmos.proc.lifecycle import BlockReason, Input, Prefill, ProcState, move
from llmos.proc.pcb import Process
from llmos.sched.messages import Command, Cont, Fork, Kill, Renice, Stop, WriteInput
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus

if TYPE_CHECKING:
    from llmos.sched.core import Core


def carry_out(core: Core, command: Command) -> None:
    """Carry one command out and report its outcome."""
    try:
        match command:
            case Kill(process, message, _):
                core.terminate(process, ExitStatus("killed", message=message))
            case Stop(process, _):
                stop(core, process)
            case Cont(process, _):
                cont(core, process)
            case Renice(process, nice, _):
                if process.state is ProcState.ZOMBIE:
                    process.nice = nice
                else:
                    core.queue.renice(process, nice)
                    core.admission_is_due = True
            case WriteInput(process, tokens, max_tokens, _):
                write_input(core, process, tokens, max_tokens)
            case Fork(parent, children, _):
                fork(core, parent, children)
            case _:
                assert_never(command)
    except SyscallError as error:
        command.done(error)
    else:
        command.done(None)


def block_reason(process: Process) -> BlockReason:
    """What a process that goes BLOCKED now waits for."""
    if process.turn_is_over:
        return Input()
    assert process.parent is not None
    return Prefill(process.parent)


def enqueue(core: Core, processes: Sequence[Process]) -> None:
    """Take new processes in: the elder is ready, its heirs wait for its prefill."""
    elder, *heirs = processes
    move(elder, ProcState.READY)
    elder.heirs = heirs
    core.queue.add(elder)
    for heir in heirs:
        move(heir, ProcState.BLOCKED, Prefill(elder.pid))
        core.queue.add(heir)
    core.admission_is_due = True


def _refuse_zombie(process: Process) -> None:
    if process.state is ProcState.ZOMBIE:
        raise SyscallError(Errno.EBUSY, f"process {process.pid} has exited")


def stop(core: Core, process: Process) -> None:
    """Keep a process from running; its memory and the samples in flight stay its own."""
    _refuse_zombie(process)
    if process.state is ProcState.STOPPED:
        return
    core.set_state(process, ProcState.STOPPED)
    if process.heirs and core.switch is not None:
        core.release_heirs(process)  # they must not wait for someone who does not run
    core.admission_is_due = True


def cont(core: Core, process: Process) -> None:
    """Let a stopped process go on."""
    if process.state is not ProcState.STOPPED:
        raise SyscallError(Errno.EBUSY, f"process {process.pid} is {process.describe_state}, not STOPPED")
    core.set_state(process, ProcState.BLOCKED if process.turn_is_over else ProcState.READY)
    core.admission_is_due = True


def write_input(core: Core, process: Process, tokens: tuple[int, ...], max_tokens: int | None) -> None:
    """Start the next turn of a process that waits for input."""
    if not (process.interactive and process.turn_is_over) or process.state is ProcState.ZOMBIE:
        raise SyscallError(
            Errno.EBUSY, f"process {process.pid} is {process.describe_state}; it does not wait for input"
        )
    assert core.loaded is not None
    context = core.loaded.model.max_model_len
    length = len(process.tokens) + len(tokens)
    if length + (max_tokens or 1) > context:
        raise SyscallError(
            Errno.E2BIG,
            f"the context is {context} tokens; {len(process.tokens)} are used, "
            f"{len(tokens)} more and {max_tokens or 1} of output were asked for",
        )
    process.tokens.extend(tokens)
    process.num_prompt_tokens += len(tokens)
    process.turn_start = len(process.tokens)
    process.max_tokens = max_tokens or context - length
    process.turn_started_at = trio.current_time()
    process.status = None
    process.bound = False
    if process.state is ProcState.BLOCKED:
        core.set_state(process, ProcState.READY)
    core.admission_is_due = True


def fork(core: Core, parent: Process, children: Sequence[Process]) -> None:
    """Give children the parent's history as known now; memory is shared copy-on-write."""
    _refuse_zombie(parent)
    for child in children:
        child.tokens = list(parent.tokens)
        child.output = list(parent.output)
        child.logprobs = list(parent.logprobs)
        child.turn_start = parent.turn_start
        child.max_tokens = parent.max_tokens
        child.num_prompt_tokens = parent.num_prompt_tokens
        child.status = parent.status
        child.nice = parent.nice
        if parent.space is not None and core.switch is not None:
            shared = min(parent.num_scheduled, len(parent.tokens) - 1)
            core.share_if_room(parent, child, shared)
        if child.turn_is_over:
            move(child, ProcState.BLOCKED, Input())
        else:
            move(child, ProcState.READY)
        core.queue.add(child)
    core.admission_is_due = True
