"""One response in the making: its process is followed, its events are kept for whoever reads them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import attrs
import msgspec
import structlog
import trio

from shell.gateway.choice import Choice, TokenEntry
from shell.gateway.errors import ApiError, as_api_error
from shell.gateway.generation import explain_exit, open_choice
from shell.gateway.job import Job
from shell.gateway.logprobs import chat_logprobs
from shell.gateway.response_events import Json, ResponseEvents, drop_logprobs, note_reasoning
from shell.gateway.response_record import Record, ResponseStore
from syscalls.client import Client, ConnectionLost
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Output
from syscalls.sampling import TokenLogprobs

LOST = "The kernel was restarted, or the process was removed, before the response was complete."

log = structlog.get_logger("gateway.responses")
_logprobs_decoder = msgspec.msgpack.Decoder(list[TokenLogprobs])


@attrs.frozen(kw_only=True)
class Prepared:
    """A response that can be begun."""

    record: Record
    job: Job  # its only prompt is the record's
    parent: Record | None = None  # whose process holds the beginning of the prompt
    suffix: tuple[int, ...] = ()  # the rest of the prompt, after the parent's output


@attrs.define(eq=False)
class ResponseRun:
    """Owned by the task that runs `follow`; readers look at `writer.events` and wait for changes."""

    record: Record
    job: Job
    store: ResponseStore
    writer: ResponseEvents = attrs.field(
        default=attrs.Factory(lambda s: ResponseEvents(s.record, s.make_rows), takes_self=True)
    )
    failure: ApiError | None = None  # what a reader who waits for the whole is told
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_cancelled: bool = False  # somebody asked for its end
    over: trio.Event = attrs.field(factory=trio.Event)
    changed: trio.Event = attrs.field(factory=trio.Event)  # replaced whenever it was set

    @property
    def has_begun(self) -> bool:
        """True once the model's first words, or its end, are among the events."""
        return self.writer.has_items or self.over.is_set()

    def make_rows(self, entries: Sequence[TokenEntry]) -> list[Json]:
        """Return the log-probabilities of tokens, where they were asked for."""
        job = self.job
        if job.num_top_logprobs is None:
            return []
        rows: list[Json] = chat_logprobs(job.model.text, entries, job.num_top_logprobs)["content"]
        return rows

    async def begin(self, client: Client, prepared: Prepared) -> None:
        """Create the process: a fork of the one that it continues, else a new one.

        Raises:
            SyscallError: the kernel refuses it.
            ApiError: 507, it cannot be stored.
        """
        record, parent = self.record, prepared.parent
        if parent is not None:  # so it will be, if the fork succeeds; whoever finds it can tell what it is
            record.offset = parent.offset + len(parent.tokens)
            record.num_kept_tokens = len(parent.prompt) + len(parent.tokens) - 1
        if record.is_stored:
            await self.store.enter(record)  # before there is a process, so that one is never left unknown
        if parent is not None and parent.pid is not None and record.is_stored:
            with suppress(SyscallError):  # it is gone, or there is no room for two: begin anew
                await self._fork(client, parent, prepared)
        if record.pid is None:
            options = {**self.job.spawn, "label": record.id}
            if record.is_stored:
                options.update(detached=True, interactive=True, auto_reap=False)
            spawned = await client.spawn(record.prompt, **options)  # type: ignore[arg-type]
            record.pid, record.offset, record.num_kept_tokens = spawned.pids[0], 0, 0
        if record.is_stored:
            await self.store.save(record)

    async def _fork(self, client: Client, parent: Record, prepared: Prepared) -> None:
        assert parent.pid is not None
        if (await client.stat(parent.pid)).label != parent.id:
            return  # a kernel that was restarted gives the pid to others
        (pid,) = (await client.fork(parent.pid, detached=True, label=self.record.id)).pids
        try:
            await client.write(pid, prepared.suffix, self.job.spawn["max_tokens"])
        except BaseException:
            with trio.CancelScope(shield=True), suppress(SyscallError, ConnectionLost):
                await end_process(client, pid)
            raise
        self.record.pid = pid

    async def follow(self, client: Client) -> None:
        """Read the process to the end of its turn, and write the record's end. Never raises for a failure."""
        record = self.record
        status, error = "failed", None
        choice = open_choice(self.job, 0, 0, record.pid or 0)
        tokens: list[int] = []
        logprobs: list[TokenLogprobs] = []
        self.writer.begin()
        self._tell()
        try:
            with self.scope:
                end = await self._read(client, choice, tokens, logprobs)
                if end.reason in ("stop", "length"):
                    status = "completed" if choice.finish_reason == "stop" else "incomplete"
                elif not self.is_cancelled:
                    self.failure = explain_exit(end)
        except (SyscallError, ConnectionLost) as failure:
            self.failure = as_api_error(failure, record.id)
            if isinstance(failure, SyscallError) and failure.errno is Errno.ESRCH:
                self.failure = ApiError(500, "server_error", "process_lost", LOST)
        if self.is_cancelled:
            status, self.failure = "cancelled", None
        if self.failure is not None:
            error = {"code": "server_error", "message": self.failure.message}
        note_reasoning(record, choice)
        record.tokens, record.status, record.error = tokens, status, error
        record.logprobs = msgspec.msgpack.encode(logprobs) if logprobs else b""
        record.num_cached_tokens = min(
            len(record.prompt), max(record.num_kept_tokens, choice.usage.num_cached_tokens)
        )
        self.writer.finish()
        record.output = drop_logprobs(self.writer.output)
        if not record.is_stored or status not in ("completed", "incomplete") or not choice.has_exited:
            await self._drop_process(client)
        if record.is_stored:
            await self.store.save(record)
        self.over.set()
        self._tell()

    async def _read(
        self, client: Client, choice: Choice, tokens: list[int], logprobs: list[TokenLogprobs]
    ) -> ExitStatus:
        """Feed the tokens one by one, so that events do not depend on how they were read."""
        record = self.record
        if record.pid is None or (await client.stat(record.pid)).label != record.id:
            raise SyscallError(Errno.ESRCH, "the process is another one's")

        def take(output: Output) -> bool:
            for index, token in enumerate(output.tokens):
                tokens.append(token)
                found = output.logprobs[index : index + 1]
                logprobs.extend(found)
                self._feed(choice, Output(0, (token,), found))
                if choice.is_finished:  # the one call that was asked for
                    return False
            self._tell()
            return True

        with client.open_feed(record.pid, record.offset) as feed:
            last = await feed.follow(take)
        if last.end is not None:
            take(last)
        if choice.is_finished or last.end is None:
            return ExitStatus("stop")
        self._feed(choice, Output(0, (), end=last.end, usage=last.usage))
        return last.end

    def _feed(self, choice: Choice, output: Output) -> None:
        delta = choice.feed(output)
        self.writer.feed(delta, choice.reader)

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def _drop_process(self, client: Client) -> None:
        """End the process: nobody will continue it."""
        record = self.record
        pid, record.pid = record.pid, None
        if pid is None:
            return
        with trio.move_on_after(10, shield=True), suppress(SyscallError, ConnectionLost):
            await end_process(client, pid)

    def replay(self) -> None:
        """Write the events of a response that is over, from its tokens."""
        record = self.record
        choice = open_choice(self.job, 0, 0, 0)
        status, record.status = record.status, "in_progress"
        self.writer.begin()
        logprobs = _logprobs_decoder.decode(record.logprobs) if record.logprobs else []
        for index, token in enumerate(record.tokens):
            self._feed(choice, Output(0, (token,), tuple(logprobs[index : index + 1])))
        if status in ("completed", "incomplete") and not choice.is_finished:
            reason = "stop" if status == "completed" else "length"
            self._feed(choice, Output(0, (), end=ExitStatus(reason)))
        record.status = status
        self.writer.finish()
        self.over.set()


async def adopt_process(client: Client, record: Record) -> None:
    """Find the process of a record that does not know its own: the gateway died before it was told.

    A fork that has not been told its turn yet is ended: it has the beginning of the prompt only.
    """
    for process in await client.ps(everyone=client.welcome.admin):
        if process.label != record.id:
            continue
        if process.parent is None:
            record.offset = record.num_kept_tokens = 0
        elif process.num_tokens < len(record.prompt):
            with suppress(SyscallError):  # it is gone
                await end_process(client, process.pid)
            continue
        record.pid = process.pid


async def end_process(client: Client, pid: int) -> None:
    """Kill and reap a process. Raises SyscallError when it is gone."""
    await client.kill(pid)
    await client.wait(pid)
