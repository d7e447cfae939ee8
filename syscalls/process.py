"""Process family: spawn, fork, wait, read, follow, write, kill, stop, cont, nice, ps, stat, why, trace."""

from __future__ import annotations

import msgspec

from syscalls.sampling import Sampling, TokenLogprobs
from syscalls.tenant import Rates

MIN_NICE, MAX_NICE = -20, 19
MAX_SAMPLES = 128
MAX_USER_LENGTH = 256  # characters
MAX_LABEL_LENGTH = 1_024  # characters; it is kept with the process, and shown to whoever asks for it
MAX_TRACED = 16  # processes of a tenant that are traced at once
MAX_TRACE_REPLY = 1024  # events in one reply


class Spawn(msgspec.Struct, frozen=True, tag="spawn"):
    """Create a process. Replies `Spawned` at once; the tokens come through `read`.

    With `num_samples` = n, one prefill is shared copy-on-write by n processes; sample i uses seed + i.

    A deadline is a wish: of processes of one tenant, nice level and time of arrival (to two seconds) the one
    with the earlier deadline goes first. Nothing happens when it passes.

    A pin is a wish, too: when memory is short, pages of the prefix cache that are pinned go after all that
    are not, but before any process would lose its memory. A tenant may pin only so much; of a prompt and its
    output that are more than that, the first pages are pinned. `drop_cache` drops what is pinned as well.

    Errors: EINVAL (empty prompt, token id outside the vocabulary, bad sampling value, grammar, deadline,
    salt, pin, user or label), E2BIG (prompt + max_tokens over the context), ENOMEM (could never fit in device
    memory, or in what the tenant may have of it), EAGAIN (process table full; a grammar not read in time, or
    more of them in use than a device may have), EDQUOT (a limit of the tenant), EPERM (nice below what the
    tenant may have), ENOENT (no such model), ESHUTDOWN (draining).
    """

    prompt: tuple[int, ...]  # token ids
    max_tokens: int | None = None  # per turn; None: up to the context; 0: only score the prompt
    sampling: Sampling = Sampling()
    model: str | None = None  # None: the default model
    num_samples: int = 1
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end tokens
    ignore_eos: bool = False
    min_tokens: int = 0  # end tokens are not sampled before so many
    interactive: bool = False  # block on input at the end of a turn instead of exiting
    detached: bool = False  # outlives the session that spawned it
    auto_reap: bool = False  # reaped when its last read was delivered, no wait needed
    nice: int = 0
    label: str = ""  # shown by ps; 1,024 characters at most
    deadline_seconds: float | None = (
        None  # for each turn, from when it is asked for; among equals the earlier
    )
    cache_salt: str = ""  # pages are shared with processes of the same tenant and salt only
    token_times: bool = False  # read tells when the device had each token
    pin_seconds: float = 0.0  # for so long after its end its pages outlast others in the prefix cache
    user: str = ""  # of the tenant's: under fair shares its users take turns, by what they were served


class Spawned(msgspec.Struct, frozen=True, tag="spawned"):
    """Reply to `Spawn` and `Fork`."""

    pids: tuple[int, ...]
    seeds: tuple[int, ...]
    rates: Rates | None = None  # what is left to the tenant; null: nothing limits its rates


class Fork(msgspec.Struct, frozen=True, tag="fork"):
    """Create children that continue from the parent's tokens so far; memory is shared copy-on-write.

    Child i keeps the parent's seed, or takes seeds[i]. Errors: ESRCH, EPERM, EBUSY (the parent has
    exited), EINVAL (count, seeds or label out of range; the parent makes a vector), EAGAIN (table full),
    EDQUOT.
    """

    pid: int
    count: int = 1
    seeds: tuple[int, ...] = ()  # empty: keep the parent's
    detached: bool = False
    auto_reap: bool = False
    label: str | None = None  # None: the parent's


class ExitStatus(msgspec.Struct, frozen=True, array_like=True):
    """Why a process (or, for an interactive one, its last turn) ended."""

    reason: str  # "stop", "length", "killed", "error"
    stop_token: int | None = None  # the end token that was sampled, with "stop"
    message: str = ""  # with "killed" and "error"

    @property
    def code(self) -> int:
        """Shell exit code: 0 for stop and length, 137 for killed, 1 for an error."""
        return {"stop": 0, "length": 0, "killed": 137}.get(self.reason, 1)


class Wait(msgspec.Struct, frozen=True, tag="wait"):
    """Wait until a process has exited, and reap it. Blocks. Errors: ESRCH, EPERM."""

    pid: int


class Waited(msgspec.Struct, frozen=True, tag="waited"):
    """Reply to `Wait`."""

    pid: int
    status: ExitStatus
    usage: Usage


class Usage(msgspec.Struct, frozen=True, array_like=True):
    """What a process has used so far. Times are seconds on the kernel's clock."""

    num_prompt_tokens: int = 0  # every token written to it
    num_cached_tokens: int = 0  # of those, found in shared memory instead of computed
    num_output_tokens: int = 0
    queued_seconds: float = 0.0  # spawn (or write) to first step
    first_token_seconds: float | None = None  # spawn to first token
    running_seconds: float = 0.0  # spawn to exit, or to now
    num_preemptions: int = 0
    memory_seconds: float = 0.0  # of the time since spawn, waiting for memory
    swapped_seconds: float = 0.0  # and with its memory on a lower tier, or on its way back


class Read(msgspec.Struct, frozen=True, tag="read"):
    """Read output tokens from `offset` on. Blocks until there is at least one, or the turn is over.

    A reply takes all that is there, so a backlog gets cheaper per token. Reading does not consume: any
    offset may be read again while the process lives. Errors: ESRCH, EPERM, EINVAL (offset past the end).
    """

    pid: int
    offset: int = 0


class Follow(msgspec.Struct, frozen=True, tag="follow"):
    """Read output tokens from `offset` on, and go on: answered as tokens come, without being asked again.

    Every answer is an `Output`, alone in a `Reply` or in an `Outputs` with those of other calls; each token
    comes once and in order. Position `until` is the credit: no token at or past it is sent before a `Grant`,
    and the process keeps it meanwhile. The end of the turn needs no credit, but comes after the last token;
    where another turn has begun before, its tokens follow without an end between, as they do for `Read`.
    The last answer is the one with `end`, or an error; `Unfollow` ends it before.

    Errors: ESRCH (also where the process was reaped before all of its output could be sent), EPERM (also
    where the session has lost the right meanwhile), EINVAL (offset past the end, until below offset, a call
    that follows has this id), EAGAIN (too many calls of the session wait).
    """

    pid: int
    until: int
    offset: int = 0


class Grant(msgspec.Struct, frozen=True, tag="grant"):
    """Let a `Follow` of this session send the tokens before position `until`.

    A position, not a number more: to grant twice is to grant once, and less than before changes nothing.
    Errors: ENOENT (no such call follows, or no longer).
    """

    call: int  # id of the `Follow`
    until: int


class Unfollow(msgspec.Struct, frozen=True, tag="unfollow"):
    """End a `Follow` of this session: after the reply nothing of it comes.

    What it would have read is there for others, or for another `Follow`. Errors: as for `Grant`.
    """

    call: int  # id of the `Follow`


class Output(msgspec.Struct, frozen=True, tag="output", omit_defaults=True):
    """Reply to `Read`, and each answer to `Follow`."""

    offset: int  # of tokens[0]
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()  # aligned with tokens when asked for at spawn
    end: ExitStatus | None = None  # set when nothing follows these tokens in this turn
    usage: Usage = Usage()
    # With offset 0 and when asked for at spawn: of the prompt but its first token. Only the first sample's.
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    # Aligned with tokens when asked for at spawn: Unix time, in seconds, when the device had each.
    times: tuple[float, ...] = ()
    vector: bytes = b""  # what an `Embed` process ended with: numbers of 32 bits, little-endian


class Write(msgspec.Struct, frozen=True, tag="write"):
    """Append input tokens to an interactive process that is blocked on input, and start its next turn.

    Errors: ESRCH, EPERM, EBUSY (not blocked on input), EINVAL, E2BIG, ENOMEM and EDQUOT (as for `Spawn`).
    """

    pid: int
    tokens: tuple[int, ...]
    max_tokens: int | None = None


class Kill(msgspec.Struct, frozen=True, tag="kill"):
    """End a process in any state. Replies when its memory is free. Errors: ESRCH, EPERM."""

    pid: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Keep a process from running; its memory stays. Errors: ESRCH, EPERM, EBUSY (it has exited)."""

    pid: int


class Cont(msgspec.Struct, frozen=True, tag="cont"):
    """Let a stopped process go on where it was. Errors: ESRCH, EPERM, EBUSY (it is not stopped)."""

    pid: int


class Nice(msgspec.Struct, frozen=True, tag="nice"):
    """Set the nice level; lower runs first. Errors: ESRCH, EPERM, EINVAL (outside -20..19)."""

    pid: int
    nice: int


class Ps(msgspec.Struct, frozen=True, tag="ps"):
    """List the caller's processes; `everyone` lists all (administrators). Errors: EPERM."""

    everyone: bool = False
    shared: bool = True  # False: num_shared_bytes is 0, and no page is walked to count it


class Stat(msgspec.Struct, frozen=True, tag="stat"):
    """Describe one process. Errors: ESRCH, EPERM."""

    pid: int


class ProcessInfo(msgspec.Struct, frozen=True, tag="process_info"):
    """Reply to `Stat`, and a row of `ProcessList`."""

    pid: int
    parent: int | None
    tenant: str
    state: str  # READY, RUNNING, BLOCKED(Input), STOPPED, ZOMBIE …
    label: str
    model: str
    device: str | None
    nice: int
    seed: int
    num_tokens: int  # prompt and output
    num_computed: int  # of those, with keys and values in memory
    max_tokens: int
    num_resident_bytes: int
    num_shared_bytes: int  # of those, also mapped by others
    age_seconds: float
    usage: Usage
    status: ExitStatus | None = None
    activity: str = (
        ""  # what its time is spent on: queued, memory, swapped, prefill, decode, input, stopped …
    )
    user: str = ""  # as its spawn named


class ProcessList(msgspec.Struct, frozen=True, tag="process_list"):
    """Reply to `Ps`, ordered by pid."""

    processes: tuple[ProcessInfo, ...]


class Why(msgspec.Struct, frozen=True, tag="why"):
    """Tell what happened to a process and where its time went, zombies included. Errors: ESRCH, EPERM."""

    pid: int


class TimelineEntry(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to a process, or several of a kind in a row."""

    kind: str  # "spawned", "queued", "admitted", "prefill", "first token", "decoding", "preempted", …
    at: float  # seconds since it was spawned
    seconds: float = 0.0  # that it took; of one that is not over: so far
    count: int = 1  # prefill: chunks; swapped: copies; queued: how many others waited
    num_tokens: int = 0  # computed, sampled, found in memory, or lost with it
    num_bytes: int = 0  # copied
    pid: int | None = None  # preempted: for whom; spawned: the parent
    text: str = ""  # blocked: on what; preempted, swapped: how; queued: whose processes ran; ended: why


class WhyInfo(msgspec.Struct, frozen=True, tag="why_info"):
    """Reply to `Why`."""

    pid: int
    state: str
    verdict: str  # one line: the largest reason first
    entries: tuple[TimelineEntry, ...]  # by time
    num_dropped: int  # entries before them that are forgotten
    seconds: dict[str, float]  # by what they were spent on: "queued", "memory", "prefill", "decode", …


class Trace(msgspec.Struct, frozen=True, tag="trace"):
    """Follow a process: calls that name it, and what the scheduler does with it.

    The first call begins the trace, with what `why` would tell; it ends by itself when nobody has asked for
    ten seconds. With `follow`, blocks until there is an event. Whoever asks too late loses the oldest events,
    and the process never waits. Errors: ESRCH, EPERM, EINVAL (limit), EAGAIN (too many of the tenant's
    processes are traced).
    """

    pid: int
    since: int = 0  # sequence number
    limit: int = 1000
    follow: bool = False


class TraceEvent(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to a traced process: an entry of its timeline, or an answered call."""

    sequence: int
    kind: str  # of a `TimelineEntry`, "mapped", "unmapped", or a call's tag: "read", "kill", …
    at: float  # seconds since it was spawned
    seconds: float = 0.0  # that it took
    count: int = 1  # as in `TimelineEntry`; mapped, unmapped: pages
    num_tokens: int = 0
    num_bytes: int = 0
    pid: int | None = None
    text: str = ""  # of a call: its arguments
    result: str = ""  # of a call
    session: int | None = None  # that made the call; null: no call


class TraceList(msgspec.Struct, frozen=True, tag="trace_list"):
    """Reply to `Trace`."""

    events: tuple[TraceEvent, ...]
    next: int  # what `since` is to be in the next call
    num_lost: int = 0  # events before these that the caller came too late for
    is_over: bool = False  # the process has ended, and nothing follows these
