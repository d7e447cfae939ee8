"""Accounts, run queue and fair policy beside a model of ten lines, with conservation after every step."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.proc.lifecycle import WAITING, ProcState
from llmos.proc.pcb import Process
from llmos.sched.accounts import Accounts, weigh
from llmos.sched.fair import NUM_QUANTA, TokenFair
from tests.sched.small_engine import SmallEngine

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 0.5}
NUM_FRAMES, MAX_RUNNING, QUANTUM = 120, 4, 24.0
TENANTS = st.sampled_from(sorted(WEIGHTS))


class Model:
    """Counters and queues, as one would write them down."""

    def __init__(self) -> None:
        self.counters: dict[str, float] = dict.fromkeys(WEIGHTS, 0.0)
        self.waiting: dict[str, list[tuple[int, int]]] = defaultdict(list)  # nice and pid, sorted when used
        self.last_level = 0.0

    def level(self) -> float:
        levels = [self.counters[name] for name, queue in self.waiting.items() if queue]
        return min(levels, default=self.last_level)

    def wait(self, tenant: str, nice: int, pid: int) -> None:
        if not self.waiting[tenant]:
            self.counters[tenant] = max(self.counters[tenant], self.level())
        self.waiting[tenant].append((nice, pid))

    def leave(self, tenant: str, nice: int, pid: int) -> None:
        self.waiting[tenant].remove((nice, pid))
        if not self.waiting[tenant]:
            self.last_level = self.counters[tenant]

    def next(self, running: Counter[str], weights: dict[str, float]) -> tuple[str, int] | None:
        """The first process of the tenant with the least counter, less some quanta where it runs little."""
        names = [name for name, queue in self.waiting.items() if queue]
        mean = running.total() / (sum(weights[name] for name in running) or 1.0)

        def rank(name: str) -> tuple[float, str]:
            is_below = (running[name] + 1) / weights[name] <= mean
            return self.counters[name] - is_below * NUM_QUANTA * QUANTUM, name

        tenant = min(names, key=rank, default=None)
        return None if tenant is None else (tenant, min(self.waiting[tenant])[1])


class FairMachine(RuleBasedStateMachine):
    """Processes come, run, are preempted, reniced and killed, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.accounts = Accounts(WEIGHTS)
        self.engine = SmallEngine(TokenFair(self.accounts, QUANTUM), self.accounts, NUM_FRAMES, MAX_RUNNING)
        self.model = Model()
        self.floor = dict.fromkeys(WEIGHTS, 0.0)
        self.delivered = dict.fromkeys(WEIGHTS, 0.0)
        self.lifted = dict.fromkeys(WEIGHTS, 0.0)
        self.charged = dict.fromkeys(WEIGHTS, 0.0)
        self.weights = dict(WEIGHTS)

    def pick(self, number: int, state: ProcState | None = None) -> Process | None:
        """One of those in a state."""
        found = [p for p in self.engine.queue.members.values() if state in (None, p.state)]
        return found[number % len(found)] if found else None

    def start_waiting(self, process: Process) -> None:
        before = self.model.counters[process.tenant]
        self.model.wait(process.tenant, process.nice, process.pid)
        self.lifted[process.tenant] += self.model.counters[process.tenant] - before

    @rule(tenant=TENANTS, prompt=st.integers(1, 20), output=st.integers(1, 30), nice=st.integers(-20, 19))
    def spawn(self, tenant: str, prompt: int, output: int, nice: int) -> None:
        self.start_waiting(self.engine.spawn(tenant, prompt, output, nice))

    @rule()
    def admit_one_by_one(self) -> None:
        """With one place at a time, and prompts computed between, the model says who is next."""
        while len(self.engine.queue.running) < MAX_RUNNING:
            running = Counter(process.tenant for process in self.engine.queue.running)
            if (chosen := self.model.next(running, self.weights)) is None:
                return
            tenant, pid = chosen
            self.engine.max_running = len(self.engine.queue.running) + 1
            pids = self.engine.admit()
            self.engine.max_running = MAX_RUNNING
            process = self.engine.queue.members[pid]
            if not pids:
                assert self.engine.frames_needed(process) > self.engine.num_free
                return
            assert pids == [pid]
            self.model.leave(tenant, process.nice, pid)
            self.run(process)

    @rule(number=st.integers(0, 9), num_steps=st.integers(1, 20))
    def run_some(self, number: int, num_steps: int) -> None:
        process = self.pick(number, ProcState.RUNNING)
        while process and process.state is ProcState.RUNNING and num_steps:
            if self.engine.frames_needed(process) > self.engine.num_free:
                return
            self.run(process)
            num_steps -= 1

    def run(self, process: Process) -> None:
        service = weigh(process.num_uncharged, 1)
        self.engine.run(process)
        self.model.counters[process.tenant] += service / self.weights[process.tenant]
        self.charged[process.tenant] += service / self.weights[process.tenant]
        self.delivered[process.tenant] += service

    @rule()
    def review(self) -> None:
        for pid in self.engine.review():
            self.start_waiting(self.engine.queue.members[pid])

    @precondition(lambda self: len(self.engine.queue.running) > 1)
    @rule(number=st.integers(0, 9))
    def memory_is_short(self, number: int) -> None:
        """Whoever stops for another one is of the tenant that was served most, or it is itself the last."""
        process = self.pick(number, ProcState.RUNNING)
        pid = self.engine.policy.victim(self.engine.view(), process.pid)
        most = max(self.model.counters[p.tenant] for p in self.engine.queue.running)
        victim = process if pid is None else self.engine.queue.members[pid]
        assert self.model.counters[victim.tenant] == most
        self.engine.preempt(victim)
        self.start_waiting(victim)

    @rule(number=st.integers(0, 9), nice=st.integers(-20, 19))
    def renice(self, number: int, nice: int) -> None:
        """Nobody is lifted for it: who waits has waited all the while."""
        if process := self.pick(number):
            if process.state in WAITING:
                line = self.model.waiting[process.tenant]
                line[line.index((process.nice, process.pid))] = (nice, process.pid)
            self.engine.queue.renice(process, nice)

    @rule(number=st.integers(0, 9))
    def lose_memory_while_waiting(self, number: int) -> None:
        """It waits for something else now, and has waited all the while: nobody is lifted for that."""
        if process := self.pick(number, ProcState.READY):
            self.engine.set_state(process, ProcState.SWAPPED)

    @rule(tenant=TENANTS, weight=st.sampled_from((0.25, 1.0, 4.0)))
    def reweigh(self, tenant: str, weight: float) -> None:
        """Who is ahead of those that wait stays so by as many tokens; what follows is by the new weight."""
        level = self.model.level()
        for name, counter in self.model.counters.items():
            if name == tenant and counter > level:
                self.model.counters[name] = level + (counter - level) * self.weights[name] / weight
                self.lifted[name] += self.model.counters[name] - counter
                self.floor[name] = self.model.counters[name]
        self.weights[tenant] = weight
        self.accounts.set_weights(dict(self.weights))

    @rule(number=st.integers(0, 9))
    def kill(self, number: int) -> None:
        if process := self.pick(number):
            if process.state in WAITING:
                self.model.leave(process.tenant, process.nice, process.pid)
            self.engine.queue.forget(process)

    @invariant()
    def counters_are_the_models(self) -> None:
        """What was delivered, by weight, and the lifts: nothing else. They fall only with a weight."""
        for tenant, weight in self.weights.items():
            account = self.accounts.of(tenant)
            assert account.counter == self.model.counters[tenant] >= self.floor[tenant]
            assert account.counter == self.charged[tenant] + self.lifted[tenant]
            assert account.weight == weight
            delivered = weigh(account.num_prompt_tokens, account.num_output_tokens)
            assert delivered == self.delivered[tenant]
            assert account.num_waiting == len(self.model.waiting[tenant])
            self.floor[tenant] = account.counter

    @invariant()
    def load_is_by_the_weights_of_those_who_run(self) -> None:
        running = self.engine.queue.running
        weight = sum(self.weights[tenant] for tenant in {process.tenant for process in running})
        assert self.accounts.mean_load == (len(running) / weight if running else 0.0)

    @invariant()
    def everybody_is_in_one_place(self) -> None:
        queue = self.engine.queue
        assert {p.pid for p in queue.waiting} | {p.pid for p in queue.running} == set(queue.members)
        view = self.engine.view()
        for found, listed, ordered in (
            (view.queues, queue.waiting, queue.waiting),
            (view.running, queue.running, queue.running[::-1]),
        ):
            by_tenant = {tenant: [c.pid for c in candidates] for tenant, candidates in found.items()}
            assert by_tenant == {
                tenant: [p.pid for p in ordered if p.tenant == tenant]
                for tenant in {p.tenant for p in listed}
            }
            assert [p.pid for p in listed] == [p.pid for p in sorted(listed, key=queue.order)]
        assert self.engine.num_free >= 0


TestFairMachine = FairMachine.TestCase
TestFairMachine.settings = settings(max_examples=40, stateful_step_count=40)
