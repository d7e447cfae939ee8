"""Named arrays in one file that is mapped, not read: written once, whole or not at all.

    0       magic, version, then where the index lies: offset, length, CRC-32C     (little-endian)
    4096    the arrays, each at a multiple of 64 bytes
    …       the index, msgpack: what the file is about, and for each array its place, shape and CRC-32C

The index comes last because arrays are written as they are made. A reader trusts nothing: magic, lengths,
places and every checksum are looked at before an array is handed out.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
from attrs import frozen

from native.checksum import crc32c

__all__ = ["ArrayFile", "ArrayFileError", "open_arrays", "write_arrays"]

MAGIC = b"LLMOSARR"
VERSION = 1
PREAMBLE = struct.Struct("<8sIIQQ")  # magic, version, CRC of the index, its offset, its length
DATA_OFFSET = 4096
ALIGNMENT = 64
DTYPES = ("uint8", "int8", "uint16", "int32", "float32")


class ArrayFileError(ValueError):
    """The file is not whole, or not one of ours; the message names it and what is wrong."""


class _Entry(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    crc: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class _Index(msgspec.Struct, frozen=True):
    about: dict[str, str]
    entries: tuple[_Entry, ...]


@frozen(eq=False)
class ArrayFile:
    """An opened file. The arrays are read-only views of the mapping, which lives as long as one of them."""

    path: Path
    about: dict[str, str]
    arrays: dict[str, np.ndarray]


def write_arrays(path: Path, about: dict[str, str], arrays: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a file under a temporary name, sync it, and give it its name.

    Args:
        path: the final name; a file that has it is replaced. Its folder exists.
        about: what the arrays are; whoever opens the file compares.
        arrays: (name, array) in the order of writing; made one by one, so they need not all be in memory.

    Raises:
        OSError: disk full, say; nothing is left behind.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            entries = []
            offset = DATA_OFFSET
            for name, array in arrays:
                data = np.ascontiguousarray(array)
                offset += -offset % ALIGNMENT
                file.seek(offset)
                flat = data.reshape(-1).view(np.uint8)
                file.write(flat.data)
                entries.append(_Entry(name, array.dtype.name, array.shape, offset, crc32c(flat)))
                offset += data.nbytes
            index = msgspec.msgpack.encode(_Index(about, tuple(entries)))
            file.seek(offset)
            file.write(index)
            file.seek(0)
            file.write(PREAMBLE.pack(MAGIC, VERSION, crc32c(index), offset, len(index)))
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def open_arrays(path: Path, num_threads: int = 1) -> ArrayFile:
    """Map a file and check every byte of it.

    Args:
        path: as given to `write_arrays`.
        num_threads: that check the sums.

    Raises:
        FileNotFoundError: there is no such file.
        ArrayFileError: it is not whole.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < DATA_OFFSET:
            raise ArrayFileError(f"{path} has {size} bytes and no header")
        mapping = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    magic, version, crc, offset, length = PREAMBLE.unpack_from(mapping)
    if magic != MAGIC or version != VERSION:
        raise ArrayFileError(f"{path} is not an array file of version {VERSION}")
    if offset < DATA_OFFSET or offset + length != size:
        raise ArrayFileError(f"{path} has {size} bytes; its index should end at {offset + length}")
    whole = np.frombuffer(mapping, dtype=np.uint8)
    if crc32c(whole[offset:]) != crc:
        raise ArrayFileError(f"{path}: the index does not have its checksum")
    try:
        index = msgspec.msgpack.decode(whole[offset:].tobytes(), type=_Index)
    except msgspec.DecodeError as error:
        raise ArrayFileError(f"{path}: the index cannot be read: {error}") from None

    def view(entry: _Entry) -> np.ndarray:
        if entry.dtype not in DTYPES or entry.offset % ALIGNMENT or min(entry.shape, default=0) < 0:
            raise ArrayFileError(f"{path}: array {entry.name} has no place: {entry}")
        end = entry.offset + entry.num_bytes
        if entry.offset < DATA_OFFSET or end > offset:
            raise ArrayFileError(f"{path}: array {entry.name} lies outside the file")
        flat = whole[entry.offset : end]
        if crc32c(flat) != entry.crc:
            raise ArrayFileError(f"{path}: array {entry.name} does not have its checksum")
        return flat.view(entry.dtype).reshape(entry.shape)

    with ThreadPoolExecutor(num_threads) as pool:
        views = list(pool.map(view, index.entries))
    names = [entry.name for entry in index.entries]
    return ArrayFile(path, index.about, dict(zip(names, views, strict=True)))
