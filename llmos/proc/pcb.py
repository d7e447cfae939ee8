"""The process control block: a request, in serving terms.

A process is its token history and a few counters. There is no prefill phase: positions up to `num_scheduled`
were given to the device, the rest wait, and the step composer gives a process as many as the budget allows.

      tokens   |  known  ...........................|  sampled by steps in flight  |
      positions 0        num_computed  num_scheduled ^ len(tokens)                  ^ + num_pending

While it decodes, num_scheduled == len(tokens) + num_pending - 1: each step in flight computes the token that
the one before it samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NewType

import attrs

from llmos.mm.address_space import AddressSpace
from llmos.mm.page_copy import Backing
from llmos.proc.activity import Activity
from llmos.proc.grammar import Grammar
from llmos.proc.lifecycle import BlockReason, ProcState
from llmos.proc.timeline import Timeline
from llmos.proc.trace import Trace
from syscalls.embedding import Pooling
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Usage
from syscalls.sampling import Sampling, TokenLogprobs

Pid = NewType("Pid", int)


@attrs.define(eq=False)
class Reader:
    """A parked read: called once, when there is something at `offset` or the turn is over."""

    offset: int
    wake: Callable[[Process], None]


@attrs.define(eq=False, kw_only=True)
class Process:
    """Process control block. Fields are grouped by who writes them."""

    # Fixed at spawn.
    pid: Pid
    parent: Pid | None = None
    tenant: str
    session: int | None  # the session that it ends with; None when detached
    label: str = ""
    user: str = ""  # of the tenant's, who takes turns with the others
    model: str
    device: str  # that it was placed on
    sampling: Sampling  # with a seed, always
    stop_tokens: frozenset[int]  # ids that end a turn
    min_tokens: int = 0
    is_whole: bool = False  # all of its input is computed in one row
    pooling: Pooling | None = None  # it ends with a vector, and samples nothing
    num_to_score: int = 0  # positions of the prompt at which the likelihood of the next token is wanted
    interactive: bool = False
    auto_reap: bool = False
    deadline_seconds: float | None = None  # from the beginning of a turn to when it should be over
    cache_salt: str = ""  # of the client's
    pin_seconds: float = 0.0  # for so long after its end its pages outlast others
    spawned_at: float  # kernel clock, seconds
    arrival: int  # order among all spawns

    # Written by lifecycle.move only.
    state: ProcState = ProcState.EMBRYO
    blocked_on: BlockReason | None = None

    # Written by the process's Core only.
    nice: int = 0
    tokens: list[int]  # prompt and output, all turns
    turn_start: int  # len(tokens) when this turn's output began
    max_tokens: int  # most output tokens of this turn
    num_scheduled: int = 0
    num_computed: int = 0
    num_pending: int = 0  # samples in flight
    epoch: int = 0  # results of steps issued in an older epoch are not for this life of the process
    bound: bool = False  # the device knows how this turn samples
    grammar: Grammar | None = None  # that its output follows, on this device
    space: AddressSpace | None = None
    backing: Backing = attrs.field(factory=Backing)  # what it has on lower tiers
    num_arriving: int = 0  # copies that bring its memory back
    num_bytes_cleaned: int = 0  # copied to the host area while it ran, since it lost its memory last
    idle_since: float | None = None  # since when it waits for input
    heirs: list[Process] = attrs.field(factory=list)  # siblings that wait for this one's prefill
    status: ExitStatus | None = None  # of the process, or of an interactive one's last turn

    # Written by the Core, read by readers.
    output: list[int] = attrs.field(factory=list)
    logprobs: list[TokenLogprobs] = attrs.field(factory=list)
    prompt_logprobs: list[TokenLogprobs] = attrs.field(factory=list)  # of token 1 of the prompt, token 2, …
    token_times: list[float] | None = None  # of `output`, on the kernel's clock; None: nobody asked for them
    vector: bytes = b""  # what one with `pooling` has come to
    num_summed: int = 0  # positions in `total`, of one that makes a mean
    total: bytes = b""  # as the device told it
    mu: float | None = None  # of mirostat, after the last token of `tokens`; None: nothing was sampled yet
    readers: list[Reader] = attrs.field(factory=list)
    followers: list[Callable[[], None]] = attrs.field(factory=list)  # told of every change until they leave
    exit_callbacks: list[Callable[[Process], None]] = attrs.field(factory=list)

    # Written by the trace call.
    trace: Trace | None = None  # somebody follows it

    # Accounting, written by the Core.
    num_prompt_tokens: int = 0  # every token written to it
    num_uncharged: int = 0  # of those, the last ones, that its tenant has not been charged for yet
    service_at_admission: float = 0.0  # weighted tokens served, when it was last let run
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    resident_since: float | None = None  # when holding memory was last charged for; None: it holds none
    turn_started_at: float = 0.0
    first_step_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    timeline: Timeline = attrs.field(
        default=attrs.Factory(lambda self: Timeline(self.spawned_at, self.parent), takes_self=True)
    )

    @property
    def num_turn_output(self) -> int:
        """Tokens sampled in this turn."""
        return len(self.tokens) - self.turn_start

    @property
    def num_uncomputed(self) -> int:
        """Positions that the device has not been given yet; at least 1 for one that can run."""
        return len(self.tokens) + self.num_pending - self.num_scheduled

    @property
    def salt(self) -> str:
        """Under which it finds and leaves pages: the tenant's, with the client's mixed in, never instead."""
        return f"{self.tenant}\0{self.cache_salt}" if self.cache_salt else self.tenant

    @property
    def next_length(self) -> int:
        """Positions that it needs memory for to get on: of its tokens, and of the next if one follows."""
        return len(self.tokens) + (self.pooling is None)

    @property
    def num_reusable(self) -> int:
        """Most positions that may be taken from memory, whoever computed them: the others must be computed.

        The last one yields the next token, and those to be scored or summed yield more than keys and values.
        """
        if self.is_whole:
            return 0
        num_scored = len(self.prompt_logprobs)
        most = len(self.tokens) - 1
        if self.pooling is not None and self.pooling.kind == "mean":
            return min(most, self.num_summed)
        return min(most, num_scored) if num_scored < self.num_to_score else most

    def targets(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens behind positions from `start` on that are to be scored when [start, end) is computed."""
        stop = min(end, self.num_to_score)
        return tuple(self.tokens[start + 1 : stop + 1]) if len(self.prompt_logprobs) < stop else ()

    def take_scores(self, scores: Sequence[TokenLogprobs], end: int) -> None:
        """Keep the scores of a row that ended at `end`; those that were known already are the same."""
        start = min(end, self.num_to_score) - len(scores)
        self.prompt_logprobs += scores[len(self.prompt_logprobs) - start :]

    @property
    def deadline_at(self) -> float:
        """When this turn should be over, on the kernel's clock; infinite: whenever."""
        return math.inf if self.deadline_seconds is None else self.turn_started_at + self.deadline_seconds

    @property
    def turn_is_over(self) -> bool:
        """True when nothing more will be output, or not before the next write."""
        return self.status is not None

    @property
    def waits_for_grammar(self) -> bool:
        """True while it could not run, since the device has not compiled its grammar."""
        return self.grammar is not None and not self.grammar.is_ready

    @property
    def ready_state(self) -> ProcState:
        """What it is when it wants to run: READY, or SWAPPED when its memory is on a lower tier.

        BLOCKED, on the grammar, as long as the device has not compiled that.
        """
        if self.waits_for_grammar:
            return ProcState.BLOCKED
        is_swapped = self.space is None and any(True for _ in self.backing)
        return ProcState.SWAPPED if is_swapped else ProcState.READY

    @property
    def describe_state(self) -> str:
        """What ps prints: READY, BLOCKED(Input), …"""
        return f"{self.state.value}({self.blocked_on})" if self.blocked_on else self.state.value

    def check_lives(self) -> None:
        """Raise SyscallError EBUSY when it has exited."""
        if self.state is ProcState.ZOMBIE:
            raise SyscallError(Errno.EBUSY, f"process {self.pid} has exited")

    def usage(self, now: float) -> Usage:
        """Account so far; `now` on the kernel's clock."""
        queued_until = self.first_step_at if self.first_step_at is not None else now
        return Usage(
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_output_tokens=len(self.output),
            queued_seconds=queued_until - self.spawned_at,
            first_token_seconds=None
            if self.first_token_at is None
            else self.first_token_at - self.spawned_at,
            running_seconds=(self.ended_at if self.ended_at is not None else now) - self.spawned_at,
            num_preemptions=self.num_preemptions,
            memory_seconds=self.timeline.seconds[Activity.MEMORY],
            swapped_seconds=self.timeline.seconds[Activity.SWAPPED],
        )

    def can_read(self, offset: int) -> bool:
        """True when a read at `offset` has an answer now."""
        return len(self.output) > offset or self.turn_is_over

    def wake_readers(self) -> None:
        """Answer the reads that can be answered now, and tell the followers. Mutates `readers`."""
        self.tell_followers()
        ready = [reader for reader in self.readers if self.can_read(reader.offset)]
        if ready:
            self.readers = [reader for reader in self.readers if not self.can_read(reader.offset)]
            for reader in ready:
                reader.wake(self)

    def tell_followers(self) -> None:
        """Say that there is more output, that the turn is over, or that it was reaped."""
        for tell in tuple(self.followers):
            tell()

    def check_integrity(self) -> None:
        """Raise AssertionError where the counters contradict each other."""
        assert 0 <= self.num_computed <= self.num_scheduled <= len(self.tokens) + self.num_pending, self
        assert self.turn_start <= len(self.tokens), self
        assert self.num_pending == 0 or self.num_scheduled == len(self.tokens) + self.num_pending - 1, self
        assert (self.state is ProcState.BLOCKED) == (self.blocked_on is not None), self
        assert self.space is None or self.state is not ProcState.ZOMBIE, self
        assert not self.num_arriving or self.space is not None, self
