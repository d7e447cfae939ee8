"""The server side of the protocol over a real Unix socket, for testing clients: a script answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import attrs
import msgspec
import trio

from syscalls.codec import (
    ABI_VERSION,
    Answer,
    Call,
    ErrorReply,
    FrameSplitter,
    Hello,
    Outputs,
    Reply,
    Request,
    Welcome,
    client_frame_decoder,
    encode_frame,
    error_reply,
)
from syscalls.errno import Errno, SyscallError
from syscalls.process import Follow, Grant, Output, Read, Unfollow, Usage
from syscalls.system import Done


@attrs.define(eq=False)
class Following:
    """A `Follow` that has not had its last answer."""

    until: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    granted: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class FakeSession:
    """One accepted connection."""

    stream: trio.SocketStream
    hello: Hello | None = None
    tenant: str = "tester"
    calls: list[Call] = attrs.field(factory=list)
    received_sizes: list[int] = attrs.field(factory=list)  # bytes of each receive after the hello
    following: dict[int, Following] = attrs.field(factory=dict)  # by the id of the call
    ended: trio.Event = attrs.field(factory=trio.Event)
    _send_lock: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, *frames: Welcome | Reply | Outputs) -> None:
        """Send frames as one write."""
        async with self._send_lock:
            await self.stream.send_all(b"".join(map(encode_frame, frames)))


Script = Callable[[FakeSession, Request], Awaitable[Answer]]


@attrs.define(eq=False)
class FakeKernel:
    """Accepts clients, and answers each call, in a task of its own, with what `script` returns or raises."""

    script: Script
    abi: int = ABI_VERSION
    keys: dict[str, str] = attrs.field(factory=dict)  # tenants by key; others than administrators need one
    greeting: Callable[[FakeSession], Awaitable[None]] | None = None  # instead of the welcome
    sessions: list[FakeSession] = attrs.field(factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Carry one session to its end."""
        session = FakeSession(stream)
        self.sessions.append(session)
        splitter = FrameSplitter()
        async with stream, trio.open_nursery() as nursery:
            try:
                while data := await stream.receive_some(1 << 20):
                    if session.hello is not None:
                        session.received_sizes.append(len(data))
                    for payload in splitter.feed(data):
                        frame = client_frame_decoder.decode(payload)
                        if isinstance(frame, Hello):
                            session.hello = frame
                            if self.greeting is not None:
                                await self.greeting(session)
                            else:
                                await self._welcome(session, frame)
                        else:
                            session.calls.append(frame)
                            nursery.start_soon(self._answer, session, frame)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            session.ended.set()
            nursery.cancel_scope.cancel()

    async def _welcome(self, session: FakeSession, hello: Hello) -> None:
        if hello.key and hello.key not in self.keys:
            await session.send(Reply(0, ErrorReply(Errno.EPERM, "no tenant has this key")))
            return
        session.tenant = self.keys.get(hello.key, session.tenant)
        await session.send(Welcome(self.abi, "9.9", 1, session.tenant, not hello.key, bool(self.keys)))

    async def _answer(self, session: FakeSession, call: Call) -> None:
        try:
            match call.body:
                case Follow():
                    answer: Answer | None = await self._follow(session, call.id, call.body)
                case Grant(of, until):
                    answer = self._grant(session, of, until)
                case Unfollow(of):
                    answer = self._grant(session, of, 0)
                    session.following[of].scope.cancel()
                case body:
                    answer = await self.script(session, body)
        except SyscallError as error:
            answer = error_reply(error)
        if answer is not None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await session.send(Reply(call.id, answer))

    async def _follow(self, session: FakeSession, call_id: int, body: Follow) -> Answer | None:
        """Have the script answer reads, one after the other, as far as the credit goes; return the last."""
        following = session.following[call_id] = Following(body.until)
        offset = body.offset
        ended: Output | None = None  # was cut; the script may have reaped the process with its end
        try:
            with following.scope:
                while True:
                    if ended is None:
                        output = await self.script(session, Read(body.pid, offset))
                        if not isinstance(output, Output):
                            return output
                    else:
                        output = drop_tokens(ended, offset - ended.offset)
                    if output.end is not None:
                        ended = output
                    while not (room := following.until - offset) and output.tokens:
                        following.granted = trio.Event()
                        await following.granted.wait()
                    if len(output.tokens) > room:
                        output = cut_output(output, room)
                    if output.end is not None:
                        return output
                    offset += len(output.tokens)
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        with trio.CancelScope(shield=True):  # half a frame would end the session
                            await session.send(Outputs(((call_id, output),)))
        finally:
            del session.following[call_id]
        return None

    def _grant(self, session: FakeSession, call_id: int, until: int) -> Done:
        if call_id not in session.following:
            raise SyscallError(Errno.ENOENT, f"call {call_id} does not follow a process")
        following = session.following[call_id]
        following.until = max(following.until, until)
        following.granted.set()
        return Done()


def cut_output(output: Output, num_tokens: int) -> Output:
    """The first tokens of an output, which is then not the last."""
    return msgspec.structs.replace(
        output, tokens=output.tokens[:num_tokens], logprobs=output.logprobs[:num_tokens],
        times=output.times[:num_tokens], end=None, usage=Usage(), vector=b"",
    )  # fmt: skip


def drop_tokens(output: Output, num_tokens: int) -> Output:
    """What is left of an output without its first tokens."""
    return msgspec.structs.replace(
        output, offset=output.offset + num_tokens, tokens=output.tokens[num_tokens:],
        logprobs=output.logprobs[num_tokens:], times=output.times[num_tokens:],
    )  # fmt: skip


@asynccontextmanager
async def open_fake_kernel(kernel: FakeKernel, path: Path) -> AsyncIterator[FakeKernel]:
    """Serve `kernel` on a Unix socket at `path` for as long as the block runs."""
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as listening:
        await listening.bind(str(path))
        listening.listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, kernel.serve, [trio.SocketListener(listening)])
            yield kernel
            nursery.cancel_scope.cancel()
