"""The driver interface: what the kernel and a device's driver say to each other.

A driver is an operating-system process that owns one device (the simulated one lives in the kernel's own
process). Both sides speak the frames below, in order, over one socket: a little-endian u32 length, then
msgpack of one tagged struct. The driver carries messages out strictly in the order they were sent; that
order is what makes it safe to reuse a frame as soon as the kernel has freed it: the edit that hands it to
its next owner rides on a later step than the last one that read it.

Vocabulary: a *space* (asid) is the device side of a process's address space. Virtual page `vpn` of a space
holds the tokens [vpn * tokens_per_page, (vpn + 1) * tokens_per_page) for all layers, and has one frame in
each segment of the KV format.
"""

from __future__ import annotations

import struct
from typing import Any, Literal, NewType, Protocol

import msgspec

from llmos.cost import Profile
from syscalls.embedding import EmbeddingInfo, Pooling
from syscalls.sampling import CUTS, Dry, Sampling, TokenLogprobs

__all__ = [
    "CUTS",
    "DEFAULT_PAGE_TOKENS",
    "DRIVER_ABI",
    "LENGTH",
    "MAX_MESSAGE_BYTES",
    "Asid",
    "Bind",
    "Compile",
    "Compiled",
    "Copy",
    "CopyDone",
    "CopyFault",
    "CopyPage",
    "DriverLink",
    "DriverLost",
    "Dry",
    "Edit",
    "EmbeddingInfo",
    "Failed",
    "Forget",
    "FromDriver",
    "Hello",
    "KVFormat",
    "Load",
    "Loaded",
    "Map",
    "MapWork",
    "ModelInfo",
    "Pfn",
    "Place",
    "Pooling",
    "Progress",
    "Quality",
    "Release",
    "Reserve",
    "Row",
    "RowFault",
    "Sampling",
    "Segment",
    "Step",
    "StepDone",
    "StopDriver",
    "Tier",
    "ToDriver",
    "TokenLogprobs",
    "Vpn",
    "choose_kv_format",
    "encode_message",
    "from_driver_decoder",
    "to_driver_decoder",
]

DRIVER_ABI = 5
MAX_MESSAGE_BYTES = 64 << 20
LENGTH = struct.Struct("<I")

Asid = NewType("Asid", int)  # address-space identifier on one device, 0 <= asid < max_spaces
Vpn = NewType("Vpn", int)  # virtual page number (logical KV block) within a space
Pfn = NewType("Pfn", int)  # physical frame number (physical KV block) on one device


class DriverLost(Exception):
    """The driver's end of the link is gone: it exited, was killed, or was hung and has been killed."""


# --- memory layout ---------------------------------------------------------------------------------------


class Segment(msgspec.Struct, frozen=True):
    """One part of every address space, as .text and .data are parts of a program."""

    name: str  # "K", "V"
    bytes_per_token: int  # for all layers


class KVFormat(msgspec.Struct, frozen=True):
    """A number format for keys and values: which segments exist, and how tokens fill their frames."""

    name: str  # "fp32", "fp16", "bf16"
    segments: tuple[Segment, ...]
    frame_bytes: int
    tokens_per_page: int

    def num_pages(self, num_tokens: int) -> int:
        """Virtual pages needed to hold `num_tokens`."""
        return -(-num_tokens // self.tokens_per_page)

    def capacity(self, num_frames: int) -> int:
        """Tokens that so many frames hold, all in one space."""
        return num_frames // self.frames_per_page * self.tokens_per_page

    @property
    def page_bytes(self) -> int:
        """Of one virtual page, in all segments."""
        return self.frames_per_page * self.frame_bytes

    @property
    def frames_per_page(self) -> int:
        """Frames behind one virtual page: one in each segment."""
        return len(self.segments)


# A kernel reads a page head by head: 128 tokens make pieces that are long enough for two threads to read most
# of what memory gives (docs/log.md), and half a page of a process is not much memory.
DEFAULT_PAGE_TOKENS = 128


def choose_kv_format(name: str, segments: tuple[Segment, ...], frame_bytes: int | None) -> KVFormat:
    """Fit tokens to frames.

    Without `frame_bytes`, takes the smallest power of two between 64 KiB and 2 MiB that holds
    DEFAULT_PAGE_TOKENS of the widest segment. Raises ValueError when a frame cannot hold one token, naming
    both sizes.
    """
    widest = max(segment.bytes_per_token for segment in segments)
    if frame_bytes is None:
        frame_bytes = 64 << 10
        while frame_bytes < DEFAULT_PAGE_TOKENS * widest and frame_bytes < 2 << 20:
            frame_bytes *= 2
    tokens = frame_bytes // widest
    if tokens < 1:
        raise ValueError(f"a frame of {frame_bytes} bytes cannot hold one token of {widest} bytes")
    if tokens > 16:
        tokens -= tokens % 16
    return KVFormat(name, segments, frame_bytes, tokens)


# --- page-table edits: they ride on the step that needs them, and take effect before it ------------------


class Reserve(msgspec.Struct, frozen=True, tag="reserve", array_like=True):
    """Open space `asid`; nothing is mapped yet."""

    asid: int


class Release(msgspec.Struct, frozen=True, tag="release", array_like=True):
    """Close space `asid`; its mappings, and what `Bind` said of it, end."""

    asid: int


class Map(msgspec.Struct, frozen=True, tag="map", array_like=True):
    """Back page `vpn` of a space by `pfns`, one frame for each segment; replaces what was mapped there.

    A map ahead is for a page that a later step will probably reach: the driver may carry it out beside its
    computation, and finishes it before a row that reaches the page. The kernel may give its frames to others
    without a word; before a row reaches the page, it is then mapped anew.
    """

    asid: int
    vpn: int
    pfns: tuple[int, ...]
    is_ahead: bool = False


class CopyPage(msgspec.Struct, frozen=True, tag="copy_page", array_like=True):
    """Copy frames, segment by segment: the copy of copy-on-write."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


class Bind(msgspec.Struct, frozen=True, tag="bind", array_like=True):
    """Set (or set again) how a space samples. Sent before its first sampling row.

    `tokens` is the whole history that is known when the edit is made, and `num_prompt_tokens` how much of it
    was prompt: the sampler's counts start from there and advance by what it samples and by the input tokens
    of later rows at positions >= len(tokens). While fewer than `min_tokens` tokens were sampled since
    `num_prompt_tokens`, the ids in `stop_token_ids` are never sampled. `mu` is what mirostat has come to: a
    process's own, from the last `StepDone` whose token the kernel has taken; None: nothing was sampled yet.

    With `pooling` the space samples nothing, and no history is told: its row with `pool` yields a vector. A
    mean goes on from `total`, the sum over the first `num_summed` positions as a `StepDone` told it: rows may
    compute those again, and then follow each other.

    The output follows `grammar`, the id of one that the device has compiled, and is where `tokens` behind the
    prompt have brought it; `sampling.grammar`, its text, is None here.
    """

    asid: int
    sampling: Sampling
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    mu: float | None = None
    pooling: Pooling | None = None
    num_summed: int = 0
    total: bytes = b""
    grammar: int | None = None


Edit = Reserve | Release | Map | CopyPage | Bind


# --- the dialogue ----------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load a model and set up memory. The driver answers `Progress`*, then `Loaded` or `Failed`."""

    path: str  # a Hugging Face folder or a GGUF file
    name: str
    weights: str  # "fp32", "fp16", "bf16", "w8a8", "w4a8", or "auto": the fastest that is close enough
    kv: str  # of keys and values: "fp32", "fp16", "bf16", "int8", or "auto": what goes with the weights
    pool_bytes: int | None  # physical memory for frames; None: the driver chooses by what the device has
    frame_bytes: int | None
    max_spaces: int
    max_model_len: int | None  # None: what the checkpoint says
    max_step_tokens: int  # most tokens that one step will carry
    max_divergence: float = 0.0  # what "auto" takes for close enough: nats of KL divergence per token
    quality_text: str | None = None  # a UTF-8 file to measure that on; None: the driver's own
    host_bytes: int = 0  # of the host area, the tier below the device; 0: there is none
    disk_bytes: int = 0  # most bytes of the swap file, the tier below that; 0: there is none
    disk_folder: str | None = None  # where the swap file lies; None: the system's folder for temporary files
    copy_piece_bytes: int | None = None  # copy in pieces of so many bytes, for comparison; None: whole runs


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a load is."""

    done_bytes: int
    total_bytes: int
    what: str


class ModelInfo(msgspec.Struct, frozen=True):
    """A loaded model, as the kernel needs to know it."""

    name: str
    path: str  # a folder with its tokenizer and chat template
    architecture: str
    hash: str  # hex digest over config and weights
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # of the weights
    num_parameters: int
    kernels: str  # what computes; equal bits are promised between equal ones
    weight_bytes: int = 0  # in the device's memory, or mapped into it; 0: not known
    generates: bool = True  # text; an encoder only makes vectors
    embedding: EmbeddingInfo | None = None  # None: it makes no vectors


class Quality(msgspec.Struct, frozen=True):
    """What a number format costs, against the model as it was published, over the tokens of a text."""

    weights: str
    kv: str
    kl_divergence: float  # nats per token: mean over positions of sum p (log p - log q)
    top1_agreement: float  # share of positions where the most likely token is the same
    num_tokens: int
    text: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The model can serve."""

    model: ModelInfo
    kv: KVFormat
    num_frames: int
    seconds: float
    quality: Quality | None = None  # of a quantised format
    profile: Profile | None = None  # None: how long steps take is not known
    num_host_slots: int = 0  # of frame_bytes each
    num_disk_slots: int = 0
    takes_grammars: bool = False  # spaces may be bound with a grammar


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The load was refused; nothing stays half-loaded. `message` names the file, tensor or limit."""

    message: str


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a driver."""

    abi: int
    kind: str  # "cpu", "cuda", "sim"
    name: str  # "cpu:0"
    description: str
    memory_bytes: int
    num_threads: int
    os_pid: int | None


# The collector need not look at rows: they are made by the thousand, and never in a cycle.
class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run tokens of one space at positions start, start + 1, …

    Empty `tokens` means one token: the one that this space sampled last, perhaps in a step that is still
    in flight. With `sample`, the row's last position yields the space's next token. A step has at most one
    row for a space.

    `targets` are tokens that are known to follow the row's first positions, one each: how likely they were is
    told, with as many alternatives as the space's `prompt_logprobs`. Nothing is sampled there.

    With `pool`, the row's last position is the input's last: the space's vector is told.
    """

    asid: int
    start: int
    tokens: tuple[int, ...]
    sample: bool
    targets: tuple[int, ...] = ()
    pool: bool = False

    @property
    def num_tokens(self) -> int:
        """Positions that this row computes."""
        return len(self.tokens) or 1


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Apply edits in order, then run rows as one batch."""

    id: int
    edits: tuple[Edit, ...]
    rows: tuple[Row, ...]


class RowFault(msgspec.Struct, frozen=True, array_like=True):
    """One row failed (say, logits that are not finite); the others are good."""

    row: int
    message: str


class MapWork(msgspec.Struct, frozen=True, array_like=True):
    """What a driver did to map pages: how many, and for how long."""

    num_sync: int = 0  # mapped by system calls that a step waited for
    num_ahead: int = 0  # mapped beside steps
    num_reused: int = 0  # were mapped to these frames already: no system call
    num_late: int = 0  # of those ahead, not done when a row or another edit needed them
    num_unmapped: int = 0
    wait_seconds: float = 0.0  # of steps: for system calls of their own, and for those that were late
    beside_seconds: float = 0.0  # of system calls beside steps, told when somebody needs what they mapped

    def plus(self, other: MapWork) -> MapWork:
        """Both together."""
        return MapWork(*(a + b for a, b in zip(self._fields(), other._fields(), strict=True)))

    def minus(self, other: MapWork) -> MapWork:
        """What came after `other`."""
        return MapWork(*(a - b for a, b in zip(self._fields(), other._fields(), strict=True)))

    def _fields(self) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self)


class StepDone(msgspec.Struct, frozen=True, tag="step_done"):
    """A step's results, in the order of its rows.

    `tokens` has one entry for each row: the sampled token, or None where none was asked for or the row is
    in `faults`. `logprobs` is empty when no sampling row wanted them, else aligned with rows.
    """

    id: int
    tokens: tuple[int | None, ...]
    seconds: float  # device time
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    faults: tuple[RowFault, ...] = ()
    mus: tuple[float | None, ...] = ()  # of mirostat, after each row's token; empty when no row has one
    scores: tuple[tuple[TokenLogprobs, ...], ...] = ()  # of each row's targets; empty when no row has any
    ended_at: float | None = None  # on the kernel's clock, of a driver that has it; None: as it arrives
    # Numbers of 32 bits, little-endian: of a row with `pool` the vector, of another of a mean the sum up to
    # its end; empty when no row has any.
    vectors: tuple[bytes | None, ...] = ()
    maps: MapWork | None = None  # done since the answer before this one; None: nothing, or it does not say


# --- copies between tiers ----------------------------------------------------------------------------------

Tier = Literal["device", "host", "disk", "file"]


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Slots of one frame each, on one tier.

    On the device a slot is a frame; slot n of a file begins at byte n * frame_bytes of `path`, which is made
    if it does not exist.
    """

    tier: Tier
    slots: tuple[int, ...]
    path: str = ""  # of a "file"


class Copy(msgspec.Struct, frozen=True, tag="copy"):
    """Copy slots: source.slots[i] to target.slots[i], as they are when everything sent before was done.

    With `after` it may begin as soon as step `after` is done (0: at once), before steps that were sent before
    it: those touch none of its frames. A driver need not make use of that.

    It runs beside the steps that follow, and the driver answers `CopyDone` when it has ended; other answers
    may come before it, and copies may overtake each other. Until then the kernel gives no source slot to
    anybody who writes, and no target slot to anybody at all.

    Args:
        checksums: CRC-32C of each slot as it should be; a slot that differs is a fault. Empty: not checked.
    """

    id: int
    source: Place
    target: Place
    checksums: tuple[int, ...] = ()
    after: int | None = None


class CopyFault(msgspec.Struct, frozen=True, array_like=True):
    """One slot was not copied; the target's bytes mean nothing."""

    index: int  # into the slots of the copy
    message: str  # names the tier, the slot and what is wrong


class CopyDone(msgspec.Struct, frozen=True, tag="copy_done"):
    """A copy has ended. Slots that are not in `faults` are whole."""

    id: int
    seconds: float  # from its start to its end
    checksums: tuple[int, ...] = ()  # CRC-32C of each slot, when the target is on disk or a file
    faults: tuple[CopyFault, ...] = ()


# --- grammars ----------------------------------------------------------------------------------------------


class Compile(msgspec.Struct, frozen=True, tag="compile"):
    """Make a grammar ready for spaces to be bound with.

    It is done beside the steps that follow, and perhaps begun before steps that were sent earlier. The driver
    answers `Compiled`, in whatever order. The grammar stays until `Forget`, or the next `Load`.
    """

    id: int  # never used before on this line
    source: str  # Lark as llguidance reads it


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """A grammar is ready, or `problem` says why it never will be: then there is nothing to forget."""

    id: int
    seconds: float  # since the driver took it
    problem: str | None = None


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Drop a compiled grammar. Spaces that are bound with it go on; no more will be."""

    id: int


class StopDriver(msgspec.Struct, frozen=True, tag="stop"):
    """Finish what was sent before, then exit."""


ToDriver = Load | Step | Copy | Compile | Forget | StopDriver
FromDriver = Hello | Progress | Loaded | Failed | StepDone | CopyDone | Compiled

to_driver_decoder = msgspec.msgpack.Decoder(ToDriver)
from_driver_decoder = msgspec.msgpack.Decoder(FromDriver)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: ToDriver | FromDriver) -> bytes:
    """Encode one message with its length prefix."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload


class DriverLink(Protocol):
    """The kernel's end of the line to a driver: a socket to a process, or a queue to the simulator."""

    async def send(self, message: ToDriver) -> None:
        """Send one message. A checkpoint. Raises DriverLost."""

    async def receive(self) -> FromDriver:
        """Wait for the next message. A checkpoint. Raises DriverLost."""

    def kill(self) -> None:
        """End a driver that hangs, by force. Whoever receives on this link then sees DriverLost."""

    async def aclose(self) -> None:
        """Stop the driver: politely, then after a grace period by force. Idempotent."""
