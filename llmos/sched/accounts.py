"""Virtual token counters: how much service each tenant has had, weighted; whoever had least is next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import attrs

PROMPT_WEIGHT = 1.0  # of a prompt token that is computed
OUTPUT_WEIGHT = 2.0  # of a token that is sampled: the weights are read for it
RESIDENCY_WEIGHT = 1e-3  # of holding one token's keys and values for a second


def weigh(num_prompt_tokens: int, num_output_tokens: int) -> float:
    """Service in weighted tokens."""
    return PROMPT_WEIGHT * num_prompt_tokens + OUTPUT_WEIGHT * num_output_tokens


@attrs.define(eq=False)
class Account:
    """What one tenant has been served. Each token counts once, however often it was computed."""

    tenant: str
    weight: float = 1.0  # twice the weight is twice the share
    counter: float = 0.0  # weighted service, lifts included; falls only as weights change
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    token_seconds: float = 0.0  # memory held: tokens times seconds
    num_waiting: int = 0  # processes that wait for a device
    num_running: int = (
        0  # processes that have a place: they take part in steps, or their memory is on its way
    )
    max_running: int | None = None  # caps on what it has of each device at once; see caps.py
    max_resident_bytes: int | None = None
    is_held_back: bool = False  # by a cap of its own, when that was last looked at
    observe: Callable[[float, int], None] = lambda service, num_output_tokens: None  # told of each charge

    def charge_prompt(self, num_tokens: int) -> None:
        """Account for prompt tokens that are computed for the first time."""
        self.num_prompt_tokens += num_tokens
        self.counter += PROMPT_WEIGHT * num_tokens / self.weight
        self.observe(PROMPT_WEIGHT * num_tokens, 0)

    def charge_output(self, num_tokens: int) -> None:
        """Account for tokens that were sampled."""
        self.num_output_tokens += num_tokens
        self.counter += OUTPUT_WEIGHT * num_tokens / self.weight
        self.observe(OUTPUT_WEIGHT * num_tokens, num_tokens)

    def charge_residency(self, token_seconds: float) -> None:
        """Account for memory that was held."""
        self.token_seconds += token_seconds
        self.counter += RESIDENCY_WEIGHT * token_seconds / self.weight


@attrs.define(eq=False)
class Accounts:
    """The accounts of all tenants, shared by all devices.

    A tenant that comes back from idleness is lifted to the least counter among those that wait: having asked
    for nothing earns no credit. When waiting processes are admitted by the least counter, without skipping,
    service of two tenants that both wait all the time differs by at most 2 U, where U is the larger of
    PROMPT_WEIGHT · longest prompt and OUTPUT_WEIGHT · tokens that those who run at once may sample.

    A tenant that its own caps hold back is passed over. That is not skipping in the sense of the bound: it
    may not have more of the device than it has. So it counts as idle meanwhile: its counter lifts nobody,
    and is lifted itself when there is room again.

    Counters are floats: exact for integers up to 2⁵³, so they need no rebasing.

    Args:
        weights: of tenants; those that are not in it weigh 1.

    Source: Sheng et al. 2024, Fairness in Serving Large Language Models (VTC), Algorithm 2.
    """

    weights: Mapping[str, float] = attrs.field(factory=dict)
    _accounts: dict[str, Account] = attrs.field(init=False, factory=dict)
    _waiting: dict[str, Account] = attrs.field(init=False, factory=dict)
    _running: dict[str, Account] = attrs.field(init=False, factory=dict)
    has_caps: bool = attrs.field(init=False, default=False)  # some tenant has one
    has_memory_caps: bool = attrs.field(init=False, default=False)
    _num_running: int = attrs.field(init=False, default=0)
    _running_weight: float | None = attrs.field(init=False, default=0.0)  # of them; None: to be summed
    _last_level: float = attrs.field(init=False, default=0.0)  # of the tenant that stopped waiting last

    def of(self, tenant: str) -> Account:
        """A tenant's account; opened when there is none."""
        if (account := self._accounts.get(tenant)) is None:
            account = self._accounts[tenant] = Account(tenant, self.weights.get(tenant, 1.0))
        return account

    def start_waiting(self, tenant: str) -> None:
        """A process waits for a device. A tenant's first one lifts its counter."""
        account = self.of(tenant)
        if not account.num_waiting:
            self._lift(account)
            self._waiting[tenant] = account
        account.num_waiting += 1

    def stop_waiting(self, tenant: str) -> None:
        """A process waits no longer: it runs, or is gone."""
        account = self._waiting[tenant]
        account.num_waiting -= 1
        if not account.num_waiting:
            del self._waiting[tenant]
            self._last_level = account.counter

    def start_running(self, tenant: str) -> None:
        """A process has a place from now on: it takes part in steps, or will when its memory is back."""
        account = self.of(tenant)
        if not account.num_running:
            self._running[tenant] = account
            self._running_weight = None
        account.num_running += 1
        self._num_running += 1

    def stop_running(self, tenant: str) -> None:
        """A process has given up its place."""
        account = self._running[tenant]
        account.num_running -= 1
        self._num_running -= 1
        if not account.num_running:
            del self._running[tenant]
            self._running_weight = None

    @property
    def mean_load(self) -> float:
        """Running processes for each unit of weight of the tenants that run any; 0 when nobody runs."""
        if self._running_weight is None:  # summed anew: with differences, errors of rounding would add up
            self._running_weight = math.fsum(account.weight for account in self._running.values())
        return self._num_running / self._running_weight if self._running_weight else 0.0

    def busiest(self) -> tuple[str, int] | None:
        """The tenant with most running processes, and how many; None when nobody runs."""
        if not self._running:
            return None
        account = max(self._running.values(), key=lambda account: account.num_running)
        return account.tenant, account.num_running

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    def set_caps(self, tenant: str, max_running: int | None, max_resident_bytes: int | None) -> None:
        """Say what a tenant may have of each device at once; None: no limit."""
        account = self.of(tenant)
        account.max_running, account.max_resident_bytes = max_running, max_resident_bytes
        self.has_memory_caps |= max_resident_bytes is not None
        self.has_caps |= max_running is not None or self.has_memory_caps

    def clear_caps(self) -> None:
        """Nobody has caps, until they are set again."""
        for account in self._accounts.values():
            account.max_running = account.max_resident_bytes = None
            self.set_held_back(account, False)
        self.has_caps = self.has_memory_caps = False

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Give every tenant its weight anew; those that are not named weigh 1. Mutates the counters.

        Who is ahead of those that wait stays ahead by as many tokens: as many units of a counter, by a weight
        that has grown, would keep a tenant waiting for what was agreed before.
        """
        self.weights = weights
        level = self._level()
        for account in self._accounts.values():
            weight = weights.get(account.tenant, 1.0)
            if weight != account.weight and account.counter > level:
                account.counter = level + (account.counter - level) * account.weight / weight
            account.weight = weight
        self._running_weight = None

    def set_held_back(self, account: Account, is_held_back: bool) -> None:
        """A cap of the tenant's own keeps the next of its processes waiting, or does so no longer."""
        if account.is_held_back and not is_held_back:
            self._lift(account)
        account.is_held_back = is_held_back

    def _lift(self, account: Account) -> None:
        """Bring a tenant that asked for nothing up to those that wait."""
        account.counter = max(account.counter, self._level())

    def _level(self) -> float:
        """The least counter of those that wait; of the one that did last, when nobody does."""
        counters = (other.counter for other in self._waiting.values() if not other.is_held_back)
        return min(counters, default=self._last_level)
