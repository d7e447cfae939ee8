"""The process image: a whole process as a file (a saved request with its KV cache, in serving terms).

    frames                                   description            footer
    page 0: one slot for each segment,       msgpack of `Image`     magic, version, length and CRC-32 of the
    page 1, …                                                       description, CRC-32 of the footer itself

The driver writes the frames, each at slot * frame_bytes from the file's beginning, so that what lies behind
them needs no place of its own in a slot. The kernel writes the rest when the frames are there. Frames carry a
CRC-32C each, in the description: the driver checks them when it reads them back, and a page that is not what
it was is computed again. Everything else is checked here, before anything is made of it.

Bits are promised only between equal platforms, so an image of another one is refused by the field's name.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from typing import BinaryIO, TypeVar

import msgspec

from llmos.device import DRIVER_ABI, KVFormat, Loaded
from llmos.errors import LlmosError
from llmos.proc.pcb import Process
from syscalls.embedding import Pooling
from syscalls.process import MAX_NICE, MAX_USER_LENGTH, MIN_NICE, ExitStatus
from syscalls.sampling import Sampling, TokenLogprobs

FORMAT_VERSION = 1
MAGIC = b"llmosimg"
FOOTER = struct.Struct("<8sIQII")  # magic, version, bytes and CRC-32 of the description, CRC-32 of the above
MAX_DESCRIPTION_BYTES = 1 << 30
NO_ADAPTER = ""


class DamagedImage(LlmosError):
    """A file is no image, or not what was written; the message says what is wrong, and begins with a verb."""


class UnknownVersion(LlmosError):
    """An image of a format that this system does not read; the message begins with a verb."""


class Platform(msgspec.Struct, frozen=True):
    """What must be equal for a process to go on with the same bits."""

    driver_abi: int  # how frames are laid out
    model_hash: str  # over config and weights; the tokenizer may differ, a process deals in token ids
    adapter_hash: str  # of a LoRA adapter; empty: none
    weights: str  # their number format
    kernels: str
    kv: KVFormat
    vocab_size: int
    max_model_len: int


def platform_of(loaded: Loaded) -> Platform:
    """What a device with a loaded model offers."""
    model = loaded.model
    return Platform(
        driver_abi=DRIVER_ABI,
        model_hash=model.hash,
        adapter_hash=NO_ADAPTER,
        weights=model.dtype,
        kernels=model.kernels,
        kv=loaded.kv,
        vocab_size=model.vocab_size,
        max_model_len=model.max_model_len,
    )


def explain_mismatch(image: Platform, system: Platform) -> str | None:
    """Name the first field that differs, with both values: "was made with …, this system has …"; or None."""
    for field in Platform.__struct_fields__:
        made, has = getattr(image, field), getattr(system, field)
        if made != has:
            name = field.replace("_", " ")
            return f"was made with {name} {_brief(made)}, this system has {_brief(has)}"
    return None


def _brief(value: object) -> str:
    if isinstance(value, KVFormat):
        segments = ", ".join(f"{part.name} {part.bytes_per_token}" for part in value.segments)
        return f"{value.name} ({segments} bytes a token, {value.tokens_per_page} in {value.frame_bytes})"
    return str(value) or "none"


class SavedProcess(msgspec.Struct, frozen=True):
    """The part of a process that is not memory. Times are not in it: the clock of its system is gone."""

    tokens: list[int]  # prompt and output, all turns
    output: list[int]
    logprobs: list[TokenLogprobs]
    turn_start: int
    max_tokens: int
    sampling: Sampling
    stop_tokens: list[int]
    min_tokens: int
    interactive: bool
    nice: int
    deadline_seconds: float | None
    status: ExitStatus | None  # of an interactive one whose turn is over
    num_prompt_tokens: int
    num_uncharged: int
    num_saved_tokens: int  # whose keys and values are in the file
    checksums: list[tuple[int, ...]]  # CRC-32C of each page's slots, as the driver counts them
    mu: float | None = None  # of mirostat
    num_to_score: int = 0
    cache_salt: str = ""
    prompt_logprobs: list[TokenLogprobs] = []
    pooling: Pooling | None = None
    num_summed: int = 0
    total: bytes = b""
    pin_seconds: float = 0.0
    user: str = ""  # as is every field with a default, not in images of earlier versions


class Image(msgspec.Struct, frozen=True):
    """The description of an image."""

    platform: Platform
    model: str  # its name
    label: str
    saved_at: float  # seconds since the epoch
    process: SavedProcess

    @property
    def num_frame_bytes(self) -> int:
        """Where the description begins."""
        kv = self.platform.kv
        return kv.num_pages(self.process.num_saved_tokens) * kv.page_bytes


class Counts(msgspec.Struct, frozen=True):
    """The counters of a SavedProcess that a listing shows."""

    num_prompt_tokens: int
    num_saved_tokens: int
    interactive: bool
    output: list[int]


class Summary(msgspec.Struct, frozen=True):
    """The part of an Image that a listing shows; the rest is skipped when it is read."""

    platform: Platform
    model: str
    label: str
    saved_at: float
    process: Counts


D = TypeVar("D", Image, Summary)


def describe(process: Process, platform: Platform, num_saved_tokens: int, saved_at: float) -> Image:
    """A process as it is now; the checksums are to be filled in when its frames are written."""
    return Image(
        platform=platform,
        model=process.model,
        label=process.label,
        saved_at=saved_at,
        process=SavedProcess(
            tokens=list(process.tokens),
            output=list(process.output),
            logprobs=list(process.logprobs),
            turn_start=process.turn_start,
            max_tokens=process.max_tokens,
            sampling=process.sampling,
            stop_tokens=sorted(process.stop_tokens),
            min_tokens=process.min_tokens,
            interactive=process.interactive,
            nice=process.nice,
            deadline_seconds=process.deadline_seconds,
            status=process.status,
            num_prompt_tokens=process.num_prompt_tokens,
            num_uncharged=process.num_uncharged,
            num_saved_tokens=num_saved_tokens,
            checksums=[],
            mu=process.mu,
            num_to_score=process.num_to_score,
            cache_salt=process.cache_salt,
            prompt_logprobs=list(process.prompt_logprobs),
            pooling=process.pooling,
            num_summed=process.num_summed,
            total=process.total,
            pin_seconds=process.pin_seconds,
            user=process.user,
        ),
    )


def with_checksums(image: Image, checksums: list[tuple[int, ...]]) -> Image:
    """The same image; its pages' checksums are known."""
    replace = msgspec.structs.replace
    return replace(image, process=replace(image.process, checksums=checksums))


# --- files -----------------------------------------------------------------------------------------------


def encode_tail(image: Image) -> bytes:
    """What belongs behind the frames: description and footer."""
    description = msgspec.msgpack.encode(image)
    head = FOOTER.pack(MAGIC, FORMAT_VERSION, len(description), zlib.crc32(description), 0)[:-4]
    return description + head + zlib.crc32(head).to_bytes(4, "little")


def read_tail(file: BinaryIO, kind: type[D]) -> D:
    """Read the description of an image, whole or its summary. Blocks; the frames are not looked at.

    Raises:
        DamagedImage, UnknownVersion, OSError.
    """
    size = file.seek(0, os.SEEK_END)
    if size < FOOTER.size:
        raise DamagedImage(f"has {size} bytes, fewer than the footer of an image")
    file.seek(size - FOOTER.size)
    footer = file.read(FOOTER.size)
    magic, version, length, checksum, own_checksum = FOOTER.unpack(footer)
    if magic != MAGIC:
        raise DamagedImage("is no process image, or was cut short: its end is not a footer")
    if zlib.crc32(footer[:-4]) != own_checksum:
        raise DamagedImage("is damaged: the footer does not have its checksum")
    if version != FORMAT_VERSION:
        raise UnknownVersion(f"has format version {version}, this system reads {FORMAT_VERSION}")
    if length > min(size - FOOTER.size, MAX_DESCRIPTION_BYTES):
        raise DamagedImage(f"is damaged: a description of {length} bytes in a file of {size}")
    start = size - FOOTER.size - length
    file.seek(start)
    description = file.read(length)
    if zlib.crc32(description) != checksum:
        raise DamagedImage("is damaged: the description does not have its checksum")
    try:
        image = msgspec.msgpack.decode(description, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DamagedImage(f"is damaged: {error}") from None
    if isinstance(image, Image) and (problem := _explain_contradiction(image, start)) is not None:
        raise DamagedImage(f"is damaged: {problem}")
    return image


def _explain_contradiction(image: Image, num_frame_bytes: int) -> str | None:
    """Name the first field of a description that cannot be, or None: a process can be made of it."""
    process, platform = image.process, image.platform
    kv, length, context = platform.kv, len(process.tokens), platform.max_model_len
    if min(kv.tokens_per_page, kv.frame_bytes, kv.frames_per_page) < 1:
        return f"a KV format of {kv.tokens_per_page} tokens in {kv.frame_bytes} bytes"
    if not 0 <= process.num_saved_tokens <= length:
        return f"{process.num_saved_tokens} tokens with keys and values of {length}"
    num_pages = kv.num_pages(process.num_saved_tokens)
    num_turn_output = length - process.turn_start
    is_over = process.status is not None
    is_silent = process.num_to_score > 0 or process.pooling is not None  # may be without output
    logprobs_due = 0 if process.sampling.logprobs is None else len(process.output)
    checks = (
        (1 <= length <= context, f"{length} tokens; the context is {context}"),
        (_are_ids(process.tokens, platform), "tokens holds an id outside the vocabulary"),
        (_are_ids(process.output, platform), "output holds an id outside the vocabulary"),
        (_are_ids(process.stop_tokens, platform), "stop_tokens holds an id outside the vocabulary"),
        (
            process.num_prompt_tokens >= 1 and process.num_prompt_tokens + len(process.output) == length,
            f"{process.num_prompt_tokens} tokens of input and {len(process.output)} of output in {length}",
        ),
        (len(process.logprobs) == logprobs_due, f"{len(process.logprobs)} logprobs, not {logprobs_due}"),
        (1 <= process.turn_start <= length, f"a turn that starts at {process.turn_start} of {length}"),
        (process.turn_start + process.max_tokens <= context, f"max_tokens is {process.max_tokens}"),
        (
            num_turn_output <= len(process.output)
            and process.max_tokens >= (not is_silent)
            and (is_over or num_turn_output < max(process.max_tokens, is_silent)),
            f"{num_turn_output} tokens of output in a turn of {process.max_tokens}",
        ),
        (process.min_tokens >= 0, f"min_tokens is {process.min_tokens}"),
        (MIN_NICE <= process.nice <= MAX_NICE, f"nice is {process.nice}"),
        (
            process.deadline_seconds is None or 0 < process.deadline_seconds < math.inf,
            f"deadline_seconds is {process.deadline_seconds}",
        ),
        (0 <= process.pin_seconds < math.inf, f"pin_seconds is {process.pin_seconds}"),
        (len(process.user) <= MAX_USER_LENGTH, f"user has {len(process.user)} characters"),
        (process.sampling.seed is not None, "no seed"),
        (
            0 <= len(process.prompt_logprobs) <= process.num_to_score < process.num_prompt_tokens,
            f"{len(process.prompt_logprobs)} of {process.num_to_score} tokens are scored",
        ),
        (
            0 <= process.num_summed < length and bool(process.num_summed) == bool(process.total),
            f"a sum of {process.num_summed} positions in {len(process.total)} bytes",
        ),
        (process.mu is None or math.isfinite(process.mu), f"mu is {process.mu}"),
        (
            process.status is None or (process.interactive and process.status.reason in ("stop", "length")),
            f"a process that has ended: {process.status}",
        ),
        (
            0 <= process.num_uncharged <= process.num_prompt_tokens,
            f"num_uncharged is {process.num_uncharged}",
        ),
        (
            num_frame_bytes == image.num_frame_bytes,
            f"frames of {num_frame_bytes} bytes for {process.num_saved_tokens} tokens",
        ),
        (
            len(process.checksums) == num_pages
            and all(len(page) == kv.frames_per_page for page in process.checksums),
            f"checksums of {len(process.checksums)} pages; there are {num_pages}",
        ),
        (
            all(0 <= checksum < 1 << 32 for page in process.checksums for checksum in page),
            "checksums holds what is none",
        ),
    )
    for is_good, problem in checks:
        if not is_good:
            return problem
    return process.sampling.explain_invalid()


def _are_ids(tokens: list[int], platform: Platform) -> bool:
    return not tokens or (min(tokens) >= 0 and max(tokens) < platform.vocab_size)
