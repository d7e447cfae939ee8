"""Checks that several calls make of their arguments: each names what is wrong, and the limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmos.kernel.tenants import Tenant
from llmos.params import MAX_GRAMMAR_CHARACTERS_IN_USE
from llmos.proc.pcb import Process
from llmos.sched.core import Core
from syscalls.embedding import Embed
from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.process import MAX_LABEL_LENGTH, MAX_NICE, MAX_USER_LENGTH, MIN_NICE, Spawn

MAX_SALT_LENGTH = 256


def check_tokens(core: Core, name: str, tokens: Sequence[int]) -> None:
    """Raise SyscallError EINVAL unless `tokens` are some ids of the device's model."""
    assert core.loaded is not None
    if not tokens:
        raise invalid_parameter(name, "is empty")
    vocab_size = core.loaded.model.vocab_size
    if not (min(tokens) >= 0 and max(tokens) < vocab_size):
        raise invalid_parameter(name, f"holds an id outside the vocabulary of {vocab_size}")


def check_offset(process: Process, offset: int) -> None:
    """Raise SyscallError EINVAL for an offset that a process's output has not come to."""
    if not 0 <= offset <= len(process.output):
        raise SyscallError(
            Errno.EINVAL,
            f"offset is {offset}; process {process.pid} has {len(process.output)} output tokens",
        )


def most_tokens(core: Core, tenant: Tenant) -> int:
    """How long a process can get: the context, or what the device or the tenant's part of it holds."""
    assert core.loaded is not None
    kv = core.loaded.kv
    most = min(core.loaded.model.max_model_len, kv.capacity(core.loaded.num_frames))
    if tenant.limits.max_resident_bytes is not None:
        most = min(most, kv.capacity(tenant.limits.max_resident_bytes // kv.frame_bytes))
    return most


def check_memory(core: Core, tenant: Tenant, num_tokens: int, of: str = "") -> None:
    """Raise SyscallError ENOMEM when so many tokens never fit in a device, or in the tenant's part of it.

    `of` begins the message, and says whose tokens they are where a call has several.
    """
    assert core.loaded is not None
    kv, num_frames = core.loaded.kv, core.loaded.num_frames
    needed = kv.num_pages(num_tokens) * kv.frames_per_page
    if needed > num_frames:
        raise SyscallError(
            Errno.ENOMEM,
            f"{of}{num_tokens} tokens need {needed} frames; {core.name} has {num_frames} in all",
        )
    check_allowance(core, tenant, num_tokens)


def check_allowance(core: Core, tenant: Tenant, num_tokens: int) -> None:
    """Raise SyscallError ENOMEM when so many tokens never fit in the memory that a tenant may have."""
    if tenant.limits.max_resident_bytes is not None and num_tokens > (most := most_tokens(core, tenant)):
        raise SyscallError(
            Errno.ENOMEM,
            f"{num_tokens} tokens are more than the {most} for which tenant {tenant.name} may have memory",
        )


def check_label(label: str | None) -> None:
    """Raise SyscallError EINVAL when a label is too long."""
    if label is not None and len(label) > MAX_LABEL_LENGTH:
        raise invalid_parameter("label", f"has {len(label)} characters; the limit is {MAX_LABEL_LENGTH}")


def check_terms(core: Core, tenant: Tenant, body: Spawn | Embed) -> None:
    """Check what any new process may ask for: its label, nice level, deadline, salt, pin and user.

    Raises:
        SyscallError: EINVAL; EPERM: a nice level below the tenant's.
    """
    check_label(body.label)
    if not MIN_NICE <= body.nice <= MAX_NICE:
        raise invalid_parameter("nice", f"is {body.nice}; the limit is {MIN_NICE} to {MAX_NICE}")
    tenant.check_nice(body.nice)
    if body.deadline_seconds is not None and not 0 < body.deadline_seconds < math.inf:
        raise invalid_parameter(
            "deadline_seconds", f"is {body.deadline_seconds}; it must be positive and finite"
        )
    if len(body.cache_salt) > MAX_SALT_LENGTH:
        raise invalid_parameter(
            "cache_salt", f"has {len(body.cache_salt)} characters; the limit is {MAX_SALT_LENGTH}"
        )
    if not 0 <= body.pin_seconds <= core.memory.max_pin_seconds:
        raise invalid_parameter(
            "pin_seconds", f"is {body.pin_seconds}; the limit is 0 to {core.memory.max_pin_seconds:g}"
        )
    if len(body.user) > MAX_USER_LENGTH:
        raise invalid_parameter("user", f"has {len(body.user)} characters; the limit is {MAX_USER_LENGTH}")


def check_grammar_room(core: Core, grammar: str | None) -> None:
    """Raise SyscallError EAGAIN when a device has as many grammars in use as it may."""
    grammars = core.residents.grammars
    if grammar is not None and not grammars.has_room(grammar):
        raise SyscallError(
            Errno.EAGAIN,
            f"grammar has {len(grammar)} characters; those in use on {core.name} have "
            f"{grammars.statistics().num_characters}, and the limit is {MAX_GRAMMAR_CHARACTERS_IN_USE}",
        )
