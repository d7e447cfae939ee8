"""All responses of this gateway: those in the making, and those that are stored."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import attrs
import structlog
import trio

from shell.gateway.errors import ApiError, kernel_lost
from shell.gateway.job import Job
from shell.gateway.kernel_link import KernelLink
from shell.gateway.metrics import Metrics
from shell.gateway.response_record import Record, ResponseStore
from shell.gateway.response_run import Prepared, ResponseRun, adopt_process, end_process
from syscalls.client import Client, ConnectionLost
from syscalls.errno import SyscallError

SWEEP_SECONDS = 60.0
RECOVERY_SECONDS = 1.0  # between tries to take up what could not be

log = structlog.get_logger("gateway.responses")


@attrs.define(eq=False)
class ResponseRuns:
    """Holds the tasks that follow responses; they outlive the requests that began them."""

    link: KernelLink
    store: ResponseStore
    metrics: Metrics
    _live: dict[str, ResponseRun] = attrs.field(factory=dict)
    _nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Load what is stored, then hold the tasks and give up what is too old, for ever."""
        self.store.load()
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(SWEEP_SECONDS)
                if self.link.is_connected:
                    await self.expire(self.link.client)

    async def recover(self, prepare: Callable[[Record], Awaitable[Job]]) -> None:
        """Take up what an earlier gateway had begun, so that it comes to its end though nobody asks for it.

        Args:
            prepare: makes the job of a record again. Raises ApiError.
        """
        left = self.store.list_unfinished()
        while left:
            await self.link.wait_connected()
            here = self.store.list_unfinished()
            left = [record for record in left if any(record is other for other in here)]  # others are deleted
            for record in tuple(left):
                try:
                    client = self.link.client
                    if client.welcome.admin or client.welcome.tenant == record.tenant:
                        await self.find(client, record, partial(prepare, record))
                    left.remove(record)  # or its tenant's next request takes it up
                except (ApiError, ConnectionLost, SyscallError) as error:
                    if isinstance(error, ApiError) and error.status < 500:  # what it was asked is no more
                        await self._give_up(self.link.client, record, error)
                        left.remove(record)
                    else:
                        log.warning("not_taken_up", id=record.id, error=str(error))
            if left:
                await trio.sleep(RECOVERY_SECONDS)

    async def _give_up(self, client: Client, record: Record, reason: ApiError) -> None:
        record.status, record.error = "failed", {"code": "server_error", "message": reason.message}
        await self._end(client, record)
        await self.store.save(record)

    async def wait_idle(self) -> None:
        """Wait until no response is in the making."""
        while self._live:
            await next(iter(self._live.values())).over.wait()
            await trio.lowlevel.checkpoint()  # the task that held it lets go of it

    async def expire(self, client: Client, num_new: int = 0) -> None:
        """Give up responses that are too old, or too many."""
        for record in list(self.store.list_expired(time.time(), num_new)):
            self.store.remove(record)
            await self._end(client, record)

    async def start(self, client: Client, prepared: Prepared) -> ResponseRun:
        """Create the process and follow it. Raises SyscallError, ApiError; then nothing is left of it."""
        record = prepared.record
        if record.is_stored:
            await self.expire(client, num_new=1)
            self.store.check_room()
        run = ResponseRun(record, prepared.job, self.store)
        try:
            await run.begin(client, prepared)
        except BaseException:
            if record.is_stored:
                self.store.remove(record)
            with trio.CancelScope(shield=True):
                await self._end(client, record)
            raise
        self._follow(run, client)
        return run

    def _follow(self, run: ResponseRun, client: Client) -> None:
        assert self._nursery is not None
        self._live[run.record.id] = run
        self._nursery.start_soon(self._hold, run, client)

    async def _hold(self, run: ResponseRun, client: Client) -> None:
        try:
            await run.follow(client)
        except Exception as error:  # ours: it must not end the others
            log.error("response_failed", id=run.record.id, exc_info=error)
            run.failure = run.failure or kernel_lost()
            run.over.set()
            run.changed.set()
        finally:
            del self._live[run.record.id]
            self._count(run)

    def _count(self, run: ResponseRun) -> None:
        """Account for a response that is over, as for any other request."""
        record, metrics = run.record, self.metrics
        metrics.prompt_tokens.inc(len(record.prompt))
        metrics.completion_tokens.inc(len(record.tokens))
        if metrics.users is not None:
            user = run.job.spawn["user"]
            metrics.users.observe(record.tenant, user, len(record.prompt), len(record.tokens))

    async def find(
        self, client: Client, record: Record, prepare: Callable[[], Awaitable[Job]]
    ) -> ResponseRun:
        """Return the run of a stored response: live, taken up again after a restart, or written anew."""
        if (run := self._live.get(record.id)) is not None:
            return run
        job = await prepare()
        if (run := self._live.get(record.id)) is not None:
            return run
        run = ResponseRun(record, job, self.store)
        if record.is_over:
            run.replay()
            return run
        if record.pid is None:
            await adopt_process(client, record)
        if (live := self._live.get(record.id)) is not None:
            return live
        self._follow(run, client)
        return run

    async def cancel(self, run: ResponseRun) -> None:
        """End a response that is in the making, and wait for that. Its tokens so far stay."""
        run.is_cancelled = True
        run.scope.cancel()
        await run.over.wait()

    async def remove(self, client: Client, record: Record) -> None:
        """Delete a stored response, and its process."""
        if (run := self._live.get(record.id)) is not None:
            await self.cancel(run)
        self.store.remove(record)
        await self._end(client, record)

    async def _end(self, client: Client, record: Record) -> None:
        if record.pid is None:
            return
        with trio.move_on_after(10), suppress(SyscallError, ConnectionLost):
            if (await client.stat(record.pid)).label == record.id:
                await end_process(client, record.pid)
