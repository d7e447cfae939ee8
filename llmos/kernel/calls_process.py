"""Handlers of the process family."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import trio

from llmos.kernel.checks import check_allowance, check_offset, check_tokens, most_tokens
from llmos.kernel.inspection import why_info
from llmos.kernel.output import make_output
from llmos.kernel.session import Session
from llmos.kernel.spawning import check_spawn, make_children, make_processes
from llmos.kernel.system import System
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process, Reader
from llmos.sched import messages
from syscalls import process as p
from syscalls.codec import Answer, error_reply
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.system import Done


def _now_or_later(session: Session, call_id: int, answer: Answer) -> messages.Done:
    """Make the `done` of a command: it answers the call with `answer`, or with the error."""

    def done(error: SyscallError | None) -> None:
        session.reply(call_id, error_reply(error) if error else answer)

    return done


def spawn(system: System, session: Session, call_id: int, body: p.Spawn) -> Answer | None:
    """See syscalls.process.Spawn."""
    if body.sampling.grammar is None:
        return _spawn_now(system, session, body)
    core = system.place(body.model)
    check_spawn(core, system.tenants.of(session.tenant), body)  # what costs little comes first
    errand = partial(_spawn_when_checked, system, session, body.sampling.grammar, body)
    system.errands.start(session, call_id, errand, is_lasting=False)
    return None


async def _spawn_when_checked(system: System, session: Session, grammar: str, body: p.Spawn) -> Answer:
    await system.grammars.check(grammar, system.errands.run_blocking)
    await trio.lowlevel.checkpoint()  # the session may have ended; from here on nothing waits
    return _spawn_now(system, session, body)


def _spawn_now(system: System, session: Session, body: p.Spawn) -> p.Spawned:
    system.check_open()
    core = system.place(body.model)
    processes = make_processes(system, core, session, body)
    core.mailbox.send_nowait(messages.Enqueue(processes))
    return spawned(system, processes)


def spawned(system: System, processes: Sequence[Process]) -> p.Spawned:
    """The answer to a call that has created processes of one tenant."""
    rates = system.tenants.of(processes[0].tenant).rates()
    return p.Spawned(
        tuple(process.pid for process in processes),
        tuple(process.sampling.seed or 0 for process in processes),
        rates if rates.requests or rates.tokens else None,
    )


def fork(system: System, session: Session, call_id: int, body: p.Fork) -> Answer | None:
    """See syscalls.process.Fork."""
    parent = session.process(body.pid)
    system.check_open()
    parent.check_lives()
    core = system.core_of(parent)
    children = make_children(system, session, parent, body)
    answer = spawned(system, children)

    def done(error: SyscallError | None) -> None:
        if error is not None:
            system.tenants.of(parent.tenant).take_back(0)
            for child in children:
                system.discard(child)
        _now_or_later(session, call_id, answer)(error)

    core.mailbox.send_nowait(messages.Fork(parent, children, done))
    return None


def wait(system: System, session: Session, call_id: int, body: p.Wait) -> Answer | None:
    """See syscalls.process.Wait."""
    process = session.process(body.pid)

    def answer(ended: Process) -> None:
        assert ended.status is not None
        session.reply(call_id, p.Waited(ended.pid, ended.status, ended.usage(trio.current_time())))
        system.reap(ended)

    if process.state is ProcState.ZOMBIE:
        answer(process)
        return None
    process.exit_callbacks.append(answer)
    session.park(
        call_id, lambda: process.exit_callbacks.remove(answer) if answer in process.exit_callbacks else None
    )
    return None


def read(system: System, session: Session, call_id: int, body: p.Read) -> Answer | None:
    """See syscalls.process.Read."""
    process = session.process(body.pid)
    check_offset(process, body.offset)

    def answer(ready: Process) -> None:
        session.reply(call_id, make_output(ready, body.offset, len(ready.output)))
        if ready.auto_reap and ready.state is ProcState.ZOMBIE:
            system.reap(ready)

    if process.can_read(body.offset):
        answer(process)
        return None
    reader = Reader(body.offset, answer)
    process.readers.append(reader)
    session.park(call_id, lambda: process.readers.remove(reader) if reader in process.readers else None)
    return None


def write(system: System, session: Session, call_id: int, body: p.Write) -> Answer | None:
    """See syscalls.process.Write."""
    process = session.process(body.pid)
    core = system.core_of(process)
    if core.loaded is None:
        raise SyscallError(Errno.EBUSY, f"process {process.pid} has exited, and its model was unloaded")
    check_tokens(core, "tokens", body.tokens)
    if body.max_tokens is not None and body.max_tokens < 1:
        raise invalid_parameter("max_tokens", f"is {body.max_tokens}; at least 1")
    tenant = system.tenants.of(process.tenant)
    length = len(process.tokens) + len(body.tokens)
    check_allowance(core, tenant, length + (body.max_tokens or 1))
    max_tokens = body.max_tokens
    if max_tokens is None and (room := most_tokens(core, tenant) - length) > 0:
        max_tokens = room
    tenant.admit(1, len(body.tokens))
    answer = _now_or_later(session, call_id, Done())

    def done(error: SyscallError | None) -> None:
        if error is not None:
            tenant.take_back(len(body.tokens))
        answer(error)

    core.mailbox.send_nowait(messages.WriteInput(process, body.tokens, max_tokens, done))
    return None


def kill(system: System, session: Session, call_id: int, body: p.Kill) -> Answer | None:
    """See syscalls.process.Kill."""
    process = session.process(body.pid)
    reason = f"killed by session {session.id}"
    system.core_of(process).mailbox.send_nowait(
        messages.Kill(process, reason, _now_or_later(session, call_id, Done()))
    )
    return None


def stop(system: System, session: Session, call_id: int, body: p.Stop) -> Answer | None:
    """See syscalls.process.Stop."""
    process = session.process(body.pid)
    system.core_of(process).mailbox.send_nowait(
        messages.Stop(process, _now_or_later(session, call_id, Done()))
    )
    return None


def cont(system: System, session: Session, call_id: int, body: p.Cont) -> Answer | None:
    """See syscalls.process.Cont."""
    process = session.process(body.pid)
    system.core_of(process).mailbox.send_nowait(
        messages.Cont(process, _now_or_later(session, call_id, Done()))
    )
    return None


def nice(system: System, session: Session, call_id: int, body: p.Nice) -> Answer | None:
    """See syscalls.process.Nice."""
    if not p.MIN_NICE <= body.nice <= p.MAX_NICE:
        raise invalid_parameter("nice", f"is {body.nice}; the limit is {p.MIN_NICE} to {p.MAX_NICE}")
    process = session.process(body.pid)
    if not session.is_admin:
        system.tenants.of(process.tenant).check_nice(body.nice)
    system.core_of(process).mailbox.send_nowait(
        messages.Renice(process, body.nice, _now_or_later(session, call_id, Done()))
    )
    return None


def ps(system: System, session: Session, call_id: int, body: p.Ps) -> Answer:
    """See syscalls.process.Ps."""
    if body.everyone:
        session.check_admin("listing everyone's processes is")
    processes = [q for q in system.table if body.everyone or q.tenant == session.tenant]
    processes.sort(key=lambda q: q.pid)
    return p.ProcessList(tuple(system.process_info(q, shared=body.shared) for q in processes))


def stat(system: System, session: Session, call_id: int, body: p.Stat) -> Answer:
    """See syscalls.process.Stat."""
    return system.process_info(session.process(body.pid))


def why(system: System, session: Session, call_id: int, body: p.Why) -> Answer:
    """See syscalls.process.Why."""
    return why_info(system, session.process(body.pid))
