"""The client's half of the dialogue, without I/O: bytes in, answers out.

`Client` (Trio) and `SyncClient` (blocking) put a socket around it and add nothing to the protocol.
"""

from __future__ import annotations

from typing import TypedDict

from syscalls import device, embedding, image, memory, process, system, tenant
from syscalls.codec import (
    ABI_VERSION,
    DECODE_ERRORS,
    Answer,
    Call,
    ErrorReply,
    FrameSplitter,
    FrameTooLarge,
    Hello,
    Outputs,
    Reply,
    Request,
    Welcome,
    encode_frame,
    kernel_frame_decoder,
)
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling

REPLY_TYPES: dict[type[Request], type[Answer]] = {
    process.Spawn: process.Spawned,
    process.Fork: process.Spawned,
    process.Wait: process.Waited,
    process.Read: process.Output,
    process.Follow: process.Output,
    process.Grant: system.Done,
    process.Unfollow: system.Done,
    process.Write: system.Done,
    process.Kill: system.Done,
    process.Stop: system.Done,
    process.Cont: system.Done,
    process.Nice: system.Done,
    process.Ps: process.ProcessList,
    process.Stat: process.ProcessInfo,
    process.Why: process.WhyInfo,
    process.Trace: process.TraceList,
    embedding.Embed: process.Spawned,
    memory.Meminfo: memory.MemoryInfo,
    memory.Frames: memory.FrameMapList,
    memory.Maps: memory.MapList,
    memory.DropCache: memory.CacheDropped,
    image.Checkpoint: image.Checkpointed,
    image.Restore: process.Spawned,
    image.Images: image.ImageList,
    image.RemoveImage: system.Done,
    tenant.Shares: tenant.ShareList,
    device.Sleep: system.Done,
    device.Wake: system.Done,
    device.LoadModel: device.ModelLoaded,
    device.UnloadModel: system.Done,
    system.Devices: system.DeviceList,
    system.Models: system.ModelList,
    system.Events: system.EventList,
    system.Statistics: system.StatisticsInfo,
    system.Shutdown: system.Done,
    system.Ping: system.Done,
    tenant.Whoami: tenant.Identity,
    tenant.Tenants: tenant.TenantList,
    tenant.ReloadTenants: tenant.TenantsReloaded,
}


class ConnectionLost(ConnectionError):
    """The session is over, or never began: the kernel is gone, or one side broke the protocol."""


class SpawnOptions(TypedDict, total=False):
    """The optional fields of `Spawn`, as keyword arguments."""

    max_tokens: int | None
    sampling: Sampling
    model: str | None
    num_samples: int
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    min_tokens: int
    interactive: bool
    detached: bool
    auto_reap: bool
    nice: int
    label: str
    deadline_seconds: float | None
    cache_salt: str
    token_times: bool
    pin_seconds: float
    user: str


class EmbedOptions(TypedDict, total=False):
    """The optional fields of `Embed`, as keyword arguments."""

    pooling: str | None
    normalise: bool
    model: str | None
    nice: int
    label: str
    deadline_seconds: float | None
    cache_salt: str
    pin_seconds: float
    user: str


class ClientSession:
    """One session's protocol state: first the handshake, then calls by id and their answers in any order."""

    def __init__(self) -> None:
        self.welcome: Welcome | None = None  # set once the kernel has opened the session
        self._splitter = FrameSplitter()
        self._next_id = 1  # 0 is the session's own
        self._ending: Exception | None = None  # told when the answers before it are

    def encode_hello(self, name: str, key: str = "") -> bytes:
        """Encode the frame that opens the session."""
        return encode_frame(Hello(ABI_VERSION, name, key))

    def encode_call(self, body: Request) -> tuple[int, bytes]:
        """Encode one call. Returns its id and its frame. Raises SyscallError EINVAL when it is too large."""
        call_id = self._next_id
        try:
            frame = encode_frame(Call(call_id, body))
        except FrameTooLarge as error:
            raise SyscallError(Errno.EINVAL, str(error)) from None
        self._next_id += 1
        return call_id, frame

    def receive(self, data: bytes | bytearray) -> list[tuple[int, Answer]]:
        """Take received bytes, and return the answers that are now whole.

        Empty `data` is the end of the stream, and always raises. Answers that came before the session's end
        are returned first; the next call raises.

        Raises:
            SyscallError: the kernel refused the handshake; EPROTO when the ABI versions differ, EPERM when
                nobody has the key.
            ConnectionLost: the session is over, with the kernel's reason when it gave one.
        """
        if self._ending is not None:
            raise self._ending
        if not data:
            cut = self._splitter.num_pending_bytes
            detail = f" inside a frame, {cut} bytes into it" if cut else ""
            raise ConnectionLost(f"the kernel closed the connection{detail}")
        try:
            frames = [kernel_frame_decoder.decode(payload) for payload in self._splitter.feed(data)]
        except (FrameTooLarge, *DECODE_ERRORS) as error:
            raise ConnectionLost(f"the kernel sent a frame that cannot be read: {error}") from error
        answers: list[tuple[int, Answer]] = []
        for frame in frames:
            if isinstance(frame, Reply) and 0 < frame.id < self._next_id and self.welcome is not None:
                answers.append((frame.id, frame.body))  # the ordinary case first: one comes for each token
            elif isinstance(frame, Outputs):
                self._check_ids(frame)
                answers += frame.outputs
            elif isinstance(frame, Welcome):
                self._open(frame)
            elif frame.id == 0:
                self._ending = self._explain_close(frame.body)
                if not answers:
                    raise self._ending
                break
            else:
                raise ConnectionLost(f"the kernel answered call {frame.id}, which was never made")
        return answers

    def _check_ids(self, frame: Outputs) -> None:
        if self.welcome is None:
            raise ConnectionLost("the kernel sent outputs before it opened the session")
        for call_id, _ in frame.outputs:
            if not 0 < call_id < self._next_id:
                raise ConnectionLost(f"the kernel answered call {call_id}, which was never made")

    def _open(self, welcome: Welcome) -> None:
        if self.welcome is not None:
            raise ConnectionLost("the kernel opened the session twice")
        if welcome.abi != ABI_VERSION:
            raise SyscallError(
                Errno.EPROTO,
                f"the kernel (version {welcome.version}) speaks ABI {welcome.abi}, "
                f"this client ABI {ABI_VERSION}",
            )
        self.welcome = welcome

    def _explain_close(self, body: Answer) -> SyscallError | ConnectionLost:
        if not isinstance(body, ErrorReply):
            return ConnectionLost(f"the kernel closed the session with an unexpected {type(body).__name__}")
        if self.welcome is None:
            return body.as_error()
        return ConnectionLost(f"the kernel closed the session: {body.errno.value}: {body.message}")


def explain_wrong_answer(body: Request, answer: Answer) -> str:
    """Return the sentence for a kernel that answers a call with a struct of another call."""
    expected = REPLY_TYPES[type(body)]
    return f"{type(body).__name__} was answered by {type(answer).__name__}, not by {expected.__name__}"
