"""The life of a request's processes: spawn, read each to its end, kill what is left over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import structlog
import trio

from shell.gateway.choice import Choice, Delta
from shell.gateway.choice_reading import ChoiceReading, Sink
from shell.gateway.errors import ApiError, process_killed, unavailable
from shell.gateway.job import Job
from shell.gateway.metrics import Metrics
from shell.gateway.vllm_metrics import RequestMetrics, finished_reason
from shell.gateway.waits import Wait
from syscalls.client import Client, ConnectionLost, OutputFeed
from syscalls.errno import SyscallError
from syscalls.process import ExitStatus
from syscalls.tenant import Rates

KILL_GRACE_SECONDS = 10.0

log = structlog.get_logger("gateway.generation")


def open_choice(job: Job, prompt_index: int, index: int, pid: int) -> Choice:
    """Start reading what a process of the job samples."""
    extra = frozenset(job.spawn["stop_token_ids"])
    own = frozenset() if job.spawn["ignore_eos"] else frozenset(job.model.info.eos_token_ids)
    return Choice(
        index=index,
        pid=pid,
        prompt_index=prompt_index,
        decoder=job.model.text.decoder(
            job.skip_special_tokens, continues=True, shown_tokens=job.reading.markup
        ),
        reader=job.reading.open(job.stops, job.include_stop, is_armed=not job.spawn["min_tokens"]),
        include_stop=job.include_stop,
        min_tokens=job.spawn["min_tokens"],
        end_tokens=own | extra,
        extra_end_tokens=extra,
    )


@attrs.define(eq=False, kw_only=True)
class Generation:
    """The processes of one request. Owned by `open_generation`."""

    client: Client
    job: Job
    metrics: Metrics
    started: float  # when the request arrived, seconds on the run's clock
    choices: list[Choice] = attrs.field(factory=list)
    first_token: float | None = None  # seconds after `started`
    rates: Rates | None = None  # what was left to the tenant when the processes were there
    _accounts: dict[int, RequestMetrics] = attrs.field(factory=dict)  # by pid
    # By prompt: its first choice, which alone computes it, has the scores of its tokens.
    _scored: defaultdict[int, trio.Event] = attrs.field(factory=lambda: defaultdict(trio.Event))

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        return sum(map(len, self.job.prompts))

    @property
    def num_completion_tokens(self) -> int:
        """Every sampled token of every choice so far."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_reasoning_tokens(self) -> int:
        """Of those, tokens of thoughts."""
        return sum(choice.num_reasoning_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in memory; of each prompt's first choice, which alone computes."""
        return sum(choice.usage.num_cached_tokens for choice in self.choices[:: self.job.num_samples])

    async def spawn(self) -> None:
        """Create the processes. Raises SyscallError; what was created then is killed by `close`."""
        job = self.job
        is_scored = job.spawn["sampling"].prompt_logprobs is not None
        for prompt_index, prompt in enumerate(job.prompts):
            pids: tuple[int, ...] = ()
            if job.spawn["max_tokens"] != 0:
                spawned = await self.client.spawn(prompt, **job.spawn)
            elif is_scored and len(prompt) > 1:  # only the prompt is wanted back, with its scores
                options = job.spawn.copy()
                options["num_samples"] = 1
                spawned = await self.client.spawn(prompt, **options)
            else:
                spawned = None
            if spawned is not None:
                self.rates, pids = spawned.rates, spawned.pids
            for sample in range(job.num_samples):
                pid = pids[sample] if sample < len(pids) else 0
                choice = open_choice(self.job, prompt_index, prompt_index * job.num_samples + sample, pid)
                if not pid:
                    choice.finish_reason, choice.has_exited = "length", True
                self.choices.append(choice)
                if pid and self.metrics.vllm is not None:
                    name = job.model.info.name
                    self._accounts[pid] = self.metrics.vllm.open(name, len(prompt), self.started)
                    self.metrics.vllm.count_prompt(name, len(prompt) if sample == 0 else 0)

    def close_accounts(self) -> None:
        """Tell vLLM's metrics of the end of every choice, when nothing is read any more."""
        for choice in self.choices:
            account = self._accounts.pop(choice.pid, None)
            if account is None:
                continue
            reason = finished_reason(choice.finish_reason, has_failed=choice.failure is not None)
            # The kernel tells the usage with the exit; before, there is only the default.
            usage = choice.usage if choice.usage.num_prompt_tokens else None
            account.end(trio.current_time(), reason, usage)

    def note_waits(self) -> None:
        """Tell the live page what processes that have exited waited for, and their client between tokens."""
        now = trio.current_time()
        for choice in self.choices:
            usage = choice.usage
            if usage.first_token_seconds is None or self.first_token is None:
                continue
            num_gaps, spent = usage.num_output_tokens - 1, now - self.started - self.first_token
            between = spent / num_gaps if num_gaps > 0 else None
            tenant = self.client.welcome.tenant
            wait = Wait(tenant, now, usage.queued_seconds, usage.first_token_seconds, between)
            self.metrics.waits.note(choice.pid, wait)

    async def run(self, sink: Sink) -> None:
        """Read all choices to their end; each is read on only when the sink has room for more.

        Raises:
            ApiError: a process was killed or failed; the others are not read on.
            SyscallError, ConnectionLost: the kernel's failure.
        """
        if len(self.choices) == 1:
            await self._read(self.choices[0], sink)
            return
        async with trio.open_nursery() as nursery:
            for choice in self.choices:
                nursery.start_soon(self._read, choice, sink)

    async def _read(self, choice: Choice, sink: Sink) -> None:
        if choice.is_finished:
            await self._share_scores(choice)
            await deliver(
                sink, choice, Delta(parts=(), entries=(), tokens=(), finish_reason=choice.finish_reason)
            )
            return
        reading = ChoiceReading(
            choice=choice,
            sink=sink,
            on_first_token=self._note_first_token,
            on_tokens=self.metrics.observe_tokens,
            account=self._accounts.get(choice.pid),
            max_predict_seconds=self.job.max_predict_seconds,
            is_scored=self.job.spawn["sampling"].prompt_logprobs is not None,
        )
        with self.client.open_feed(choice.pid) as feed:
            last = await self._follow(feed, reading, sink)
        await self._share_scores(choice)
        if not choice.has_exited:  # a stop string, or its time is over: it must not go on
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._kill, choice)
                await deliver(sink, choice, last)
        else:
            await deliver(sink, choice, last)

    async def _follow(self, feed: OutputFeed, reading: ChoiceReading, sink: Sink) -> Delta:
        """Deliver a choice's deltas until it has finished; return the last one."""
        choice = reading.choice
        while True:
            output = await feed.follow(reading.take)
            delta, reading.left = reading.left, None
            if output.end is not None:
                delta = reading.feed(output)
            if choice.failure is not None:
                raise explain_exit(choice.failure)
            if delta is None:  # it was put
                await sink.drain()
                continue
            await self._share_scores(choice)
            if choice.is_finished:
                return delta
            await deliver(sink, choice, delta)
            if reading.is_overdue:
                return choice.cut_short()

    def _note_first_token(self, now: float) -> None:
        if self.first_token is None:
            self.first_token = now - self.started
            self.metrics.first_token.observe(self.first_token)

    async def _share_scores(self, choice: Choice) -> None:
        """Take the scores of the prompt from its first choice, when they are wanted and it has them."""
        if self.job.spawn["sampling"].prompt_logprobs is None:
            return
        first = self.choices[choice.prompt_index * self.job.num_samples]
        if choice is first:
            self._scored[choice.prompt_index].set()
        else:
            await self._scored[choice.prompt_index].wait()
            choice.prompt_logprobs = first.prompt_logprobs

    async def _kill(self, choice: Choice) -> None:
        with suppress(SyscallError, ConnectionLost):  # it ended by itself, or with the session
            await self.client.kill(choice.pid)
            # Reaped, unless a read in flight has done so; only now is it told what was found in memory.
            choice.usage = (await self.client.wait(choice.pid)).usage
        choice.has_exited = True

    async def close(self) -> None:
        """Kill at once every process that has not exited. Safe to call again."""
        living = [choice for choice in self.choices if not choice.has_exited]
        if not living:
            return
        with trio.move_on_after(KILL_GRACE_SECONDS, shield=True) as grace:
            async with trio.open_nursery() as nursery:
                for choice in living:
                    nursery.start_soon(self._kill, choice)
        if grace.cancelled_caught:
            log.error("kill_unanswered", pids=[choice.pid for choice in living if not choice.has_exited])


async def deliver(sink: Sink, choice: Choice, delta: Delta) -> None:
    """Put a delta, and wait until there is room for more."""
    if not sink.put(choice, delta):
        await sink.drain()


def explain_exit(status: ExitStatus) -> ApiError:
    """Turn a bad exit into the error that the client sees."""
    if status.reason == "killed":
        if "drain" in status.message or "shut" in status.message:
            return unavailable("draining", "The server shut down before the request was finished.", 5)
        return process_killed(status.message)
    message = f"The request failed on the device: {status.message or 'no reason was given'}."
    return ApiError(500, "server_error", "process_failed", message)


@asynccontextmanager
async def open_generation(
    client: Client, job: Job, metrics: Metrics, started: float
) -> AsyncIterator[Generation]:
    """Spawn a job's processes; at the end of the block none of them is left."""
    generation = Generation(client=client, job=job, metrics=metrics, started=started)
    try:
        await generation.spawn()
        yield generation
    finally:
        await generation.close()
        generation.close_accounts()
        generation.note_waits()
        metrics.prompt_tokens.inc(generation.num_prompt_tokens if generation.choices else 0)
        metrics.completion_tokens.inc(generation.num_completion_tokens)
        if metrics.users is not None and generation.choices:
            metrics.users.observe(
                client.welcome.tenant,
                job.spawn["user"],
                generation.num_prompt_tokens,
                generation.num_completion_tokens,
            )
