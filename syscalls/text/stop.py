"""Stop strings: found in decoded text wherever tokens and chunks cut it."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Ends a text where the first stop string is complete.

    "First" means: the one whose last character comes earliest, and among those that end there the longest.
    The text that comes out does not depend on how it was cut into pushes. Text that could be the beginning of
    a stop string is held back until it is decided.

    Args:
        stops: non-empty strings.
        include: let the stop string itself through.
        is_armed: False: what is complete before it is armed, by setting this, is passed over.

    Source: Knuth, Morris and Pratt 1977: one matching automaton for each stop string, so a push costs
    O(characters), however long the strings are.
    """

    def __init__(self, stops: Sequence[str], include: bool = False, *, is_armed: bool = True) -> None:
        if not all(stops):
            raise ValueError("a stop string is empty")
        self.is_armed = is_armed
        self.matched: str | None = None
        self._include = include
        self._automata = [_Automaton(stop) for stop in stops]
        self._held = ""

    @property
    def has_stops(self) -> bool:
        """False: every text is let through."""
        return bool(self._automata)

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text. Returns what may be shown now, and the stop string once one has been found.

        After a match everything is withheld.
        """
        if not self._automata:
            return text, None
        if self.matched is not None:
            return "", self.matched
        end = len(text)
        for automaton in self._automata:
            if not self.is_armed:
                automaton.pass_over(text)
                continue
            found = automaton.advance(text, end)
            if found is None:
                continue
            if self.matched is None or found < end or len(automaton.stop) > len(self.matched):
                self.matched = automaton.stop
            end = found
        text = self._held + text[:end]
        if self.matched is not None:
            self._held = ""
            return (text if self._include else text[: len(text) - len(self.matched)]), self.matched
        num_held = max((automaton.num_matched for automaton in self._automata), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut], None

    def flush(self) -> str:
        """End the text. Returns what was held back, which turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class _Automaton:
    """Reads characters and knows how many of the last ones are a prefix of `stop`."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        # fallback[n]: the longest proper prefix of stop[:n] that is also its suffix
        self._fallback = [0, 0]
        for index in range(1, len(stop)):
            length = self._fallback[index]
            while length and stop[length] != stop[index]:
                length = self._fallback[length]
            self._fallback.append(length + (stop[length] == stop[index]))

    def pass_over(self, text: str) -> None:
        """Read all of a text, as if nothing in it were a match."""
        start = 0
        while (end := self.advance(text[start:], len(text) - start)) is not None:
            start += end
            self.num_matched = self._fallback[len(self.stop)]

    def advance(self, text: str, end: int) -> int | None:
        """Read text[:end]. Returns where the first match ends, or None."""
        stop, matched = self.stop, self.num_matched
        index = 0
        while index < end:
            if matched == 0:  # jump to where a match could begin
                index = text.find(stop[0], index, end)
                if index < 0:
                    break
            character = text[index]
            while matched and stop[matched] != character:
                matched = self._fallback[matched]
            matched += stop[matched] == character
            index += 1
            if matched == len(stop):
                self.num_matched = matched
                return index
        self.num_matched = matched
        return None
