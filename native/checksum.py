"""Checksums of what lies on disk."""

from __future__ import annotations

from typing import Any

from native._cpu import ffi, lib

__all__ = ["crc32c"]


def crc32c(data: Any, crc: int = 0) -> int:
    """CRC-32C of a contiguous buffer, continuing from `crc`; runs without the interpreter's lock."""
    view = ffi.from_buffer(data)
    return int(lib.llmos_crc32c(crc, view, len(view)))
