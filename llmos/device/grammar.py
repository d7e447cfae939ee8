"""Grammars that a driver makes ready, for spaces to be bound with."""

from __future__ import annotations

import msgspec


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
