"""The header of one GGUF file: metadata and the table of tensors, checked before any weight is read.

Read with plain reads, not mapped: a file that shrinks meanwhile has to be an error, and under a mapping it is
a signal. Everything that a header can claim is held against the size of the file or a limit before memory is
taken.
Source: the GGUF specification, versions 2 and 3, of the ggml project.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from attrs import define, frozen

from drivers.model.errors import ModelError
from drivers.model.gguf.storage import REFUSED, STORAGE, Storage

__all__ = ["GgufHeader", "GgufTensor", "read_bytes", "read_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_KEY_BYTES = 65_535  # the specification's own limit
MAX_HEADER_BYTES = 256 << 20
MAX_ARRAY_LENGTH = 4 << 20  # the largest vocabularies have a quarter of a million tokens

SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
FLOAT32, STRING, ARRAY = 6, 8, 9
U32, U64 = SCALARS[4], SCALARS[10]


@frozen
class GgufTensor:
    """Where one tensor is. Its rows are contiguous, and each is a whole number of blocks."""

    name: str
    file: Path
    shape: tuple[int, ...]  # outermost first, as torch spells it; the file has it the other way round
    storage: Storage
    offset: int  # bytes, from the start of the file
    num_bytes: int


@frozen(eq=False)
class GgufHeader:
    """What one file says of itself."""

    path: Path
    metadata: dict[str, Any]  # numbers, bools, strings, and lists of one of these
    tensors: dict[str, GgufTensor]
    num_bytes: int  # of the header


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a file.

    Raises:
        ModelError: it is no GGUF file, is truncated or malformed, exceeds a limit, or stores a tensor in a
            format that is not supported; the message names the file and the part.
    """
    try:
        with path.open("rb") as stream:
            return _read(_Cursor(path, stream, os.fstat(stream.fileno()).st_size))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def read_bytes(tensor: GgufTensor, start: int, num_bytes: int) -> bytearray:
    """Some of a tensor's bytes.

    Raises:
        ModelError: the file changed or cannot be read.
    """
    found = bytearray(num_bytes)
    try:
        with tensor.file.open("rb", buffering=0) as stream, memoryview(found) as view:
            stream.seek(tensor.offset + start)
            done = 0
            while done < num_bytes and (count := stream.readinto(view[done:])):
                done += count
    except OSError as error:
        raise ModelError(f"{tensor.file}: tensor {tensor.name} cannot be read: {error.strerror}") from None
    if done < num_bytes:
        raise ModelError(f"{tensor.file}: tensor {tensor.name} ends early; the file has changed")
    return found


@define(eq=False)
class _Cursor:
    """Reads forward through the header, and never past the end of the file."""

    path: Path
    stream: BinaryIO
    size: int
    position: int = 0

    def take(self, num_bytes: int, what: str) -> bytes:
        end = self.position + num_bytes
        if end > self.size:
            raise ModelError(f"{self.path} is truncated: {what} would end at byte {end} of {self.size}")
        if end > MAX_HEADER_BYTES:
            raise ModelError(f"{self.path}: {what} would end beyond {MAX_HEADER_BYTES} bytes of header")
        self.position = end
        found = self.stream.read(num_bytes)
        if len(found) < num_bytes:
            raise ModelError(f"{self.path} ends early; the file has changed")
        return found

    def scalar(self, kind: struct.Struct, what: str) -> Any:
        return kind.unpack(self.take(kind.size, what))[0]

    def string(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.scalar(U64, what)
        if length > limit:
            raise ModelError(f"{self.path}: {what} has {length} bytes; the limit is {limit}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise ModelError(f"{self.path}: {what} is not UTF-8: {error.reason}") from None

    def value(self, what: str) -> Any:
        kind = self.scalar(U32, what)
        if kind == FLOAT32:
            # the shortest decimal with this fp32 number: what the converter was given, 1e-05 say
            return float(str(np.float32(self.scalar(SCALARS[kind], what))))
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise ModelError(f"{self.path}: {what} has the unknown type {kind}")
        element, length = self.scalar(U32, what), self.scalar(U64, what)
        if length > MAX_ARRAY_LENGTH:
            raise ModelError(
                f"{self.path}: {what} is an array of {length} elements; the limit is {MAX_ARRAY_LENGTH}"
            )
        if element == STRING:
            return [self.string(what) for _ in range(length)]
        if element not in SCALARS:
            raise ModelError(f"{self.path}: {what} is an array of the unsupported type {element}")
        code = SCALARS[element].format[1:]
        return list(struct.unpack(f"<{length}{code}", self.take(length * SCALARS[element].size, what)))


def _read(cursor: _Cursor) -> GgufHeader:
    path = cursor.path
    if cursor.size < len(MAGIC) or cursor.take(len(MAGIC), "the magic number") != MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it does not begin with GGUF")
    version = cursor.scalar(U32, "the version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise ModelError(f"{path}: big-endian GGUF is not supported")
        raise ModelError(f"{path}: GGUF version {version} is not supported; supported: 2, 3")
    num_tensors = cursor.scalar(U64, "the number of tensors")
    num_values = cursor.scalar(U64, "the number of metadata values")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise ModelError(f"{path}: metadata key {key:.80} is there twice")
        metadata[key] = cursor.value(f"metadata value {key:.80}")
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment is {alignment!r:.80}; a power of two is needed")
    entries = [_read_entry(cursor) for _ in range(num_tensors)]
    return GgufHeader(path, metadata, _place(cursor, entries, alignment), cursor.position)


def _read_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], Storage, int]:
    """Read one line of the table of tensors: name, shape, storage, offset within the data."""
    path, name = cursor.path, cursor.string("a tensor's name", MAX_KEY_BYTES)
    what = f"the entry of tensor {name:.80}"
    num_dimensions = cursor.scalar(U32, what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise ModelError(f"{path}: tensor {name:.80} has {num_dimensions} dimensions; the limit is 4")
    shape = tuple(reversed([cursor.scalar(U64, what) for _ in range(num_dimensions)]))
    kind, offset = cursor.scalar(U32, what), cursor.scalar(U64, what)
    storage = STORAGE.get(kind)
    if storage is None:
        stored, known = REFUSED.get(kind, f"type {kind}"), ", ".join(known.name for known in STORAGE.values())
        raise ModelError(
            f"{path}: tensor {name:.80} is stored as {stored}, which is not supported; supported: {known}"
        )
    if 0 in shape or shape[-1] % storage.block_values:
        raise ModelError(
            f"{path}: tensor {name:.80} of shape {list(shape)} is not whole rows of {storage.name} blocks"
        )
    return name, shape, storage, offset


def _place(
    cursor: _Cursor, entries: list[tuple[str, tuple[int, ...], Storage, int]], alignment: int
) -> dict[str, GgufTensor]:
    """Find each tensor's bytes, which must lie within the file and within no other tensor."""
    path = cursor.path
    start = end = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, storage, offset in sorted(entries, key=lambda entry: entry[3]):
        num_bytes = storage.block_bytes
        for length in (*shape[:-1], shape[-1] // storage.block_values):
            num_bytes *= length
        if name in tensors:
            raise ModelError(f"{path}: tensor {name:.80} is there twice")
        if offset % alignment or start + offset < end:
            raise ModelError(
                f"{path}: tensor {name:.80} at {offset} overlaps another or is no multiple of {alignment}"
            )
        end = start + offset + num_bytes
        if end > cursor.size:
            raise ModelError(
                f"{path} is truncated: tensor {name:.80} would end at byte {end} of {cursor.size}"
            )
        tensors[name] = GgufTensor(name, path, shape, storage, start + offset, num_bytes)
    return tensors
