"""What a device has counted of each space's tokens, and how far: the host sends what else there is.

A token that the device draws it counts there and then, so the next draw's penalties take it before the host
knows it. What else there is, a prompt say, comes from the host: all of it at once, when a space is bound.
Where penalties are about the last few tokens it keeps those in order, and counts them before each draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import evolve

from drivers.model.extents import Extents
from drivers.model.token_windows import Look, TokenWindows
from drivers.ops.counted import NOTHING, OUTPUT, SEEN, Counted, write_counts
from native.sampling import Draw

__all__ = ["TokenTable"]

FIRST_PLACES = 4


class TokenTable:
    """Rows of counts, one for each space that had penalties; as many as there were at once, or twice that.

    Args:
        vocab_size: tokens.
        max_len: positions of a space.
        device: where they are counted.
    """

    def __init__(self, vocab_size: int, max_len: int, device: torch.device) -> None:
        self._windows = TokenWindows(max_len, device)
        self._counts = torch.zeros((0, vocab_size), dtype=torch.int32, device=device)
        self._places: dict[int, int] = {}  # by space
        self._extents = Extents()
        self.num_written = 0  # rows that the host sent

    def prepare(self, draws: Sequence[Draw | None], spaces: Sequence[int | None]) -> Counted | None:
        """Bring the rows of draws up to date, for the step that is launched next; None: no draw asks.

        `confirm` follows when it is launched. Where it does not, the host sends those rows again.

        Args:
            draws: one for each row of logits, of those that the device draws; None: another.
            spaces: whose row of logits it is; None: nobody's.

        Raises:
            RuntimeError: neither side has counted a token that a draw asks for.
        """
        places, notes = [-1] * len(draws), [NOTHING] * len(draws)
        written: list[tuple[int, Draw]] = []
        looks: list[Look] = []
        stale: list[Look] = []
        self._extents.begin()
        for row, (draw, space) in enumerate(zip(draws, spaces, strict=True)):
            if draw is None or space is None or not (draw.tally is not None or len(draw.seen_ids)):
                continue
            places[row] = self._places.setdefault(space, len(self._places))
            must_send, tally = self._extents.must_send(space, draw.tally), draw.tally
            if tally is not None and tally.window is not None:
                looks.append(Look(row, places[row], tally, tally.window))
                stale += looks[-1:] if must_send else []
                continue
            if must_send:
                written.append((places[row], draw))
            if tally is not None:
                notes[row] = OUTPUT if tally.is_output else SEEN
        self._make_room()
        write_counts(self._counts, [place for place, _ in written], [draw for _, draw in written])
        self._windows.prepare(self._counts, looks, stale)
        self.num_written += len(written) + len(stale)
        return Counted(self._counts, places, notes) if max(places, default=-1) >= 0 else None

    def confirm(self, ids: torch.Tensor) -> None:
        """The step that was prepared is launched; the token of each row of logits, on the device."""
        self._windows.take(ids)
        self._extents.confirm()

    def forget(self, space: int) -> None:
        """What was launched last for a space gave no token."""
        self._extents.forget(space)

    def seen(self, place: int, draw: Draw) -> Draw:
        """A draw of a row as this table has it. Waits for the device."""
        row = self._counts[place].cpu()
        ids = row.nonzero().flatten()
        return evolve(draw, seen_ids=ids.numpy(), num_output=(row[ids] - 1).long().numpy())

    def note(self, place: int, note: int, token: int) -> None:
        """Count a token that the host has drawn in the device's place."""
        if note != NOTHING and token >= 0:
            self._counts[place, token] = self._counts[place, token].clamp(min=1) + note

    def _make_room(self) -> None:
        num_places, vocab_size = self._counts.shape
        if len(self._places) > num_places:
            num_places = max(FIRST_PLACES, 2 * num_places, len(self._places))
            grown = self._counts.new_zeros((num_places, vocab_size))
            grown[: len(self._counts)] = self._counts
            self._counts = grown
