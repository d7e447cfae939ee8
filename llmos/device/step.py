"""A step: rows of tokens that are computed as one batch, and what came of them."""

from __future__ import annotations

from typing import Any

import msgspec

from llmos.device.edit import Edit
from syscalls.sampling import TokenLogprobs


# The collector need not look at rows: they are made by the thousand, and never in a cycle.
class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run tokens of one space at positions start, start + 1, …

    Empty `tokens` means one token: the one that this space sampled last, perhaps in a step that is still
    in flight. With `sample`, the row's last position yields the space's next token. A step has at most one
    row for a space.

    `targets` are tokens that are known to follow the row's first positions, one each: how likely they were is
    told, with as many alternatives as the space's `prompt_logprobs`. Nothing is sampled there.

    With `pool`, the row's last position is the input's last: the space's vector is told.
    """

    asid: int
    start: int
    tokens: tuple[int, ...]
    sample: bool
    targets: tuple[int, ...] = ()
    pool: bool = False

    @property
    def num_tokens(self) -> int:
        """Positions that this row computes."""
        return len(self.tokens) or 1


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Apply edits in order, then run rows as one batch."""

    id: int
    edits: tuple[Edit, ...]
    rows: tuple[Row, ...]


class RowFault(msgspec.Struct, frozen=True, array_like=True):
    """One row failed (say, logits that are not finite); the others are good."""

    row: int
    message: str


class MapWork(msgspec.Struct, frozen=True, array_like=True):
    """What a driver did to map pages: how many, and for how long."""

    num_sync: int = 0  # mapped by system calls that a step waited for
    num_ahead: int = 0  # mapped beside steps
    num_reused: int = 0  # were mapped to these frames already: no system call
    num_late: int = 0  # of those ahead, not done when a row or another edit needed them
    num_unmapped: int = 0
    wait_seconds: float = 0.0  # of steps: for system calls of their own, and for those that were late
    beside_seconds: float = 0.0  # of system calls beside steps, told when somebody needs what they mapped

    def plus(self, other: MapWork) -> MapWork:
        """Both together."""
        return MapWork(*(a + b for a, b in zip(self._fields(), other._fields(), strict=True)))

    def minus(self, other: MapWork) -> MapWork:
        """What came after `other`."""
        return MapWork(*(a - b for a, b in zip(self._fields(), other._fields(), strict=True)))

    def _fields(self) -> tuple[Any, ...]:
        return msgspec.structs.astuple(self)


class StepDone(msgspec.Struct, frozen=True, tag="step_done"):
    """A step's results, in the order of its rows.

    `tokens` has one entry for each row: the sampled token, or None where none was asked for or the row is
    in `faults`. `logprobs` is empty when no sampling row wanted them, else aligned with rows.
    """

    id: int
    tokens: tuple[int | None, ...]
    seconds: float  # device time
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    faults: tuple[RowFault, ...] = ()
    mus: tuple[float | None, ...] = ()  # of mirostat, after each row's token; empty when no row has one
    scores: tuple[tuple[TokenLogprobs, ...], ...] = ()  # of each row's targets; empty when no row has any
    ended_at: float | None = None  # on the kernel's clock, of a driver that has it; None: as it arrives
    # Numbers of 32 bits, little-endian: of a row with `pool` the vector, of another of a mean the sum up to
    # its end; empty when no row has any.
    vectors: tuple[bytes | None, ...] = ()
    maps: MapWork | None = None  # done since the answer before this one; None: nothing, or it does not say
