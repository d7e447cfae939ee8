"""All responses of this gateway: those in the making, and those that are stored."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import attrs
import structlog
import trio

from shell.gateway.errors import kernel_lost
from shell.gateway.kernel_link import KernelLink
from shell.gateway.parameters import Job
from shell.gateway.response_record import Record, ResponseStore
from shell.gateway.response_run import Prepared, ResponseRun, end_process
from syscalls.client import Client, ConnectionLost
from syscalls.errno import SyscallError

SWEEP_SECONDS = 60.0

log = structlog.get_logger("gateway.responses")


@attrs.define(eq=False)
class ResponseRuns:
    """Holds the tasks that follow responses; they outlive the requests that began them."""

    link: KernelLink
    store: ResponseStore
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
        run = ResponseRun(record, prepared.job, self.store.save)
        try:
            await run.begin(client, prepared)
        except BaseException:
            if record.is_stored:
                self.store.remove(record)
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

    async def find(
        self, client: Client, record: Record, prepare: Callable[[], Awaitable[Job]]
    ) -> ResponseRun:
        """Return the run of a stored response: live, taken up again after a restart, or written anew."""
        if (run := self._live.get(record.id)) is not None:
            return run
        job = await prepare()
        if (run := self._live.get(record.id)) is not None:
            return run
        run = ResponseRun(record, job, self.store.save)
        if record.is_over:
            run.replay()
            return run
        if record.pid is None:  # the gateway died between the record and the process, or just after
            for process in await client.ps():
                if process.label == record.id:
                    record.pid, record.label = process.pid, record.id
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
            if (await client.stat(record.pid)).label == record.label:
                await end_process(client, record.pid)
