"""The syscall server: accepts connections on the Unix socket and gives each a session."""

from __future__ import annotations

from functools import partial

import structlog
import trio

from llmos.ipc.credentials import peer_credentials
from llmos.ipc.framing import FrameStream
from llmos.kernel.dispatch import Dispatcher
from llmos.kernel.session import Session
from llmos.kernel.system import System
from llmos.params import MAX_SESSIONS

log = structlog.get_logger("server")


class SyscallServer:
    """Owns the sessions."""

    def __init__(self, system: System, listener: trio.SocketListener) -> None:
        self._system = system
        self._listener = listener
        self._dispatcher = Dispatcher(system)
        self._next_session = 1
        self._sessions: set[Session] = set()
        self._accepting = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop`, and the last session's end. The listener is closed then."""
        async with trio.open_nursery() as handlers:
            with self._accepting:
                async with trio.open_nursery() as nursery:
                    accept = partial(trio.serve_listeners, self._handle, [self._listener])
                    await nursery.start(partial(accept, handler_nursery=handlers))
                    task_status.started()

    def stop(self) -> None:
        """Take no more sessions, and end those that there are, each when its last replies are sent."""
        self._accepting.cancel()
        for session in self._sessions:
            session.end()

    def identify_again(self) -> int:
        """After the tenants have changed: end sessions that act for whom they may not; return how many."""
        return sum([session.identify_again() for session in self._sessions])

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Serve one connection; nothing it does may end the others."""
        system = self._system
        if self._accepting.cancel_called:  # it had not begun when `stop` ended the others
            await stream.aclose()
            return
        if system.num_sessions >= MAX_SESSIONS:
            log.warning("too_many_sessions", limit=MAX_SESSIONS)
            await stream.aclose()
            return
        session = Session(
            id=self._next_session,
            uid=peer_credentials(stream.socket).uid,
            stream=FrameStream(stream),
            system=system,
            carry_out=self._dispatcher.carry_out,
        )
        self._next_session += 1
        system.num_sessions += 1
        self._sessions.add(session)
        try:
            await session.run()
        except* Exception as group:
            log.exception("session_failed", session=session.id, exc_info=group)
            system.events.record(
                "server", f"session {session.id} failed: {group.exceptions[0]!r}", level="error"
            )
        finally:
            system.num_sessions -= 1
            self._sessions.discard(session)
            with trio.CancelScope(shield=True):
                await stream.aclose()
