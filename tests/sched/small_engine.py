"""A serving engine in few lines: a frame holds a token, a step samples one for each who runs."""

from __future__ import annotations

import itertools
from collections import Counter

from drivers.sim import DEFAULT_KV
from llmos.proc.lifecycle import ProcState, move
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts, weigh
from llmos.sched.caps import Caps
from llmos.sched.policy import ResidencyPolicy, View
from llmos.sched.runqueue import RunQueue, service_of
from syscalls.sampling import Sampling


class SmallEngine:
    """The real run queue, accounts and policy around a device that is a few numbers."""

    def __init__(
        self, policy: ResidencyPolicy, accounts: Accounts, num_frames: int, max_running: int
    ) -> None:
        self.policy, self.accounts = policy, accounts
        self.num_frames, self.max_running = num_frames, max_running
        self.queue = RunQueue(
            policy,
            accounts,
            self.frames_needed,
            self.frames_held,
            Caps(accounts, lambda: DEFAULT_KV, self.frames_needed),
        )
        self.pids = itertools.count(1)
        self.num_steps = self.num_preemptions = 0
        self.served: Counter[str] = Counter()  # weighted tokens by tenant

    def frames_held(self, process: Process) -> int:
        """Every token that was computed."""
        return process.num_scheduled

    def frames_needed(self, process: Process) -> int:
        """All tokens, and the next one."""
        return len(process.tokens) + 1 - process.num_scheduled

    @property
    def num_free(self) -> int:
        """Frames that nobody holds."""
        return self.num_frames - sum(process.num_scheduled for process in self.queue.members.values())

    def view(self) -> View:
        """What the policy sees now."""
        return self.queue.view(self.num_free, self.max_running)

    def spawn(self, tenant: str, prompt: int, output: int, nice: int = 0, asked_at: float = 0.0) -> Process:
        """Let a process wait."""
        pid = Pid(next(self.pids))
        process = Process(
            pid=pid, tenant=tenant, session=None, model="small", device="small", sampling=Sampling(seed=0),
            stop_tokens=frozenset(), spawned_at=asked_at, turn_started_at=asked_at, arrival=pid, nice=nice,
            tokens=[0] * prompt, turn_start=prompt, max_tokens=output, num_prompt_tokens=prompt,
            num_uncharged=prompt,
        )  # fmt: skip
        move(process, ProcState.READY)
        self.queue.add(process)
        return process

    def set_state(self, process: Process, state: ProcState) -> None:
        """Move a process, and keep the queue in step."""
        self.queue.change(process, lambda: move(process, state))

    def preempt(self, process: Process) -> None:
        """Take what a running process holds."""
        process.num_scheduled = process.num_computed = 0
        process.space = None
        process.num_preemptions += 1
        self.num_preemptions += 1
        self.set_state(process, ProcState.READY)

    def admit(self) -> list[int]:
        """Let those run that the policy says; they fit."""
        pids = self.policy.admit(self.view())
        needed = sum(self.frames_needed(self.queue.members[Pid(pid)]) for pid in pids)
        assert needed <= self.num_free
        for pid in pids:
            process = self.queue.members[Pid(pid)]
            process.service_at_admission = service_of(process)
            process.space = object()  # type: ignore[assignment]  # there is one; nothing looks inside
            self.set_state(process, ProcState.RUNNING)
        assert len(self.queue.running) <= self.max_running
        return pids

    def review(self) -> list[int]:
        """Let those give way that the policy says."""
        pids = self.policy.give_way(self.view())
        for pid in pids:
            self.preempt(self.queue.members[Pid(pid)])
        return pids

    def run(self, process: Process) -> None:
        """Compute what a process has, and sample a token."""
        account, prompt = self.accounts.of(process.tenant), process.num_uncharged
        account.charge_prompt(prompt)
        account.charge_output(1)
        self.served[process.tenant] += int(weigh(prompt, 1))
        process.num_uncharged = 0
        process.num_scheduled = process.num_computed = len(process.tokens)
        process.tokens.append(0)
        process.output.append(0)
        if len(process.output) == process.max_tokens:
            process.num_scheduled = 0
            self.queue.forget(process)
            move(process, ProcState.ZOMBIE)

    def step(self) -> None:
        """One step of the device, and what comes before it."""
        if self.policy.review_steps and self.num_steps % self.policy.review_steps == 0:
            self.review()
        self.num_steps += 1
        self.admit()
        for process in list(self.queue.running):
            while process.state is ProcState.RUNNING and self.frames_needed(process) > self.num_free:
                victim = self.policy.victim(self.view(), process.pid)
                self.preempt(process if victim is None else self.queue.members[Pid(victim)])
            if process.state is ProcState.RUNNING:
                self.run(process)
