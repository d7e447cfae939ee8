"""Tenant family: shares."""

from __future__ import annotations

import msgspec


class Shares(msgspec.Struct, frozen=True, tag="shares"):
    """Read what tenants were served, and what they have now: the caller's, or to administrators everybody's.

    No errors.
    """


class TenantShare(msgspec.Struct, frozen=True):
    """One tenant on all devices. Counters count from boot; each token counts once."""

    tenant: str
    weight: float  # twice the weight is twice the share
    counter: float  # weighted service; whoever has least is next
    num_prompt_tokens: int  # computed for it: not those that were found in memory
    num_output_tokens: int
    token_seconds: float  # memory held: tokens times seconds
    num_running: int
    num_waiting: int
    num_resident_bytes: int  # of its processes; a page that several of them map counts once


class ShareList(msgspec.Struct, frozen=True, tag="share_list"):
    """Reply to `Shares`, ordered by tenant."""

    shares: tuple[TenantShare, ...]
