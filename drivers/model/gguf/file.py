"""A GGUF model as one thing, in however many parts it lies on disk."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar

from attrs import frozen

from drivers.model.errors import ModelError
from drivers.model.gguf.header import GgufHeader, GgufTensor, read_header

__all__ = ["GgufFile"]

PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")  # as the ggml project's splitter names parts

Value = TypeVar("Value", str, int, float, bool)


@frozen(eq=False)
class GgufFile:
    """Metadata, and where the tensors are; every header has been read and found to be in order."""

    path: Path  # the first part, the one that has the metadata
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]
    parts: tuple[GgufHeader, ...]

    @classmethod
    def open(cls, path: Path) -> GgufFile:
        """Read the headers of a file, and of its further parts when it is the first of several.

        Raises:
            ModelError: a part is missing, malformed, or not of this model; the message names the file and
                what is wrong with it.
        """
        first = read_header(path)
        parts = (first, *(_read_part(first, number) for number in range(1, _count_parts(first))))
        tensors: dict[str, GgufTensor] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in tensors:
                    raise ModelError(f"{part.path}: tensor {name:.80} is in {tensors[name].file.name} too")
                tensors[name] = tensor
        if (stated := first.metadata.get("split.tensors.count", len(tensors))) != len(tensors):
            raise ModelError(f"{path}: {len(tensors)} tensors in {len(parts)} parts; it states {stated}")
        return cls(path, first.metadata, tensors, parts)

    def get(self, key: str, default: Value) -> Value:
        """A metadata value of the default's type, or the default. An integer may stand for a float.

        Raises:
            ModelError: the value is of another type, or not a finite number.
        """
        value = self.metadata.get(key, default)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
            wanted = {str: "a string", int: "an integer", float: "a number", bool: "a bool"}[type(default)]
            raise ModelError(f"{self.path}: {key} is {value!r:.80}; {wanted} is needed")
        return value

    def get_list(self, key: str, kind: type[Value]) -> list[Value]:
        """A metadata array whose elements are of this type; empty where there is none.

        Raises:
            ModelError: it is no array, or one of something else.
        """
        value = self.metadata.get(key, [])
        if not isinstance(value, list) or not all(type(element) is kind for element in value):
            raise ModelError(f"{self.path}: {key} is not an array of {kind.__name__}")
        return value


def _count_parts(first: GgufHeader) -> int:
    count, number = (
        first.metadata.get(key, default) for key, default in (("split.count", 1), ("split.no", 0))
    )
    if count in (0, 1):
        return 1
    name = PART_NAME.fullmatch(first.path.name)
    if not isinstance(count, int):
        raise ModelError(f"{first.path}: split.count is {count!r:.80}")
    if name is None or int(name[3]) != count:
        raise ModelError(
            f"{first.path} is one of {count} parts, but its name does not end in -00001-of-{count:05}.gguf"
        )
    if number != 0 or int(name[2]) != 1:
        raise ModelError(
            f"{first.path} is not the first of {count} parts; name the first, …-00001-of-{name[3]}.gguf"
        )
    return count


def _read_part(first: GgufHeader, number: int) -> GgufHeader:
    name = PART_NAME.fullmatch(first.path.name)
    assert name is not None  # _count_parts has looked
    part = read_header(first.path.with_name(f"{name[1]}-{number + 1:05}-of-{name[3]}.gguf"))
    for key, wanted in (("split.no", number), ("split.count", first.metadata["split.count"])):
        if part.metadata.get(key) != wanted:
            raise ModelError(
                f"{part.path}: {key} is {part.metadata.get(key)!r:.80}; by its name it is {wanted}"
            )
    return part
