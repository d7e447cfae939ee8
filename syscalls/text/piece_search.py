"""Which tokens of a vocabulary contain a text."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

from syscalls.text.pieces import PieceTable


class PieceSearch:
    """The bytes of all tokens one behind the other, so that one scan finds a text in any of them.

    Making one spells every token of the vocabulary: half a second for a large one.
    """

    def __init__(self, pieces: PieceTable, vocab_size: int) -> None:
        spelled = [pieces[token] for token in range(vocab_size)]
        self._all = b"".join(spelled)
        self._starts = [0, *accumulate(map(len, spelled))]

    def find(self, text: str) -> tuple[int, ...]:
        """Ids of the tokens that contain a text, ascending. Raises ValueError when it is empty."""
        needle = text.encode()
        if not needle:
            raise ValueError("every token contains the empty text")
        found: list[int] = []
        place = self._all.find(needle)
        while place >= 0:
            token = bisect_right(self._starts, place) - 1
            end = self._starts[token + 1]
            if place + len(needle) <= end:
                found.append(token)
                place = end - 1  # once is enough
            place = self._all.find(needle, place + 1)
        return tuple(found)
