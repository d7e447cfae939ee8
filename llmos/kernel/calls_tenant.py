"""Handlers of the tenant family."""

from __future__ import annotations

import trio

from llmos.kernel.inspection import tenant_shares
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls.codec import Answer
from syscalls.errno import Errno, SyscallError
from syscalls.tenant import (
    Identity,
    ReloadTenants,
    ShareList,
    Shares,
    TenantInfo,
    TenantList,
    Tenants,
    TenantShare,
    Whoami,
)  # fmt: skip


def whoami(system: System, session: Session, call_id: int, body: Whoami) -> Answer:
    """See syscalls.tenant.Whoami."""
    return Identity(session.tenant, session.is_admin, session.id, session.uid)


def tenants(system: System, session: Session, call_id: int, body: Tenants) -> Answer:
    """See syscalls.tenant.Tenants."""
    if body.everyone:
        session.check_admin("describing every tenant is")
    now = trio.current_time()
    usage = {share.tenant: share for share in tenant_shares(system)}
    total = sum(tenant.service.total(now) for tenant in system.tenants)
    chosen = system.tenants if body.everyone else (system.tenants.of(session.tenant),)
    return TenantList(
        tuple(
            TenantInfo(
                name=tenant.name,
                limits=tenant.limits,
                rates=tenant.rates(),
                share=tenant.service.total(now) / total if total else 0.0,
                num_processes=len(tenant.processes),
                num_refused=tenant.num_refused,
                usage=usage[tenant.name],
                num_spent_tokens=tenant.num_spent,
            )
            for tenant in chosen
        )
    )


def reload_tenants(system: System, session: Session, call_id: int, body: ReloadTenants) -> Answer | None:
    """See syscalls.tenant.ReloadTenants."""
    session.check_admin("reading the tenants again is")
    if system.reload_tenants is None:
        raise SyscallError(Errno.EINVAL, "this kernel was started without a tenants file")
    system.errands.start(session, call_id, system.reload_tenants, is_lasting=True)
    return None


def shares(system: System, session: Session, call_id: int, body: Shares) -> Answer:
    """See syscalls.tenant.Shares."""
    return ShareList(visible_shares(system, session, body.memory))


def visible_shares(system: System, session: Session, memory: bool = True) -> tuple[TenantShare, ...]:
    """The shares that a client may see: its own, and an administrator everybody's."""
    found = tenant_shares(system, memory)
    return tuple(share for share in found if session.is_admin or share.tenant == session.tenant)
