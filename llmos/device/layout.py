"""The layout of a device's memory: spaces, pages and frames, and how a number format fills them."""

from __future__ import annotations

from typing import NewType

import msgspec

Asid = NewType("Asid", int)  # address-space identifier on one device, 0 <= asid < max_spaces
Vpn = NewType("Vpn", int)  # virtual page number (logical KV block) within a space
Pfn = NewType("Pfn", int)  # physical frame number (physical KV block) on one device


class Segment(msgspec.Struct, frozen=True):
    """One part of every address space, as .text and .data are parts of a program."""

    name: str  # "K", "V"
    bytes_per_token: int  # for all layers


class KVFormat(msgspec.Struct, frozen=True):
    """A number format for keys and values: which segments exist, and how tokens fill their frames."""

    name: str  # "fp32", "fp16", "bf16", "int8"
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
