"""Tenant family: whoami, tenants, reload_tenants, shares. A session acts for a tenant, which has limits."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a tenant may have at most; null: no limit."""

    max_running: int | None = None  # processes that run at once, on each device
    max_waiting: int | None = None  # processes that wait to run, or are about to
    requests_per_minute: float | None = None  # spawns, forks and writes; a minute's worth may come at once
    tokens_per_minute: float | None = None  # of prompts, when they are admitted, and of output, as it is made
    max_resident_bytes: int | None = None  # memory of its processes, on each device
    min_nice: int | None = None  # the most important level that it may ask for; beyond: EPERM
    token_budget: int | None = None  # in all, over restarts, counted like those per minute


class Rate(msgspec.Struct, frozen=True):
    """A limit per minute, and how much of it is left."""

    limit: float
    remaining: float  # below 0 after more output than the prompt's admission could foresee
    reset_seconds: float  # until all of it is there again, if nothing more is asked for


class Rates(msgspec.Struct, frozen=True):
    """The limits per minute of a tenant that has some."""

    requests: Rate | None = None
    tokens: Rate | None = None


class Exceeded(msgspec.Struct, frozen=True):
    """The limit that refused a call with EDQUOT."""

    limit: str  # a field of `Limits`
    value: float
    retry_seconds: float | None  # when the same call may succeed; null: never
    rates: Rates = Rates()  # what is left of the limits per minute


class Whoami(msgspec.Struct, frozen=True, tag="whoami"):
    """Ask whom this session acts for. No errors."""


class Identity(msgspec.Struct, frozen=True, tag="identity"):
    """Reply to `Whoami`."""

    tenant: str
    admin: bool
    session: int
    uid: int  # of the operating system's user at the other end of the socket


class Tenants(msgspec.Struct, frozen=True, tag="tenants"):
    """Describe the caller's tenant; `everyone` describes all (administrators). Errors: EPERM."""

    everyone: bool = False


class TenantInfo(msgspec.Struct, frozen=True):
    """A tenant's limits, and what it uses of them."""

    name: str
    limits: Limits
    rates: Rates
    share: float  # of all service in the last minute, 0 to 1; an output token counts as two of a prompt
    num_processes: int  # that have not exited
    num_refused: int  # calls, with EDQUOT, since boot
    usage: TenantShare
    num_spent_tokens: int = 0  # of its budget; 0 without one


class TenantList(msgspec.Struct, frozen=True, tag="tenant_list"):
    """Reply to `Tenants`, by name. Those with keys or users are there before anybody acts for them."""

    tenants: tuple[TenantInfo, ...]


class ReloadTenants(msgspec.Struct, frozen=True, tag="reload_tenants"):
    """Read the tenants file again, all or nothing: names, keys, users, weights and limits hold from now on.

    Sessions whose key or user no longer stands for their tenant end, and with them the processes that live
    with them; detached ones go on, those of a tenant that is named no longer under the default limits.

    Errors: EPERM (administrators only), EINVAL (there is no file, it is wrong, or it would bring the first
    key or take the last; the message names it, and everything stays as it was).
    """


class TenantsReloaded(msgspec.Struct, frozen=True, tag="tenants_reloaded"):
    """Reply to `ReloadTenants`: names, in order."""

    added: tuple[str, ...]
    changed: tuple[str, ...]  # in anything: keys, users, weight, limits, rights
    removed: tuple[str, ...]
    num_ended_sessions: int


class Shares(msgspec.Struct, frozen=True, tag="shares"):
    """Read what tenants were served, and what they have now: the caller's, or to administrators everybody's.

    No errors.
    """

    memory: bool = True  # False: num_resident_bytes is 0, and no page is walked to count it


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
