"""Handlers of the tenant family."""

from __future__ import annotations

from llmos.kernel.inspection import tenant_shares
from llmos.kernel.session import Session
from llmos.kernel.system import System
from syscalls.codec import Answer
from syscalls.tenant import ShareList, Shares


def shares(system: System, session: Session, call_id: int, body: Shares) -> Answer:
    """See syscalls.tenant.Shares."""
    found = tenant_shares(system)
    return ShareList(tuple(share for share in found if session.is_admin or share.tenant == session.tenant))
