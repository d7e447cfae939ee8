"""Frames on the syscall socket: a little-endian u32 length, then msgpack of one tagged struct.

The dialogue opens with `Hello` → `Welcome`; after that the client sends `Call`s with ids of its choosing and
the kernel answers each with one `Reply`, in any order; only a `Follow` is answered again and again, by
`Reply` and `Outputs`. A frame that does not decode ends the session, and only it, after an `ErrorReply` that
says why.
"""

from __future__ import annotations

import struct
from typing import get_args

import msgspec

from syscalls import device, embedding, image, memory, process, system, tenant
from syscalls.errno import Errno, SyscallError
from syscalls.process import Output
from syscalls.tenant import Exceeded

ABI_VERSION = 1
MAX_FRAME_BYTES = 16 << 20
LENGTH = struct.Struct("<I")

Request = (
    process.Spawn | process.Fork | process.Wait | process.Read | process.Follow | process.Grant
    | process.Unfollow | process.Write | process.Kill | process.Stop | process.Cont | process.Nice
    | process.Ps | process.Stat | process.Why | process.Trace
    | embedding.Embed
    | image.Checkpoint | image.Restore | image.Images | image.RemoveImage
    | memory.Meminfo | memory.Maps | memory.Frames | memory.DropCache
    | tenant.Whoami | tenant.Tenants | tenant.ReloadTenants | tenant.Shares
    | device.Sleep | device.Wake | device.LoadModel | device.UnloadModel
    | system.Devices | system.Models | system.Events | system.Statistics | system.Shutdown | system.Ping
)  # fmt: skip


class ErrorReply(msgspec.Struct, frozen=True, tag="error"):
    """A call's failure."""

    errno: Errno
    message: str
    exceeded: Exceeded | None = None  # with EDQUOT
    parameter: str | None = None  # the field of the call that is at fault, where it is one

    def as_error(self) -> SyscallError:
        """The exception that a client raises for it."""
        return SyscallError(self.errno, self.message, self.exceeded, self.parameter)


Answer = (
    process.Spawned | process.Waited | process.Output | process.ProcessList | process.ProcessInfo
    | process.WhyInfo | process.TraceList
    | image.Checkpointed | image.ImageList
    | memory.MemoryInfo | memory.MapList | memory.FrameMapList | memory.CacheDropped
    | tenant.Identity | tenant.TenantList | tenant.TenantsReloaded | tenant.ShareList
    | device.ModelLoaded
    | system.DeviceList | system.ModelList | system.EventList | system.StatisticsInfo | system.Done
    | ErrorReply
)  # fmt: skip


class Hello(msgspec.Struct, frozen=True, tag="hello", array_like=True):
    """First frame of a client."""

    abi: int
    client: str = ""  # shown in logs
    key: str = ""  # of the tenant to act for; empty: whoever the user at this end of the socket is


class Welcome(msgspec.Struct, frozen=True, tag="welcome", array_like=True):
    """First frame of the kernel: the session is open."""

    abi: int
    version: str
    session: int
    tenant: str
    admin: bool
    needs_key: bool = False  # tenants have keys: who opens a session for others must ask them for theirs


class Call(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """One request; `id` comes back in the reply."""

    id: int
    body: Request


class CallEnvelope(msgspec.Struct, frozen=True, tag="call", array_like=True):
    """A call whose body is not looked at: enough to answer one that does not decode."""

    id: int
    body: msgspec.Raw


class Reply(msgspec.Struct, frozen=True, tag="reply", array_like=True):
    """One answer. id 0 is the session's own: the last frame before the kernel closes it."""

    id: int
    body: Answer


class Outputs(msgspec.Struct, frozen=True, tag="outputs", array_like=True):
    """Answers to several `Follow` calls, such as those that a step of the device has news for."""

    outputs: tuple[tuple[int, Output], ...]  # each with the id of its call; of one call in order


_encoder = msgspec.msgpack.Encoder()
client_frame_decoder = msgspec.msgpack.Decoder(Hello | Call)
kernel_frame_decoder = msgspec.msgpack.Decoder(Welcome | Reply | Outputs)

_envelope_decoder = msgspec.msgpack.Decoder(CallEnvelope)
_tag_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
REQUEST_TAGS = frozenset(request.__struct_config__.tag for request in get_args(Request))

# What the decoders raise for a hostile payload: the last two for a string that is not UTF-8, and for arrays
# nested too deep in a field that would have been skipped.
DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class FrameTooLarge(ValueError):
    """A length prefix over MAX_FRAME_BYTES: found before anything is allocated."""


def encode_frame(message: Hello | Welcome | Call | Reply | Outputs) -> bytes:
    """Encode one frame, length prefix included. Raises FrameTooLarge."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"frame of {len(payload)} bytes; the limit is {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(payload)) + payload


def error_reply(error: SyscallError) -> ErrorReply:
    """Make the answer of a call that failed."""
    return ErrorReply(error.errno, error.message, error.exceeded, error.parameter)


def explain_bad_call(payload: bytes, error: msgspec.ValidationError) -> tuple[int, ErrorReply]:
    """Make the answer to a call whose envelope is good and whose body is not: its id, and EINVAL or ENOSYS.

    Raises DECODE_ERRORS when the envelope is not good either.
    """
    envelope = _envelope_decoder.decode(payload)
    tag = msgspec.msgpack.decode(_tag_decoder.decode(envelope.body).get("type", msgspec.Raw(b"\xc0")))
    if tag in REQUEST_TAGS:
        return envelope.id, ErrorReply(Errno.EINVAL, str(error))
    return envelope.id, ErrorReply(Errno.ENOSYS, f"the kernel has no call {tag!r}")


class FrameSplitter:
    """Cuts a byte stream into payloads, without I/O. Feed it what was received; iterate what is whole."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._limit = limit

    @property
    def num_pending_bytes(self) -> int:
        """Bytes of an unfinished frame: not 0 at the end of the stream means that it was truncated."""
        return len(self._buffer)

    @property
    def is_blocked(self) -> bool:
        """True when what comes next is a frame over the limit: `feed` raises, whatever it is fed."""
        return len(self._buffer) >= LENGTH.size and LENGTH.unpack_from(self._buffer)[0] > self._limit

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Add received bytes and return the payloads that are now whole.

        Raises FrameTooLarge, when nothing whole stands before the frame that is: what does is returned first.
        """
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._buffer, start)
            if size > self._limit:
                if payloads:
                    break
                raise FrameTooLarge(f"frame of {size} bytes; the limit is {self._limit}")
            end = start + LENGTH.size + size
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + LENGTH.size : end]))
            start = end
        if start:
            del self._buffer[:start]
        return payloads
