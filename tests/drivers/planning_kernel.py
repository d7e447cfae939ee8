"""A kernel for tests of drivers: it plans steps before it knows the tokens of those in flight."""

from __future__ import annotations

import attrs

from drivers.engine import Engine
from drivers.model.step_queue import MAX_IN_FLIGHT
from llmos.device import (
    Bind,
    CopyPage,
    Edit,
    Loaded,
    Map,
    Release,
    Reserve,
    Row,
    Sampling,
    Step,
    StepDone,
)
from syscalls.sampling import Mirostat

NUM_FRAMES, NUM_SPACES, MAX_LEN = 64, 4, 64
WAYS = (
    Sampling(),
    Sampling(temperature=0.8, seed=3, top_k=20),
    Sampling(temperature=0.9, seed=4, top_p=0.9, frequency_penalty=0.7),  # the device counts
    Sampling(logprobs=2),  # the host tells of what was drawn
    Sampling(bad_words=((1, 2), (7,))),  # looks back: the device draws what the host allows
    Sampling(temperature=0.9, seed=5, bad_words=((0, 3), (8,)), logprobs=1),  # both
    Sampling(temperature=1.2, seed=6, allowed_token_ids=(2, 3, 5, 7, 11, 13)),
    Sampling(logit_bias={3: 4.0}),
    Sampling(temperature=1.5, seed=7),  # within the grammar
    Sampling(repetition_penalty=1.4, presence_penalty=0.3, logprobs=1),  # counts, and is told
    Sampling(temperature=0.9, seed=8, repetition_penalty=1.4, repeat_last_n=3),  # the device looks back
    Sampling(temperature=0.9, seed=9, mirostat=Mirostat(2)),  # goes on from the device's mu
    Sampling(temperature=1.1, seed=10, typical_p=0.8, presence_penalty=0.5, logprobs=1),
    Sampling(temperature=1.1, seed=11, typical_p=0.8, logprobs=1, processed_logprobs=True),
    Sampling(temperature=1.1, seed=12, mirostat=Mirostat(1, 3.0), repetition_penalty=1.2, logprobs=2),
    Sampling(temperature=1.1, seed=13, mirostat=Mirostat(2, 3.0), logprobs=2, processed_logprobs=True),
    Sampling(bad_words=((2,), (3,), (7,), (11,)), frequency_penalty=0.6, repeat_last_n=5),
)
GRAMMAR_WAY, GRAMMAR_ID = 8, 1


@attrs.define(eq=False)
class Process:
    """One space's process as a kernel knows it."""

    tokens: list[int]  # known
    way: int
    frames: list[tuple[int, ...]]  # of its pages
    num_prompt: int
    mu: float | None = None  # of mirostat, behind the known tokens
    num_scheduled: int = 0
    num_pending: int = 0
    is_failed: bool = False


def bind(asid: int, way: int, tokens: list[int], num_prompt: int, mu: float | None) -> Bind:
    """How a space samples."""
    grammar = GRAMMAR_ID if way == GRAMMAR_WAY else None
    return Bind(asid, WAYS[way], tuple(tokens), num_prompt, mu=mu, grammar=grammar)


class Kernel:
    """Plans steps before it knows the tokens of those in flight, as `llmos.sched.core` does."""

    def __init__(self, engine: Engine, loaded: Loaded) -> None:
        self.engine = engine
        self.kv = loaded.kv
        self.free = list(range(NUM_FRAMES))
        self.processes: dict[int, Process] = {}
        self.edits: list[Edit] = []
        self.in_flight: list[tuple[Step, list[Process | None]]] = []
        self.steps: list[Step] = []
        self.answers: list[StepDone] = []

    def begin(
        self, asid: int, tokens: list[int], way: int, num_prompt: int, mu: float | None = None
    ) -> Process:
        """Open a space and bind it."""
        count = self.kv.frames_per_page
        frames = []
        self.edits.append(Reserve(asid))
        for vpn in range(self.kv.num_pages(MAX_LEN)):
            frames.append(tuple(self.free.pop(0) for _ in range(count)))
            self.edits.append(Map(asid, vpn, frames[-1]))
        self.edits.append(bind(asid, way, tokens, num_prompt, mu))
        process = self.processes[asid] = Process(list(tokens), way, frames, num_prompt, mu)
        return process

    def end(self, asid: int) -> Process:
        """Close a space; whoever comes next may have its frames while a step in flight still writes there."""
        process = self.processes.pop(asid)
        self.edits.append(Release(asid))
        self.free = [pfn for page in process.frames for pfn in page] + self.free
        return process

    def preempt(self, asid: int) -> None:
        """Its memory is gone, and what is known is computed again; a token in flight is thrown away."""
        process = self.end(asid)
        self.begin(asid, process.tokens, process.way, process.num_prompt, process.mu)

    def fork(self, asid: int, child: int) -> None:
        """Copy pages, and go on from what is known."""
        parent = self.processes[asid]
        shared = min(parent.num_scheduled, len(parent.tokens) - 1)
        process = self.begin(child, parent.tokens, parent.way, parent.num_prompt, parent.mu)
        process.num_scheduled = shared
        self.edits += [CopyPage(a, b) for a, b in zip(parent.frames, process.frames, strict=True)]

    def turn(self, asid: int) -> None:
        """The last token was an end: what was launched behind it does not count, and the next turn comes."""
        process = self.processes[asid]
        known = process.tokens
        process.num_scheduled = min(process.num_scheduled, len(known))
        process.tokens = [*known, 5, 11]
        process.num_prompt = len(process.tokens)
        process.num_pending = 0
        for _step, entries in self.in_flight:
            entries[:] = [None if entry is process else entry for entry in entries]
        self.edits.append(bind(asid, process.way, process.tokens, process.num_prompt, process.mu))

    def issue(self, skipped: set[int], chunk: int) -> None:
        """Send a step with a row of each process that has one, behind at most one other."""
        if len(self.in_flight) == MAX_IN_FLIGHT:
            self.take_oldest()
        rows, entries = [], []
        for asid, process in self.processes.items():
            expected = len(process.tokens) + process.num_pending
            if asid in skipped or process.num_pending == MAX_IN_FLIGHT or expected + 1 >= MAX_LEN:
                continue
            start, known = process.num_scheduled, len(process.tokens)
            tokens = tuple(process.tokens[start : start + chunk])
            end = start + max(1, len(tokens))
            rows.append(Row(asid, start, tokens, end >= known))
            entries.append(process)
            process.num_scheduled = end
            process.num_pending += end >= known
        step = Step(len(self.steps), tuple(self.edits), tuple(rows))
        self.edits = []
        self.steps.append(step)
        self.in_flight.append((step, entries))
        self.take(self.engine.begin_step(step))
        assert len(self.in_flight) <= MAX_IN_FLIGHT

    def take(self, answers: list[StepDone]) -> None:
        """Tokens of those who still want them; who failed is ended."""
        for answer in answers:
            step, entries = self.in_flight.pop(0)
            assert answer.id == step.id
            self.answers.append(answer)
            faults = {fault.row for fault in answer.faults}
            for index, (row, process) in enumerate(zip(step.rows, entries, strict=True)):
                if process is None or self.processes.get(row.asid) is not process or not row.sample:
                    continue
                process.num_pending -= 1
                if index in faults:
                    process.is_failed = True
                else:
                    token = answer.tokens[index]
                    assert token is not None
                    process.tokens.append(token)
                    process.mu = answer.mus[index] if answer.mus else None

    def take_oldest(self) -> None:
        """Take one answer, waiting for it."""
        steps = self.engine._steps
        assert steps is not None
        assert steps.session.pipeline is not None
        self.take([steps.finish_oldest(steps.session.pipeline)])

    def finish(self) -> None:
        """Take all answers."""
        self.take([answer for answer in self.engine.finish() if isinstance(answer, StepDone)])
        assert not self.in_flight
