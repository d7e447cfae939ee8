"""One connection to the syscall socket: handshake, calls in, replies out, and what ends with it."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import msgspec
import structlog
import trio

from llmos.ipc.framing import FrameError, FrameStream
from llmos.kernel.follower import Followers
from llmos.kernel.outbox import FRAMES_AT_ONCE, Outbox
from llmos.kernel.system import System
from llmos.kernel.tenants import hash_key
from llmos.params import (
    FAREWELL_SECONDS,
    HANDSHAKE_SECONDS,
    MAX_GATHERED_BYTES,
    MAX_PARKED_CALLS,
    VERSION,
)
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from llmos.sched.messages import Kill
from syscalls.codec import (
    ABI_VERSION,
    DECODE_ERRORS,
    Answer,
    Call,
    ErrorReply,
    FrameTooLarge,
    Hello,
    Outputs,
    Reply,
    Welcome,
    client_frame_decoder,
    encode_frame,
    error_reply,
    explain_bad_call,
)  # fmt: skip
from syscalls.errno import Errno, SyscallError
from syscalls.process import Output

log = structlog.get_logger("session")

TURN_BYTES = 64 << 10  # of calls and answers, before others have their turn
CALL_BYTES = 2 << 10  # what any call counts for, however short

Undo = Callable[[], None]
CarryOut = Callable[["Session", Call], None]
"""Answers a call through `Session.reply`, now or later."""


@attrs.define(eq=False)
class Session:
    """A client's side of the kernel: its credentials, its unanswered calls, its unsent replies.

    A parked call leaves an undo behind (Curio's idea: suspending hands back what undoes it), so that closing
    the session leaves no reader or waiter anywhere.
    """

    id: int
    uid: int  # of the operating system's user at the other end
    stream: FrameStream
    system: System
    carry_out: CarryOut
    tenant: str = ""  # whom it acts for, by the handshake
    is_admin: bool = False
    _key_sha256: str = ""  # of the key that it was opened with; empty: with none
    _outbox: Outbox = attrs.field(
        default=attrs.Factory(
            lambda self: Outbox(self.stream, self.system.unflushed, self._gather_outputs), takes_self=True
        )
    )
    followers: Followers = attrs.field(
        default=attrs.Factory(
            lambda self: Followers(self.system, self.reply, self._outbox.note_due), takes_self=True
        )
    )
    rendering: trio.Lock = attrs.field(factory=trio.Lock)  # its turn to have metrics written is one at a time
    _parked: dict[int, Undo] = attrs.field(factory=dict)
    _listeners: dict[int, Callable[[Answer], None]] = attrs.field(factory=dict)  # of calls, for traces
    _is_gathering: bool = False  # answers of followers are on their way into the outbox
    _turn_bytes: int = 0  # of calls and their answers, since others had their turn
    _is_closed: bool = False
    _serving: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self) -> None:
        """Serve the connection until it ends, by whoever's doing. Never raises for what a client sends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._outbox.run)
                with self._serving:
                    await self._serve()
                self.close()
                # Let the last words out, to one who still listens: they may say why the session ends.
                nursery.cancel_scope.deadline = trio.current_time() + FAREWELL_SECONDS
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, which is ordinary
        finally:
            self.close()

    def end(self) -> None:
        """Take no more calls. What was replied is still sent, for a while, to one who listens."""
        self._serving.cancel()

    async def _serve(self) -> None:
        try:
            payloads = await self._shake_hands()
            if payloads is None:
                return
            while True:  # one who sends thousands of calls at once does not hold up the others' steps
                for payload in payloads:
                    self._take(payload)
                    self._turn_bytes += CALL_BYTES + len(payload)
                    if self._turn_bytes >= TURN_BYTES:
                        await self._outbox.wait_for_room()
                        await trio.lowlevel.checkpoint()
                        self._turn_bytes = 0
                await self._outbox.wait_for_room()
                payloads = await self.stream.receive_payloads()
        except trio.EndOfChannel:
            pass  # the client has nothing more to say
        except (FrameError, *DECODE_ERRORS) as error:
            log.info("bad_frame", session=self.id, error=str(error))
            self._send(0, ErrorReply(Errno.EPROTO, f"the session ends: {error}"))

    def _take(self, payload: bytes) -> None:
        """Carry out one call. A call whose body is wrong is answered; a frame that is no call raises."""
        try:
            message = client_frame_decoder.decode(payload)
        except msgspec.ValidationError as error:
            call_id, answer = explain_bad_call(payload, error)
            self.reply(call_id, answer)
            return
        if not isinstance(message, Call):
            raise msgspec.ValidationError("Hello comes once, at the start")
        self.carry_out(self, message)

    async def _shake_hands(self) -> list[bytes] | None:
        """Open the session; return the payloads that came with Hello, or None: there is no session."""
        with trio.move_on_after(HANDSHAKE_SECONDS) as scope:
            (first, *rest) = await self.stream.receive_payloads()
        if scope.cancelled_caught:
            self._send(0, ErrorReply(Errno.EPROTO, f"no Hello within {HANDSHAKE_SECONDS:g} s"))
            return None
        hello = client_frame_decoder.decode(first)
        if not isinstance(hello, Hello):
            raise msgspec.ValidationError("the first frame must be Hello")
        if hello.abi != ABI_VERSION:
            self._send(
                0, ErrorReply(Errno.EPROTO, f"this kernel speaks ABI {ABI_VERSION}; the client, {hello.abi}")
            )
            return None
        try:
            self._identify(hello.key)
        except SyscallError as error:
            log.info("refused", uid=self.uid, client=hello.client, error=error.message)
            self._send(0, error_reply(error))
            return None
        needs_key = self.system.tenants.needs_key
        welcome = Welcome(ABI_VERSION, VERSION, self.id, self.tenant, self.is_admin, needs_key)
        self._outbox.put(encode_frame(welcome))
        return rest

    def _identify(self, key: str) -> None:
        """Find out whom the session acts for. A key gives its tenant's rights, whoever presents it.

        Raises SyscallError: EPERM.
        """
        self._key_sha256 = hash_key(key) if key else ""
        self.tenant, self.is_admin = self._find_out()
        self.system.tenants.of(self.tenant)

    def _find_out(self) -> tuple[str, bool]:
        found = self.system.tenants.identify_user(self.uid)
        return self.system.tenants.identify_digest(self._key_sha256) if self._key_sha256 else found

    def identify_again(self) -> bool:
        """The tenants are others now: take the rights that the credentials give, or end the session.

        Returns:
            True: it ends, for it may not act any more for the tenant that it acted for.
        """
        if not self.tenant:
            return False  # there was no Hello yet
        try:
            tenant, is_admin = self._find_out()
            reason = f"it would act for {tenant} now"
        except SyscallError as error:
            tenant, is_admin, reason = "", False, error.message
        if tenant == self.tenant:
            self.is_admin = is_admin
            self.followers.check_rights(self.check_right)
            return False
        self._send(0, ErrorReply(Errno.EPERM, f"the session ends: {reason}"))
        self.end()
        return True

    # --- replies -----------------------------------------------------------------------------------------

    def park(self, call_id: int, undo: Undo) -> None:
        """A call will be answered later; `undo` takes it back if the session ends before.

        Raises SyscallError: EAGAIN, too many calls of this session wait already; it was taken back.
        """
        try:
            self.check_room()
        except SyscallError:
            undo()
            raise
        self._parked[call_id] = undo

    def check_room(self) -> None:
        """See to it that one more call may wait. Raises SyscallError: EAGAIN."""
        if len(self._parked) + len(self.followers) >= MAX_PARKED_CALLS:
            raise SyscallError(Errno.EAGAIN, f"{MAX_PARKED_CALLS} calls of this session wait already")

    def reply(self, call_id: int, answer: Answer) -> None:
        """Answer a call, now or later, once. Does nothing when the client is gone."""
        if self._is_closed:
            return
        self._parked.pop(call_id, None)
        self.tell_listener(call_id, answer)
        self._send(call_id, answer)

    def listen(self, call_id: int, listener: Callable[[Answer], None]) -> None:
        """Have an answer told to somebody else too, when it is given."""
        self._listeners[call_id] = listener

    def tell_listener(self, call_id: int, answer: Answer) -> None:
        """A call has its last answer."""
        if self._listeners and (listener := self._listeners.pop(call_id, None)) is not None:
            listener(answer)

    def _send(self, call_id: int, answer: Answer) -> None:
        try:
            frame = encode_frame(Reply(call_id, answer))
        except FrameTooLarge as error:
            frame = _encode_misfit(call_id, error)
        self._turn_bytes += len(frame)
        self._outbox.put(frame)

    def _gather_outputs(self) -> None:
        """Ask some followers who are due, if the client reads; their answers make one frame."""
        if self._is_gathering:
            return  # what is reaped below may end others of ours: their errors come behind
        if not self.followers.are_due or self._outbox.num_bytes >= MAX_GATHERED_BYTES:
            return
        self._is_gathering = True
        try:
            outputs = self.followers.take(FRAMES_AT_ONCE)
            self._hold_outputs(outputs)
            self.followers.reap_read()
            for call_id, output in outputs if self._listeners else ():
                if output.end is not None:
                    self.tell_listener(call_id, output)
        finally:
            self._is_gathering = False

    def _hold_outputs(self, outputs: list[tuple[int, Output]]) -> None:
        try:
            if len(outputs) > 1:
                self._outbox.hold(encode_frame(Outputs(tuple(outputs))))
            elif outputs:
                self._outbox.hold(encode_frame(Reply(*outputs[0])))
        except FrameTooLarge as error:
            if len(outputs) > 1:
                for each in outputs:
                    self._hold_outputs([each])
            else:
                self.followers.discard(outputs[0][0])
                self._outbox.hold(_encode_misfit(outputs[0][0], error))

    # --- rights and the end ------------------------------------------------------------------------------

    def process(self, pid: int) -> Process:
        """Look a process up on this client's behalf. Raises SyscallError: ESRCH, EPERM."""
        process = self.system.table.get(pid)
        self.check_right(process)
        return process

    def check_right(self, process: Process) -> None:
        """See to it that this client may touch a process. Raises SyscallError: EPERM."""
        if not self.is_admin and process.tenant != self.tenant:
            raise SyscallError(Errno.EPERM, f"process {process.pid} belongs to another tenant")

    def check_admin(self, what: str) -> None:
        """See to it that this client is an administrator. Raises SyscallError: EPERM, `what` for them."""
        if not self.is_admin:
            raise SyscallError(Errno.EPERM, f"{what} for administrators")

    def close(self) -> None:
        """Undo parked calls and end the processes that live with the session. Idempotent; synchronous."""
        self._is_closed = True
        self._outbox.close()
        for undo in self._parked.values():
            undo()
        self._parked.clear()
        self.followers.clear()
        self._listeners.clear()
        for process in self.system.table.of_session(self.id):
            if process.state is ProcState.ZOMBIE:
                self.system.reap(process)
                continue
            process.exit_callbacks.append(self.system.reap)
            self.system.core_of(process).mailbox.send_nowait(
                Kill(process, "its session ended", lambda error: None)
            )


def _encode_misfit(call_id: int, error: FrameTooLarge) -> bytes:
    return encode_frame(Reply(call_id, ErrorReply(Errno.EFAULT, f"the reply does not fit: {error}")))
