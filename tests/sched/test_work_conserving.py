"""No device stands idle while somebody waits who fits, whatever tenants, weights and levels there are."""

from __future__ import annotations

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmos.proc.pcb import Pid
from llmos.sched.accounts import Accounts
from llmos.sched.fair import TokenFair
from llmos.sched.policy import FirstComeFirstServed
from tests.sched.small_engine import SmallEngine

NUM_FRAMES, LONGEST = 120, 40
WEIGHTS = (1e-3, 0.5, 1.0, 7.0, 1e3)


class WatchedEngine(SmallEngine):
    """Admits until nobody is admitted any more, as Residents does, and looks at who is next then."""

    def admit(self) -> list[int]:
        """With all memory and a place more somebody would be next: it does not fit into what is free."""
        admitted: list[int] = []
        while pids := super().admit():
            admitted += pids
        if len(self.queue.running) < self.max_running:
            for pid in self.policy.admit(self.queue.view(10**6, len(self.queue.running) + 1)):
                assert self.frames_needed(self.queue.members[Pid(pid)]) > self.num_free
        return admitted


@settings(max_examples=25)
@given(
    policy=st.sampled_from(["fair", "fcfs"]),
    num_tenants=st.integers(1, 20),
    max_running=st.integers(1, 12),
    quantum=st.sampled_from([10.0, 128.0]),
    seed=st.integers(0, 10**6),
)
@example(policy="fair", num_tenants=200, max_running=12, quantum=10.0, seed=1)
def test_everybody_is_served_by_a_device_that_never_idles(
    policy: str, num_tenants: int, max_running: int, quantum: float, seed: int
) -> None:
    """Each step samples for somebody until all have ended, and each token is charged once.

    So there are no more steps than tokens, and nobody waits for ever, not even a tenant of a millionth of
    another one's weight with the last nice level; what preemption has computed again is on nobody's account.
    """
    rng = random.Random(seed)
    weights = {f"tenant-{i}": rng.choice(WEIGHTS) for i in range(num_tenants)}
    accounts = Accounts(weights)
    chosen = TokenFair(accounts, quantum) if policy == "fair" else FirstComeFirstServed()
    engine = WatchedEngine(chosen, accounts, NUM_FRAMES, max_running)
    requests = []
    for _ in range(num_tenants + 10):
        tenant = rng.choice(sorted(weights))
        prompt, output = rng.randint(1, LONGEST), rng.randint(1, LONGEST)
        requests.append((tenant, prompt, output))
        engine.spawn(tenant, prompt, output, nice=rng.randint(-20, 19))
        if rng.random() < 0.5:
            engine.step()
    while engine.queue.members:
        before = engine.served.total()
        engine.step()
        assert engine.served.total() > before
    assert engine.num_steps <= sum(output for _, _, output in requests)
    for tenant in weights:
        account = accounts.of(tenant)
        assert account.num_prompt_tokens == sum(prompt for name, prompt, _ in requests if name == tenant)
        assert account.num_output_tokens == sum(output for name, _, output in requests if name == tenant)
