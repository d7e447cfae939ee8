"""What a Core does when told to: one small function for each command.

They run between steps, in the Core's own task, and are synchronous: a command is whole before the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import trio

from llmos.mm.page_copy import PageCopy
from llmos.proc.lifecycle import Prefill, ProcState, move
from llmos.proc.pcb import Process
from llmos.sched.messages import Command, Cont, Fork, Kill, Renice, Stop, WriteInput
from llmos.sched.residents import Residents
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus


def carry_out(residents: Residents, command: Command, context: int) -> None:
    """Carry one command out and report its outcome; `context` is the model's limit in tokens."""
    try:
        match command:
            case Kill(process, message, _):
                residents.terminate(process, ExitStatus("killed", message=message))
            case Stop(process, _):
                stop(residents, process)
            case Cont(process, _):
                cont(residents, process)
            case Renice(process, nice, _):
                if process.state is ProcState.ZOMBIE:
                    process.nice = nice
                else:
                    residents.queue.renice(process, nice)
                    residents.admission_is_due = True
            case WriteInput(process, tokens, max_tokens, _):
                write_input(residents, process, tokens, max_tokens, context)
            case Fork(parent, children, _):
                fork(residents, parent, children)
            case _:
                assert_never(command)
    except SyscallError as error:
        command.done(error)
    else:
        command.done(None)


def enqueue(residents: Residents, processes: Sequence[Process]) -> None:
    """Take new processes in: the elder is ready, its heirs wait for its prefill."""
    for process in processes:
        residents.grammars.join(process)
    elder, *heirs = processes
    residents.begin(elder)
    elder.heirs = heirs
    for heir in heirs:
        move(heir, ProcState.BLOCKED, Prefill(elder.pid))
        residents.queue.add(heir)
        residents.recorder.note_state(heir)
    residents.admission_is_due = True


def restore(residents: Residents, process: Process, pages: Sequence[PageCopy]) -> None:
    """Take in a process from an image: it goes on, or waits for input, with its memory in a file."""
    assert residents.switch is not None
    residents.switch.swap.copies.adopt(process.backing, pages)
    residents.grammars.join(process)
    if process.turn_is_over:
        process.idle_since = trio.current_time()
    residents.begin(process)
    residents.admission_is_due = True


def stop(residents: Residents, process: Process) -> None:
    """Keep a process from running; its memory and the samples in flight stay its own."""
    process.check_lives()
    if process.state is ProcState.STOPPED:
        return
    residents.set_state(process, ProcState.STOPPED)
    if process.heirs and residents.switch is not None:
        residents.release_heirs(process)  # they must not wait for someone who does not run
    residents.admission_is_due = True


def cont(residents: Residents, process: Process) -> None:
    """Let a stopped process go on."""
    if process.state is not ProcState.STOPPED:
        raise SyscallError(Errno.EBUSY, f"process {process.pid} is {process.describe_state}, not STOPPED")
    blocks = process.turn_is_over or process.num_arriving
    residents.set_state(process, ProcState.BLOCKED if blocks else process.ready_state)
    residents.admission_is_due = True


def write_input(
    residents: Residents, process: Process, tokens: tuple[int, ...], max_tokens: int | None, context: int
) -> None:
    """Start the next turn of a process that waits for input.

    Args:
        residents: of its device.
        process: goes on.
        tokens: of the input.
        max_tokens: most that are output; None: as many as there is room for.
        context: the model's limit in tokens.

    Raises:
        SyscallError: EBUSY, it does not wait for input; E2BIG, ENOMEM: it would get too long.
    """
    if not (process.interactive and process.turn_is_over) or process.state is ProcState.ZOMBIE:
        raise SyscallError(
            Errno.EBUSY, f"process {process.pid} is {process.describe_state}; it does not wait for input"
        )
    length = len(process.tokens) + len(tokens)
    num_output = max_tokens or 1
    if length + num_output > context:
        raise SyscallError(
            Errno.E2BIG,
            f"the context is {context} tokens; {len(process.tokens)} are used, "
            f"{len(tokens)} more and {num_output} of output were asked for",
        )
    room = context
    if residents.switch is not None:
        vmm = residents.switch.vmm
        room = min(context, vmm.kv.capacity(vmm.num_frames))
        if length + num_output > room:
            raise SyscallError(
                Errno.ENOMEM,
                f"{length + num_output} tokens do not fit in the {vmm.num_frames} frames of "
                f"{residents.device}, which hold {room}",
            )
    process.tokens.extend(tokens)
    process.num_prompt_tokens += len(tokens)
    process.num_uncharged += len(tokens)
    process.turn_start = len(process.tokens)
    process.max_tokens = max_tokens or room - length
    process.turn_started_at = trio.current_time()
    process.timeline.given(process.turn_started_at, len(tokens))
    process.status = None
    process.idle_since = None
    process.bound = False
    if process.state is ProcState.BLOCKED:
        residents.set_state(process, process.ready_state)
    residents.admission_is_due = True


def fork(residents: Residents, parent: Process, children: Sequence[Process]) -> None:
    """Give children the parent's history as known now; memory is shared copy-on-write."""
    parent.check_lives()
    for child in children:
        child.tokens = list(parent.tokens)
        child.output = list(parent.output)
        child.logprobs = list(parent.logprobs)
        child.mu = parent.mu
        child.turn_start = parent.turn_start
        child.max_tokens = parent.max_tokens
        child.num_prompt_tokens = parent.num_prompt_tokens
        child.num_uncharged = parent.num_uncharged  # what the parent was charged for is there
        child.status = parent.status
        child.nice = parent.nice
        if parent.space is not None and residents.switch is not None:
            shared = min(parent.num_scheduled, len(parent.tokens) - 1)
            residents.share_if_room(parent, child, shared)
        elif residents.switch is not None:
            residents.switch.inherit(parent, child)
        residents.grammars.join(child)
        residents.begin(child)
    residents.admission_is_due = True
