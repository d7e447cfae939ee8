"""Embedding family: embed. A text becomes a vector, by a process that ends with it instead of tokens."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import attrs
import msgspec

from syscalls.process import Output
from syscalls.tenant import Rates

MAX_INPUTS = 128
POOLINGS = ("last", "mean", "cls", "score")
"""The ways from hidden states to a vector: the last token's, the mean of all, the first token's.

"score" is a reranker's: one number from 0 to 1, how well the two texts fit that are joined to one input.
"""


class Pooling(msgspec.Struct, frozen=True, array_like=True):
    """How the hidden states of an input, behind the model's last norm, become one vector."""

    kind: str  # of POOLINGS
    normalise: bool = True  # to length 1; a score is left as it is


class EmbeddingInfo(msgspec.Struct, frozen=True):
    """What vectors a model makes."""

    size: int  # numbers in a vector
    poolings: tuple[str, ...]  # what it can do, the default first
    dimensions: tuple[int, ...] = ()  # sizes that it was trained to be cut to
    takes_any_dimension: bool = False  # it was trained to be cut to any

    @property
    def scores_pairs(self) -> bool:
        """True of a reranker: it makes no vectors of texts, but a score of two."""
        return self.poolings == ("score",)


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Create a process for each input that ends with a vector. Replies `Spawned` at once.

    The vector comes with the `Output` of a `read` at offset 0, which waits until it is there. Its bits do not
    depend on how the input was cut into steps, on what ran beside it, or on what happened to it meanwhile.

    Errors: EINVAL (no inputs, or more than MAX_INPUTS; an empty one, or a token id outside the vocabulary; a
    pooling that the model cannot do; a bad salt, nice level, deadline, pin, user or label), E2BIG (an input
    over the context), ENOMEM (could never fit in device memory, or in what the tenant may have of it), EAGAIN
    (process table full), EDQUOT (a limit of the tenant), ENOENT (no such model), ESHUTDOWN (draining).
    """

    inputs: tuple[tuple[int, ...], ...]  # token ids
    pooling: str | None = None  # of POOLINGS; None: the model's own
    normalise: bool = True
    model: str | None = None  # None: the embedding model if there is one, else the default model
    auto_reap: bool = False  # reaped when its vector was delivered, no wait needed
    nice: int = 0
    label: str = ""  # shown by ps
    deadline_seconds: float | None = None  # as of `Spawn`
    cache_salt: str = ""  # pages are shared with processes of the same tenant and salt only
    pin_seconds: float = 0.0  # as of `Spawn`; a device that keeps nothing of a text refuses any
    user: str = ""  # as of `Spawn`


def read_vector(vector: bytes) -> tuple[float, ...]:
    """The numbers of an `Output.vector`."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


@attrs.frozen
class Embedded:
    """What a client's `embed` returns; one entry for each input, in order."""

    pids: Sequence[int]
    outputs: Sequence[Output]  # an input whose process was killed, or failed, has no vector; `end` says why
    rates: Rates | None = None  # what was left to the tenant; None: nothing limits its rates

    @property
    def vectors(self) -> list[tuple[float, ...]]:
        """The numbers of each vector; () where there is none."""
        return [read_vector(output.vector) for output in self.outputs]
