"""Tenants: who they are, what they may have, and what they have."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping

import attrs
import trio

from llmos.kernel.bucket import Bucket
from llmos.kernel.recent import LastMinute
from llmos.kernel.spent import Spent
from llmos.proc.lifecycle import WAITING, Grammar, Prefill, ProcState
from llmos.proc.pcb import Process
from llmos.sched.accounts import Account, Accounts
from syscalls.errno import Errno, SyscallError
from syscalls.tenant import Exceeded, Limits, Rate, Rates

UNLIMITED = Limits()
QUEUE_RETRY_SECONDS = 1.0  # nobody knows when a queue gets shorter


@attrs.frozen(kw_only=True)
class Terms:
    """What is agreed with one tenant."""

    limits: Limits = UNLIMITED
    keys_sha256: tuple[str, ...] = ()  # in hex
    uids: tuple[int, ...] = ()
    is_admin: bool = False  # its keys are administrators'


@attrs.frozen(kw_only=True)
class Agreement:
    """What is agreed with everybody."""

    terms: Mapping[str, Terms] = attrs.field(factory=dict)  # by tenant
    default: Limits = UNLIMITED  # of those that have no terms
    weights: Mapping[str, float] = attrs.field(factory=dict)  # of those that do not weigh 1


@attrs.frozen(kw_only=True)
class Changes:
    """Tenants that another agreement has named anew, changed or left out; each by name."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]


@attrs.define(eq=False)
class Tenant:
    """One tenant of this kernel: its limits, its rates, its processes.

    Requests are counted when they are admitted. So are tokens of a prompt; those of the output are counted as
    they are made, and may make a debt that the next request waits for: how much output there will be is not
    known before, and most requests ask for far more than they take. A budget is spent in the same way, and
    does not come back.
    """

    name: str
    limits: Limits
    account: Account
    requests: Bucket | None
    tokens: Bucket | None
    spent: Spent
    processes: set[Process] = attrs.field(factory=set)  # that have not exited
    service: LastMinute = attrs.field(factory=LastMinute)
    num_refused: int = 0  # calls

    # --- admission ---------------------------------------------------------------------------------------

    def admit(self, num_processes: int, num_tokens: int) -> None:
        """Let a request in and count it, or change nothing.

        Args:
            num_processes: that will wait to run.
            num_tokens: of input, for which nothing has been computed yet.

        Raises:
            SyscallError: EDQUOT, with the limit and when to try again.
        """
        now = trio.current_time()
        most = self.limits.max_waiting
        if most is not None and self.num_waiting + num_processes > most:
            later = QUEUE_RETRY_SECONDS if num_processes <= most else None
            raise self._refuse("max_waiting", most, f"{self.num_waiting} wait, {num_processes} more", later)
        budget = self.limits.token_budget
        if budget is not None and (self.num_spent >= budget or self.num_spent + num_tokens > budget):
            left = max(0, budget - self.num_spent)
            raise self._refuse("token_budget", budget, f"{num_tokens} tokens more, {left} left", None)
        buckets = (("requests", self.requests, 1), ("tokens", self.tokens, num_tokens))
        for what, bucket, amount in buckets:
            if bucket is not None and (wait := bucket.wait_seconds(amount, now)) != 0:
                detail = f"{amount} {what} more, {bucket.level(now):.0f} left"
                raise self._refuse(f"{what}_per_minute", bucket.per_minute, detail, wait)
        for _, bucket, amount in buckets:
            if bucket is not None:
                bucket.take(amount, now)
        self._spend(num_tokens)

    def _spend(self, num_tokens: int) -> None:
        if self.limits.token_budget is not None and num_tokens:
            self.spent.add(self.name, num_tokens)

    def check_nice(self, nice: int) -> None:
        """Raise SyscallError EPERM for a level that is more important than the tenant may have."""
        least = self.limits.min_nice
        if least is not None and nice < least:
            message = (
                f"nice is {nice}; tenant {self.name} may have {least} and above (lower is more important)"
            )
            raise SyscallError(Errno.EPERM, message, parameter="nice")

    def _refuse(self, limit: str, value: float, detail: str, later: float | None) -> SyscallError:
        self.num_refused += 1
        when = "never fits" if later is None else f"try again in {later:.3g} s"
        when = "it does not come back" if limit == "token_budget" else when
        return SyscallError(
            Errno.EDQUOT,
            f"{limit} of tenant {self.name} is {value:g}: {detail}; {when}",
            Exceeded(limit, value, later, self.rates()),
        )

    def take_back(self, num_tokens: int) -> None:
        """A request that was admitted did not come about after all."""
        now = trio.current_time()
        for bucket, amount in ((self.requests, 1), (self.tokens, num_tokens)):
            if bucket is not None:
                bucket.give_back(amount, now)
        self._spend(-num_tokens)

    def observe_service(self, service: float, num_output_tokens: int) -> None:
        """It was served: told by its account, as it is charged."""
        now = trio.current_time()
        self.service.add(service, now)
        if num_output_tokens and self.tokens is not None:
            self.tokens.take(num_output_tokens, now)
        self._spend(num_output_tokens)

    # --- looking -----------------------------------------------------------------------------------------

    @property
    def num_spent(self) -> int:
        """Tokens of its budget that are spent; 0 without one."""
        return self.spent.of(self.name) if self.limits.token_budget is not None else 0

    @property
    def num_waiting(self) -> int:
        """Processes that wait to run, or are about to. O(processes of this tenant)."""
        return sum(
            process.state in WAITING
            or process.state is ProcState.EMBRYO
            or isinstance(process.blocked_on, Prefill | Grammar)
            for process in self.processes
        )

    def rates(self) -> Rates:
        """What is left of the limits per minute."""
        now = trio.current_time()
        return Rates(_rate(self.requests, now), _rate(self.tokens, now))


def has_budgets(terms: Mapping[str, Terms], default: Limits) -> bool:
    """True when somebody may spend only so much."""
    limits = (default, *(each.limits for each in terms.values()))
    return any(each.token_budget is not None for each in limits)


def hash_key(key: str) -> str:
    """SHA-256, in hex, as the tenants file has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def _change_bucket(bucket: Bucket | None, per_minute: float | None) -> Bucket | None:
    """A bucket of another rate that goes on from what was taken; None: without a limit."""
    now = trio.current_time()
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.change(per_minute, now)
    return bucket


def _rate(bucket: Bucket | None, now: float) -> Rate | None:
    if bucket is None:
        return None
    wait = bucket.wait_seconds(bucket.per_minute, now)
    assert wait is not None
    return Rate(bucket.per_minute, bucket.level(now), wait)


@attrs.define(eq=False)
class Tenants:
    """All tenants: those with terms, and whoever else opened a session, as `uid:N`.

    Args:
        accounts: where their service is counted.
        terms: by name.
        default: limits of those that have no terms.
        spent: counts what budgets there are.
    """

    accounts: Accounts
    terms: Mapping[str, Terms] = attrs.field(factory=dict)
    default: Limits = UNLIMITED
    spent: Spent = attrs.field(factory=Spent)
    _tenants: dict[str, Tenant] = attrs.field(init=False, factory=dict)
    _by_uid: dict[int, str] = attrs.field(init=False)
    _by_key: dict[str, str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._index_names()
        for name in self.terms:
            self.of(name)

    def _index_names(self) -> None:
        self._by_uid = {uid: name for name, terms in self.terms.items() for uid in terms.uids}
        self._by_key = {digest: name for name, terms in self.terms.items() for digest in terms.keys_sha256}

    def __iter__(self) -> Iterator[Tenant]:
        return iter(sorted(self._tenants.values(), key=lambda tenant: tenant.name))

    @property
    def needs_key(self) -> bool:
        """True when some tenant has a key: who opens a session for others must ask for theirs."""
        return bool(self._by_key)

    @property
    def has_budgets(self) -> bool:
        """True when somebody may spend only so much."""
        return has_budgets(self.terms, self.default)

    @property
    def names_users(self) -> bool:
        """True when some tenant has users: others of this machine may not open a session."""
        return bool(self._by_uid)

    def of(self, name: str) -> Tenant:
        """A tenant; opened when it is not there yet."""
        if (tenant := self._tenants.get(name)) is None:
            tenant = self._tenants[name] = self._open(name)
        return tenant

    def _open(self, name: str) -> Tenant:
        tenant = Tenant(name, UNLIMITED, self.accounts.of(name), None, None, self.spent)
        self._set_limits(tenant)
        tenant.account.observe = tenant.observe_service
        return tenant

    def _set_limits(self, tenant: Tenant) -> None:
        """Hold a tenant to what its terms, or the default, say now."""
        limits = self.terms[tenant.name].limits if tenant.name in self.terms else self.default
        self.accounts.set_caps(tenant.name, limits.max_running, limits.max_resident_bytes)
        tenant.limits = limits
        tenant.requests = _change_bucket(tenant.requests, limits.requests_per_minute)
        tenant.tokens = _change_bucket(tenant.tokens, limits.tokens_per_minute)

    def replace(self, agreement: Agreement) -> Changes:
        """Agree anew with everybody, from now on. What was taken of a rate stays taken, counters stand.

        A tenant that is named no longer keeps its processes, under the default limits.

        Raises:
            SyscallError: EINVAL, there would be the first keys, or none any more, or the first budget;
                nothing was changed.
        """
        has_keys = any(terms.keys_sha256 for terms in agreement.terms.values())
        if has_keys != self.needs_key:
            which = "the first key" if has_keys else "no key any more"
            raise SyscallError(
                Errno.EINVAL, f"there would be {which}, and doors ask for keys from their start on: restart"
            )
        if not self.spent.is_open and has_budgets(agreement.terms, agreement.default):
            raise SyscallError(
                Errno.EINVAL,
                "there would be the first token_budget, and they are counted from a start on: restart",
            )
        before = {name: (terms, self.accounts.of(name).weight) for name, terms in self.terms.items()}
        self.terms, self.default = agreement.terms, agreement.default
        self._index_names()
        self.accounts.set_weights(agreement.weights)
        self.accounts.clear_caps()
        for tenant in self._tenants.values():
            self._set_limits(tenant)
        for name in self.terms:
            self.of(name)
        after = {name: (terms, self.accounts.of(name).weight) for name, terms in self.terms.items()}
        return Changes(
            added=tuple(sorted(after.keys() - before.keys())),
            changed=tuple(sorted(n for n in after.keys() & before.keys() if after[n] != before[n])),
            removed=tuple(sorted(before.keys() - after.keys())),
        )

    # --- who is it? --------------------------------------------------------------------------------------

    def identify_user(self, uid: int) -> tuple[str, bool]:
        """The tenant of a user of this machine, and whether it is an administrator.

        Raises:
            SyscallError: EPERM, the terms name users, and not this one.
        """
        is_admin = uid in (0, os.getuid())
        name = self._by_uid.get(uid)
        if name is None and self._by_uid and not is_admin:
            raise SyscallError(Errno.EPERM, f"user {uid} is no tenant of this kernel")
        return name or f"uid:{uid}", is_admin

    def identify_digest(self, given: str) -> tuple[str, bool]:
        """The tenant whose key has this hash (see `hash_key`), and whether it is an administrator's.

        Takes as long for every wrong key. Raises SyscallError: EPERM.
        """
        found = [name for digest, name in self._by_key.items() if hmac.compare_digest(digest, given)]
        if not found:
            raise SyscallError(Errno.EPERM, "no tenant has this key")
        return found[0], self.terms[found[0]].is_admin
