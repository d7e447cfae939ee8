"""A Trio client's connection to the kernel: who waits for which answer, and what is still to be sent.

One task reads the socket and wakes the callers; another writes what has gathered since its last send, so
calls made in the same tick share one system call. A caller parks itself directly instead of waiting on an
event or a channel: that halves the price of a call.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import outcome
import trio

from syscalls.codec import Answer, ErrorReply, Request, Welcome
from syscalls.embedding import Embed
from syscalls.feed import OutputFeed
from syscalls.image import Restore
from syscalls.process import Fork, Kill, Spawn, Spawned, Unfollow, Wait
from syscalls.session import ClientSession, ConnectionLost

RECEIVE_BYTES = 256 << 10
MORE_READS = 8  # of what came meanwhile, before other tasks have their turn: a step's outputs come in pieces
MAX_UNSENT_BYTES = 1 << 20  # callers wait while more is queued: a kernel that does not read slows us
BURIAL_SECONDS = 2.0  # at the end, for detached processes of cancelled calls: the session's end kills others


@asynccontextmanager
async def open_connection(
    stream: trio.abc.Stream, name: str = "", key: str = ""
) -> AsyncIterator[Connection]:
    """Open a session on a connected stream, which is closed at the end of the block.

    The nursery that holds the two tasks never sees the block's own exception: it would wrap it in a group,
    and `except SyscallError` around the block would not match.

    Raises as `syscalls.client.open_client` does.
    """
    failure: BaseException | None = None
    async with stream:
        connection = Connection(stream)
        await connection._open(name, key)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection._run)
                try:
                    yield connection
                except BaseException as error:
                    failure = error
                finally:
                    await connection._close()
        finally:
            if failure is not None:
                raise failure


class Connection:
    """Calls in flight over one stream. Each has one answer, but for feeds, which have many."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._session = ClientSession()
        self._waiting: dict[int, trio.lowlevel.Task | OutputFeed] = {}  # callers, by the id of their call
        self._orphaned: dict[int, bool] = {}  # cancelled calls that create, not answered yet: detached or not
        self._graves: set[int] = set()  # calls that bury detached processes, not answered yet
        self._buried = trio.lowlevel.ParkingLot()  # who closes, while there are such
        self._tasks = trio.CancelScope(shield=True)  # both tasks: whoever is cancelled may have to bury
        self._unsent = bytearray()
        self._writer: trio.lowlevel.Task | None = None  # set while the writer is parked: nothing to send
        self._has_room = trio.lowlevel.ParkingLot()  # callers held back by MAX_UNSENT_BYTES
        self._lost: str | None = None  # why the session is over

    @property
    def welcome(self) -> Welcome:
        """What the kernel said when it opened the session."""
        assert self._session.welcome is not None
        return self._session.welcome

    @property
    def num_calls_in_flight(self) -> int:
        """Callers that wait for a reply."""
        return len(self._waiting)

    async def call(self, body: Request) -> Answer:
        """Make one call and wait for its answer. A checkpoint.

        Cancelled, the answer is dropped when it comes, and what it says was created is killed.

        Raises:
            SyscallError: the kernel's refusal.
            ConnectionLost: the session is over.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while len(self._unsent) > MAX_UNSENT_BYTES and self._lost is None:
            await self._has_room.park()
        call_id = self._post(body)
        self._waiting[call_id] = trio.lowlevel.current_task()

        def abandon(_: object) -> trio.lowlevel.Abort:
            del self._waiting[call_id]
            if isinstance(body, Spawn | Embed | Fork | Restore):
                self._orphaned[call_id] = not isinstance(body, Embed) and body.detached
            return trio.lowlevel.Abort.SUCCEEDED

        answer: Answer = await trio.lowlevel.wait_task_rescheduled(abandon)
        if isinstance(answer, ErrorReply):
            raise answer.as_error()
        return answer

    def start_feed(self, pid: int, offset: int, window: int) -> OutputFeed:
        """Have a process's output sent from `offset` on. Raises ConnectionLost. Stop it with `stop_feed`."""
        feed = OutputFeed(self._post, pid, offset, window)
        self._waiting[feed.call_id] = feed
        return feed

    def stop_feed(self, feed: OutputFeed) -> None:
        """Tell the kernel that nobody wants the rest of a feed, unless there is none. Idempotent."""
        if self._waiting.pop(feed.call_id, None) is not None and self._lost is None:
            self._post(Unfollow(feed.call_id))

    def bury(self, pids: tuple[int, ...], *, detached: bool = False) -> None:
        """Kill and reap processes; only the session's end waits for the replies, where they outlive it."""
        if self._lost is None:
            calls = {self._post(body) for pid in pids for body in (Kill(pid), Wait(pid))}
            self._graves |= calls if detached else set()

    async def _open(self, name: str, key: str) -> None:
        try:
            await self._stream.send_all(self._session.encode_hello(name, key))
            while self._session.welcome is None:
                self._session.receive(await self._stream.receive_some(RECEIVE_BYTES))
        except trio.BrokenResourceError as error:
            raise ConnectionLost("the kernel closed the connection during the handshake") from error

    def _post(self, body: Request) -> int:
        """Queue one call for the writer. Raises ConnectionLost when the session is over."""
        if self._lost is not None:
            raise ConnectionLost(self._lost)
        call_id, frame = self._session.encode_call(body)
        self._unsent += frame
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
        return call_id

    async def _run(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_reader)
                nursery.start_soon(self._run_writer)

    async def _close(self) -> None:
        """End the session, when nothing is left of detached processes whose makers were cancelled."""
        with trio.move_on_after(BURIAL_SECONDS, shield=True):
            while self._lost is None and (self._graves or any(self._orphaned.values())):
                await self._buried.park()
        self._fail("this client was closed")
        self._tasks.cancel()

    async def _run_writer(self) -> None:
        try:
            while True:
                if not self._unsent:
                    self._writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._stop_writer)
                data, self._unsent = self._unsent, bytearray()
                self._has_room.unpark_all()
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # the reader meets the same end, and may still find the kernel's reason before it

    def _stop_writer(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _run_reader(self) -> None:
        try:
            while True:
                self._take(await self._stream.receive_some(RECEIVE_BYTES))
                for _ in range(MORE_READS):
                    if not (data := self._receive_nowait()):
                        break
                    self._take(data)
        except ConnectionLost as error:
            self._fail(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._fail(f"the connection to the kernel broke: {error.__cause__ or error}")

    def _take(self, data: bytes | bytearray) -> None:
        """Give what came to those who wait for it. Raises as `ClientSession.receive` does."""
        for call_id, answer in self._session.receive(data):
            caller = self._waiting.get(call_id)
            if isinstance(caller, OutputFeed):
                if caller.receive(answer):
                    del self._waiting[call_id]
            elif caller is not None:
                del self._waiting[call_id]
                trio.lowlevel.reschedule(caller, outcome.Value(answer))
            elif call_id in self._orphaned:
                detached = self._orphaned.pop(call_id)
                if isinstance(answer, Spawned):
                    self.bury(answer.pids, detached=detached)
                self._buried.unpark_all()
            elif call_id in self._graves:
                self._graves.remove(call_id)
                self._buried.unpark_all()

    def _receive_nowait(self) -> bytes:
        """Receive what is there; b"": nothing, or `receive_some` will tell what else."""
        if not isinstance(self._stream, trio.SocketStream):
            return b""
        try:
            return os.read(self._stream.socket.fileno(), RECEIVE_BYTES)
        except OSError:
            return b""

    def _fail(self, reason: str) -> None:
        """End the session: every caller, waiting or to come, gets ConnectionLost."""
        if self._lost is not None:
            return
        self._lost = reason
        waiting, self._waiting = self._waiting, {}
        for caller in waiting.values():
            if isinstance(caller, OutputFeed):
                caller.lose(ConnectionLost(reason))
            else:
                trio.lowlevel.reschedule(caller, outcome.Error(ConnectionLost(reason)))
        self._has_room.unpark_all()
        self._buried.unpark_all()
