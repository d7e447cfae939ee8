"""Vectors."""

from __future__ import annotations

from typing import Literal

import msgspec

from shell.gateway.replies.common import Count


class InputUsage(msgspec.Struct, forbid_unknown_fields=True):
    """Tokens of all inputs; nothing is sampled."""

    prompt_tokens: Count
    total_tokens: Count


class Embedding(msgspec.Struct, forbid_unknown_fields=True):
    """The vector of one input: numbers, or base64 of them as little-endian floats of 32 bits."""

    object: Literal["embedding"]
    index: Count
    embedding: list[float] | str


class EmbeddingList(msgspec.Struct, forbid_unknown_fields=True):
    """The vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: InputUsage
