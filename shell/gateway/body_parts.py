"""A decoded body in pieces: taken apart in one process and put together in another, never long at a time.

A large body is decoded by a process of its own. Its value comes back in parts of bounded size, each after
those that it is made of:

    {"input": [long text, long text, 7]}
    part 0  "the first 64 Ki characters of the first text"
    part 1  "the rest of it"
    ...
    last    {"input": [Join(0, 1), Join(2, 3), 7]}

so that the process that has others to serve holds its interpreter's lock for one part only, and for joining
pieces that are there.
"""

from __future__ import annotations

from typing import Any

import attrs
import msgspec

MAX_TEXT_CHARACTERS = 4 << 20  # of one string: encoding takes 60 times as many bytes
MAX_BODY_CHARACTERS = 16 << 20  # of all strings
MAX_BODY_VALUES = 1 << 20  # members and entries at any depth, and with them token ids
MAX_NAME_CHARACTERS = 64 << 10  # of a member's name: it is not taken apart
CHARACTERS_PER_TOKEN = 8  # by which a context larger than the limits above raises them
PART_SIZE = 64 << 10  # characters and values of a part, together

JOIN, LARGE_INTEGER = 1, 2  # kinds of msgpack extensions
SCALARS = frozenset({int, float, bool, type(None)})

_decoder = msgspec.msgpack.Decoder()
_indices_decoder = msgspec.msgpack.Decoder(list[int])
_encode = msgspec.msgpack.Encoder().encode


class BodyLimits(msgspec.Struct, frozen=True):
    """What a body may hold."""

    text_characters: int = MAX_TEXT_CHARACTERS
    body_characters: int = MAX_BODY_CHARACTERS
    values: int = MAX_BODY_VALUES

    @classmethod
    def for_context(cls, num_tokens: int) -> BodyLimits:
        """The limits, raised to what a model with such a context takes."""
        num_characters = CHARACTERS_PER_TOKEN * num_tokens
        return cls(
            text_characters=max(MAX_TEXT_CHARACTERS, num_characters),
            body_characters=max(MAX_BODY_CHARACTERS, num_characters),
            values=max(MAX_BODY_VALUES, num_tokens + (64 << 10)),
        )


class BodyTooLarge(Exception):
    """A body is over one of its limits.

    Args:
        what: is too much of it, as the end of a sentence.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what
        self.path: list[str | int] = []  # names and indices, from the outermost

    @property
    def param(self) -> str:
        """The path as errors write it; names of any length are cut."""
        shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step[:100]}" for step in self.path)
        return shown.lstrip(".")


def count_characters(value: Any) -> int:
    """Of all strings in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(count_characters, value.values()))
    return sum(map(count_characters, value)) if isinstance(value, list) else 0


@attrs.define(eq=False)
class Splitter:
    """Takes one value apart, and counts what it holds."""

    limits: BodyLimits
    parts: list[bytes] = attrs.field(factory=list)
    _num_characters: int = 0
    _num_values: int = 0

    def split(self, value: Any) -> list[bytes]:
        """Return the parts, the whole as the last. Raises BodyTooLarge, RecursionError."""
        small, _ = self._reduce(value)
        self._emit(small)
        return self.parts

    def _emit(self, value: Any) -> int:
        self.parts.append(_encode(value))
        return len(self.parts) - 1

    def _count_values(self, count: int) -> None:
        self._num_values += count
        if self._num_values > self.limits.values:
            raise BodyTooLarge(f"the body holds more than {self.limits.values} values up to here")

    def _count_text(self, count: int) -> None:
        if count > self.limits.text_characters:
            raise BodyTooLarge(f"it has {count} characters; at most {self.limits.text_characters} are taken")
        self._num_characters += count
        if self._num_characters > self.limits.body_characters:
            limit = self.limits.body_characters
            raise BodyTooLarge(f"the body has more than {limit} characters of text up to here")

    def _reduce(self, value: Any) -> tuple[Any, int]:
        """Return what stands for a value in the part around it, and its size there."""
        if isinstance(value, str):
            self._count_text(len(value))
            if len(value) <= PART_SIZE:
                return value, 1 + len(value)
            pieces = range(0, len(value), PART_SIZE)
            return self._join([self._emit(value[start : start + PART_SIZE]) for start in pieces]), 2
        if isinstance(value, list):
            return self._reduce_list(value)
        if isinstance(value, dict):
            return self._reduce_object(value)
        if type(value) is int and not -(2**63) <= value < 2**64:
            return msgspec.msgpack.Ext(LARGE_INTEGER, str(value).encode()), 2
        return value, 1

    def _reduce_list(self, value: list[Any]) -> tuple[Any, int]:
        self._count_values(len(value))
        kinds = set(map(type, value))
        if kinds <= SCALARS and not (int in kinds and _has_large_integer(value)):  # such as token ids
            if len(value) <= PART_SIZE:
                return value, 1 + len(value)
            pieces = range(0, len(value), PART_SIZE)
            return self._join([self._emit(value[start : start + PART_SIZE]) for start in pieces]), 2
        emitted: list[int] = []
        group: list[Any] = []
        size = 1
        for index, inner in enumerate(value):
            try:
                small, inner_size = self._reduce(inner)
            except BodyTooLarge as error:
                error.path.insert(0, index)
                raise
            if group and size + inner_size > PART_SIZE:
                emitted.append(self._emit(group))
                group, size = [], 1
            group.append(small)
            size += inner_size
        if not emitted:
            return group, size
        return self._join([*emitted, self._emit(group)]), 2

    def _reduce_object(self, value: dict[str, Any]) -> tuple[Any, int]:
        self._count_values(len(value))
        emitted: list[int] = []
        group: dict[str, Any] = {}
        size = 1
        for name, inner in value.items():
            try:
                if len(name) > MAX_NAME_CHARACTERS:
                    limit = MAX_NAME_CHARACTERS
                    raise BodyTooLarge(f"its name has {len(name)} characters; at most {limit} are taken")
                self._count_text(len(name))
                small, inner_size = self._reduce(inner)
            except BodyTooLarge as error:
                error.path.insert(0, name)
                raise
            inner_size += len(name)
            if group and size + inner_size > PART_SIZE:
                emitted.append(self._emit(group))
                group, size = {}, 1
            group[name] = small
            size += inner_size
        if not emitted:
            return group, size
        return self._join([*emitted, self._emit(group)]), 2

    def _join(self, indices: list[int]) -> msgspec.msgpack.Ext:
        return msgspec.msgpack.Ext(JOIN, _encode(indices))


def _has_large_integer(numbers: list[Any]) -> bool:
    integers = [number for number in numbers if type(number) is int]
    return min(integers) < -(2**63) or max(integers) >= 2**64


@attrs.define(eq=False)
class Joiner:
    """Puts a value together from its parts, in their order."""

    _parts: list[Any] = attrs.field(factory=list)
    _decoder: msgspec.msgpack.Decoder[Any] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self._resolve)

    def add(self, part: bytes | bytearray) -> Any:
        """Take the next part; returns its value, which for the last one is the whole."""
        value = self._decoder.decode(part)
        self._parts.append(value)
        return value

    def _resolve(self, kind: int, data: memoryview) -> Any:
        if kind == LARGE_INTEGER:
            return int(bytes(data))
        pieces = []
        for index in _indices_decoder.decode(data):
            pieces.append(self._parts[index])
            self._parts[index] = None  # each is a piece of one value only
        first = pieces[0]
        if isinstance(first, str):
            return "".join(pieces)
        for piece in pieces[1:]:
            if isinstance(first, list):
                first.extend(piece)
            else:
                first.update(piece)
        return first
