"""From a spawn or fork call to processes: every argument is checked here, by name and limit."""

from __future__ import annotations

import random

import msgspec
import trio

from llmos.kernel.checks import (
    check_grammar_room,
    check_label,
    check_memory,
    check_terms,
    check_tokens,
    most_tokens,
)
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.kernel.tenants import Tenant
from llmos.proc.pcb import Process
from llmos.sched.core import Core
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.process import MAX_SAMPLES, Fork, Spawn

MAX_STOP_TOKENS = 64
MAX_SCORES = 500_000  # log-probabilities of a prompt: they go to the client in one reply


def _wrap_seed(seed: int) -> int:
    """Keep seed + i a signed 64-bit integer."""
    return (seed + 2**63) % 2**64 - 2**63


def check_spawn(core: Core, tenant: Tenant, body: Spawn) -> int:
    """Check every argument of a spawn against the model and the device; return the output limit.

    Raises:
        SyscallError: EINVAL, EPERM, E2BIG, ENOMEM, ENOENT, EAGAIN.
    """
    assert core.loaded is not None
    model = core.loaded.model
    if not model.generates:
        raise SyscallError(
            Errno.EINVAL, f"model {model.name!r} makes no text; `embed` is for it", parameter="model"
        )
    check_tokens(core, "prompt", body.prompt)
    context, length = model.max_model_len, len(body.prompt)
    room = most_tokens(core, tenant)
    wanted = body.max_tokens if body.max_tokens is not None else max(1, room - length)
    scores_only = body.sampling.prompt_logprobs is not None and length > 1 and body.num_samples == 1
    if wanted < 1 and not (wanted == 0 and scores_only and not body.interactive):
        raise invalid_parameter(
            "max_tokens",
            f"is {wanted}; at least 1, or 0 for one sample that is not interactive, of a prompt "
            "of two tokens or more, with prompt_logprobs",
        )
    if length + wanted > context:
        raise SyscallError(
            Errno.E2BIG,
            f"the context is {context} tokens; {length + wanted} were asked for ({length} in, {wanted} out)",
        )
    if not 1 <= body.num_samples <= MAX_SAMPLES:
        raise invalid_parameter("num_samples", f"is {body.num_samples}; the limit is 1 to {MAX_SAMPLES}")
    check_terms(core, tenant, body)
    if not 0 <= body.min_tokens <= wanted:
        raise invalid_parameter("min_tokens", f"is {body.min_tokens}; the limit is 0 to max_tokens, {wanted}")
    if len(body.stop_token_ids) > MAX_STOP_TOKENS:
        raise invalid_parameter(
            "stop_token_ids", f"has {len(body.stop_token_ids)} ids; the limit is {MAX_STOP_TOKENS}"
        )
    named = {"stop_token_ids": set(body.stop_token_ids), **body.sampling.token_ids}
    for name, ids in named.items():
        if not all(0 <= token < model.vocab_size for token in ids):
            raise invalid_parameter(name, f"holds an id outside the vocabulary of {model.vocab_size}")
    if (problem := body.sampling.explain_invalid()) is not None:
        raise SyscallError(Errno.EINVAL, problem, parameter="sampling")
    num_scores = length * (1 + (body.sampling.prompt_logprobs or 0))
    if body.sampling.prompt_logprobs is not None and num_scores > MAX_SCORES:
        raise invalid_parameter(
            "prompt_logprobs", f"of this prompt are {num_scores} numbers; the limit is {MAX_SCORES}"
        )
    if body.sampling.grammar is not None and not core.loaded.takes_grammars:
        raise invalid_parameter("grammar", f"is given; {core.name} cannot follow one with this model")
    check_grammar_room(core, body.sampling.grammar)
    check_memory(core, tenant, length + wanted)
    return wanted


def make_processes(system: System, core: Core, session: Session, body: Spawn) -> list[Process]:
    """Make the processes of a spawn, in the table, in state EMBRYO.

    Raises:
        SyscallError: what `check_spawn` says; EAGAIN: the table is full; EDQUOT, EPERM: the tenant's limits.
    """
    tenant = system.tenants.of(session.tenant)
    max_tokens = check_spawn(core, tenant, body)
    assert core.loaded is not None
    model = core.loaded.model
    seed = body.sampling.seed if body.sampling.seed is not None else random.getrandbits(63)
    stop_tokens = frozenset(body.stop_token_ids) | (
        frozenset() if body.ignore_eos else frozenset(model.eos_token_ids)
    )
    now = trio.current_time()
    pids = system.table.new_pids(body.num_samples)
    tenant.admit(body.num_samples, len(body.prompt))
    processes: list[Process] = []
    for i, pid in enumerate(pids):
        process = Process(
            pid=pid,
            parent=processes[0].pid if processes else None,
            tenant=session.tenant,
            session=None if body.detached else session.id,
            label=body.label,
            user=body.user,
            model=model.name,
            device=core.name,
            sampling=msgspec.structs.replace(body.sampling, seed=_wrap_seed(seed + i)),
            stop_tokens=stop_tokens,
            min_tokens=body.min_tokens,
            # those that share the first one's prefill do not see its logits
            num_to_score=0 if processes or body.sampling.prompt_logprobs is None else len(body.prompt) - 1,
            interactive=body.interactive,
            auto_reap=body.auto_reap,
            deadline_seconds=body.deadline_seconds,
            cache_salt=body.cache_salt,
            pin_seconds=body.pin_seconds,
            token_times=[] if body.token_times else None,
            spawned_at=now,
            turn_started_at=now,
            arrival=pid,
            nice=body.nice,
            tokens=list(body.prompt),
            turn_start=len(body.prompt),
            max_tokens=max_tokens,
            num_prompt_tokens=len(body.prompt),
            num_uncharged=len(body.prompt),
        )
        system.enter(process)
        processes.append(process)
    return processes


def make_children(system: System, session: Session, parent: Process, body: Fork) -> list[Process]:
    """Make the children of a fork, in the table, in state EMBRYO; their Core gives them history and memory.

    Raises:
        SyscallError: EINVAL, EAGAIN, EDQUOT.
    """
    if not 1 <= body.count <= MAX_SAMPLES:
        raise invalid_parameter("count", f"is {body.count}; the limit is 1 to {MAX_SAMPLES}")
    check_label(body.label)
    if parent.pooling is not None:
        raise SyscallError(
            Errno.EINVAL, f"process {parent.pid} makes a vector; it has nothing to continue", parameter="pid"
        )
    if body.seeds and len(body.seeds) != body.count:
        raise invalid_parameter("seeds", f"has {len(body.seeds)} entries for {body.count} children")
    if not all(-(2**63) <= seed < 2**63 for seed in body.seeds):
        raise invalid_parameter("seeds", "holds a value outside the signed 64-bit integers")
    now = trio.current_time()
    pids = system.table.new_pids(body.count)
    system.tenants.of(parent.tenant).admit(body.count, 0)
    children = []
    for i, pid in enumerate(pids):
        sampling = parent.sampling
        if body.seeds:
            sampling = msgspec.structs.replace(sampling, seed=body.seeds[i])
        child = Process(
            pid=pid,
            parent=parent.pid,
            tenant=parent.tenant,
            session=None if body.detached else session.id,
            label=parent.label if body.label is None else body.label,
            user=parent.user,
            model=parent.model,
            device=parent.device,
            sampling=sampling,
            stop_tokens=parent.stop_tokens,
            min_tokens=parent.min_tokens,
            interactive=parent.interactive,
            auto_reap=body.auto_reap,
            deadline_seconds=parent.deadline_seconds,
            cache_salt=parent.cache_salt,
            pin_seconds=parent.pin_seconds,
            spawned_at=now,
            turn_started_at=now,
            arrival=pid,
            tokens=[],
            turn_start=0,
            max_tokens=parent.max_tokens,
        )
        system.enter(child)
        children.append(child)
    return children
