"""Handler of the embedding family: every argument is checked here, by name and limit."""

from __future__ import annotations

import trio

from llmos.kernel.calls_process import spawned
from llmos.kernel.checks import check_memory, check_terms, check_tokens
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.kernel.tenants import Tenant
from llmos.proc.pcb import Process
from llmos.sched import messages
from llmos.sched.core import Core
from syscalls.codec import Answer
from syscalls.embedding import MAX_INPUTS, Embed, Pooling
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.sampling import Sampling


def embed(system: System, session: Session, call_id: int, body: Embed) -> Answer | None:
    """See syscalls.embedding.Embed."""
    system.check_open()
    core = system.place(body.model, embeds=True)
    pooling = check_embed(core, system.tenants.of(session.tenant), body)
    processes = _make_processes(system, core, session, body, pooling)
    for process in processes:
        core.mailbox.send_nowait(messages.Enqueue((process,)))
    return spawned(system, processes)


def check_embed(core: Core, tenant: Tenant, body: Embed) -> Pooling:
    """Check every argument against the model and the device; return how vectors are made.

    Raises:
        SyscallError: EINVAL, EPERM, E2BIG, ENOMEM.
    """
    assert core.loaded is not None
    model = core.loaded.model
    if model.embedding is None:
        raise SyscallError(Errno.EINVAL, f"model {model.name!r} makes no vectors", parameter="model")
    poolings = model.embedding.poolings
    kind = body.pooling or poolings[0]
    if kind not in poolings:
        raise invalid_parameter("pooling", f"is {kind!r}; {model.name!r} can do {', '.join(poolings)}")
    if not 1 <= len(body.inputs) <= MAX_INPUTS:
        raise invalid_parameter("inputs", f"has {len(body.inputs)} entries; the limit is 1 to {MAX_INPUTS}")
    check_terms(core, tenant, body)
    for index, tokens in enumerate(body.inputs):
        _check_input(core, tenant, f"inputs[{index}]", tokens)
    return Pooling(kind, body.normalise)


def _check_input(core: Core, tenant: Tenant, name: str, tokens: tuple[int, ...]) -> None:
    assert core.loaded is not None
    check_tokens(core, name, tokens)
    context = core.loaded.model.max_model_len
    if len(tokens) > context:
        raise SyscallError(Errno.E2BIG, f"{name} has {len(tokens)} tokens; the context is {context} tokens")
    check_memory(core, tenant, len(tokens), of=f"{name}: ")


def _make_processes(
    system: System, core: Core, session: Session, body: Embed, pooling: Pooling
) -> list[Process]:
    """Make a process for each input, in the table, in state EMBRYO. Raises SyscallError: EAGAIN, EDQUOT."""
    assert core.loaded is not None
    now = trio.current_time()
    pids = system.table.new_pids(len(body.inputs))
    system.tenants.of(session.tenant).admit(len(pids), sum(map(len, body.inputs)))
    processes = []
    for pid, tokens in zip(pids, body.inputs, strict=True):
        process = Process(
            pid=pid,
            tenant=session.tenant,
            session=session.id,
            label=body.label,
            user=body.user,
            model=core.loaded.model.name,
            device=core.name,
            sampling=Sampling(seed=0),
            stop_tokens=frozenset(),
            pooling=pooling,
            is_whole=not core.loaded.model.generates,
            auto_reap=body.auto_reap,
            deadline_seconds=body.deadline_seconds,
            cache_salt=body.cache_salt,
            pin_seconds=body.pin_seconds,
            spawned_at=now,
            turn_started_at=now,
            arrival=pid,
            nice=body.nice,
            tokens=list(tokens),
            turn_start=len(tokens),
            max_tokens=0,
            num_prompt_tokens=len(tokens),
            num_uncharged=len(tokens),
        )
        system.enter(process)
        processes.append(process)
    return processes
