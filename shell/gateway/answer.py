"""From a job to an answer, whole or streamed. What the JSON looks like is the endpoint's `Shape`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
import trio

from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.deadline import kept_deadline
from shell.gateway.exchange import Exchange
from shell.gateway.generation import Generation, open_generation
from shell.gateway.job import Job
from shell.gateway.limits import rate_headers
from shell.gateway.parsers.events import Content, Event
from shell.gateway.progress import PromptProgress
from shell.gateway.service import Service
from shell.gateway.sse import DONE, EventWriter, SendStalled, encode_event
from shell.gateway.timings import make_timings
from syscalls.process import Output

Json = dict[str, Any]


@attrs.define(eq=False)
class Collected:
    """A whole choice."""

    choice: Choice
    parts: list[Event] = attrs.field(factory=list)
    entries: list[TokenEntry] = attrs.field(factory=list)
    tokens: list[int] = attrs.field(factory=list)
    times: list[float] = attrs.field(factory=list)  # of tokens, where they were asked for

    def add(self, delta: Delta) -> None:
        """Take the next part."""
        self.parts += delta.parts
        self.entries += delta.entries
        self.tokens += delta.tokens
        self.times += delta.times

    @property
    def text(self) -> str:
        """The text for the user so far."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))


class Shape(Protocol):
    """How an endpoint writes its objects. One for each request; `usage` is added by the caller."""

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """Return the stream's next objects for a choice: none when there is nothing to tell."""
        ...

    def text_event(
        self, index: int, text: str, tokens: Sequence[int], times: Sequence[float]
    ) -> bytes | None:
        """Return what `chunks` would, framed, for a delta of a choice that is nothing but text.

        None: call `chunks`. With the null `usage` of a stream that ends with its usage; nothing else is added
        to such chunks.
        """
        ...

    def bare_chunk(self, *, is_last: bool) -> Json:
        """Return an object without choices: the last one carries a stream's usage, others its progress."""
        ...

    def complete(self, collected: list[Collected]) -> Json:
        """Return the whole response object."""
        ...


def choose_best(collected: list[Collected], job: Job) -> list[Collected]:
    """Of each prompt's choices, those with the largest mean log-probability; they are numbered anew."""
    if job.num_choices == job.num_samples:
        return collected
    chosen = []
    for start in range(0, len(collected), job.num_samples):
        ranked = sorted(
            collected[start : start + job.num_samples], key=lambda each: -each.choice.mean_logprob
        )
        chosen += ranked[: job.num_choices]
    for index, each in enumerate(chosen):
        each.choice.index = index
    return chosen


def make_usage(generation: Generation) -> Json:
    """Return the `usage` object as of now."""
    num_prompt, num_completion = generation.num_prompt_tokens, generation.num_completion_tokens
    usage: Json = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_completion,
        "total_tokens": num_prompt + num_completion,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }
    if generation.job.reading.reasoning_marks is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": generation.num_reasoning_tokens}
    return usage


async def answer(
    service: Service, exchange: Exchange, prepare: Callable[[], Awaitable[tuple[Job, Shape]]]
) -> None:
    """Admit a request, prepare its job, run it and respond; ends at once when the client goes away.

    Args:
        service: the gateway's parts.
        exchange: the request, its body read.
        prepare: checks the body and encodes the prompts.

    Raises:
        what goes wrong, in an exception group or not; the front door tells the client.
    """

    async def work() -> None:
        job, shape = await prepare()
        exchange.noted["model"] = job.model.name
        client = exchange.client or service.link.client
        async with open_generation(client, job, service.metrics, exchange.started) as generation:
            exchange.rate_headers = rate_headers(generation.rates)
            exchange.pids = tuple(choice.pid for choice in generation.choices if choice.pid)
            limit = job.spawn["deadline_seconds"]
            try:
                async with kept_deadline(exchange, limit, lambda: generation.first_token is not None):
                    if job.stream:
                        await _stream(service, exchange, generation, shape)
                    else:
                        await _collect(service, exchange, generation, shape)
            finally:
                _note(exchange, generation)

    with service.admission.admit(exchange):
        await exchange.guard(work)


def _note(exchange: Exchange, generation: Generation) -> None:
    """Tell the log line what was generated."""
    exchange.noted.update(
        num_prompt_tokens=generation.num_prompt_tokens,
        num_completion_tokens=generation.num_completion_tokens,
        num_cached_tokens=generation.num_cached_tokens,
        finish=sorted({choice.finish_reason or "unfinished" for choice in generation.choices}),
    )
    if generation.first_token is not None:
        exchange.noted["first_token_seconds"] = round(generation.first_token, 6)


@attrs.define(eq=False)
class Collector:
    """Keeps whole choices, by index."""

    collected: dict[int, Collected]

    def put(self, choice: Choice, delta: Delta) -> bool:
        """See Sink: there is always room."""
        self.collected[choice.index].add(delta)
        return True

    def put_text(self, choice: Choice, text: str, output: Output) -> bool:
        """See Sink."""
        return self.put(choice, Delta.of_text(text, output))

    async def drain(self) -> None:
        """See Sink: nothing waits."""
        await trio.lowlevel.checkpoint()


async def _collect(service: Service, exchange: Exchange, generation: Generation, shape: Shape) -> None:
    collected = {choice.index: Collected(choice) for choice in generation.choices}
    await generation.run(Collector(collected))
    response = shape.complete(choose_best([collected[index] for index in sorted(collected)], generation.job))
    response["usage"] = make_usage(generation)
    if generation.job.has_timings or service.config.timings:
        response |= make_timings(generation)
    await exchange.respond_json(200, response)


@attrs.define(eq=False)
class Streamer:
    """Writes deltas as the events of a stream."""

    generation: Generation
    shape: Shape
    writer: EventWriter
    _is_bare: bool = attrs.field(init=False)  # nothing that changes is added to the shape's chunks

    @_is_bare.default
    def _find_bare(self) -> bool:
        job = self.generation.job
        return not (job.continuous_usage or job.has_timings)

    def put(self, choice: Choice, delta: Delta) -> bool:
        """See Sink."""
        job, parts = self.generation.job, delta.parts
        if self._is_bare and delta.finish_reason is None and not delta.entries and len(parts) == 1:
            part = parts[0]
            if type(part) is Content:
                event = self.shape.text_event(choice.index, part.text, delta.tokens, delta.times)
                if event is not None:
                    return self.writer.put(event)
        chunks = self.shape.chunks(choice, delta)
        self._add_usage(chunks)
        if job.has_timings:
            timings = make_timings(self.generation)["timings"]
            for chunk in chunks:
                chunk["timings"] = timings
        return not chunks or self.writer.put(b"".join(map(encode_event, chunks)))

    def put_text(self, choice: Choice, text: str, output: Output) -> bool:
        """See Sink. This is each token's way, so it makes no more objects than it must."""
        if self._is_bare:
            event = self.shape.text_event(choice.index, text, output.tokens, output.times)
            if event is not None:
                return self.writer.put(event)
        return self.put(choice, Delta.of_text(text, output))

    def _add_usage(self, chunks: list[Json]) -> None:
        job = self.generation.job
        if job.continuous_usage:
            usage = make_usage(self.generation)
            for chunk in chunks:
                chunk["usage"] = usage
        elif job.include_usage:
            for chunk in chunks:
                chunk["usage"] = None

    async def send_progress(self, progress: Json) -> None:
        """Write an event that tells how far the prompt is computed."""
        chunk = {**self.shape.bare_chunk(is_last=False), "prompt_progress": progress}
        self._add_usage([chunk])
        await self.writer.send_raw(encode_event(chunk))

    async def drain(self) -> None:
        """See Sink."""
        await self.writer.flush()


async def _stream(service: Service, exchange: Exchange, generation: Generation, shape: Shape) -> None:
    job = generation.job
    writer = EventWriter(exchange, service.config.ping_interval_or_none, service.config.send_timeout)

    async def give_up() -> None:
        exchange.abort(SendStalled())
        await generation.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.watch, give_up)
        await writer.begin()
        streamer = Streamer(generation, shape, writer)
        if job.has_progress:
            nursery.start_soon(PromptProgress(generation, streamer.send_progress).run)
        await generation.run(streamer)
        last = b""
        if job.include_usage:
            extras = make_timings(generation) if job.has_timings or service.config.timings else {}
            last = encode_event({**shape.bare_chunk(is_last=True), "usage": make_usage(generation), **extras})
        await writer.send_raw(last + DONE)
        nursery.cancel_scope.cancel()
    exchange.noted["num_writes"] = writer.num_writes
    await exchange.end_events()
