"""Stop strings against a reference that sees the whole text at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from syscalls.text.stop import StopMatcher

letters = st.text("ab\u65e5", max_size=30)
stop_lists = st.lists(st.text("ab\u65e5", min_size=1, max_size=5), max_size=4)


def find_stop(text: str, stops: list[str], num_passed_over: int = 0) -> tuple[int, str] | None:
    """Return where the first complete stop string ends, the longest of those, or None."""
    starts = [(text.find(stop, max(0, num_passed_over - len(stop) + 1)), stop) for stop in stops]
    ends = [(start + len(stop), -len(stop), stop) for start, stop in starts if start >= 0]
    if not ends:
        return None
    end, _, stop = min(ends)
    return end, stop


def cut(text: str, places: list[int]) -> list[str]:
    """Cut a text at the given places."""
    bounds = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds)]


@given(letters, stop_lists, st.lists(st.integers(0, 30), max_size=12), st.booleans())
@example("abababb", ["ababb"], [1, 2, 3, 4, 5, 6], False)
@example("aab", ["b", "aab", "ab"], [1], True)
def test_matcher_agrees_with_the_whole_text(
    text: str, stops: list[str], places: list[int], include: bool
) -> None:
    """However the text is cut, the output and the match are those of the whole text, and no prefix leaks."""
    matcher = StopMatcher(stops, include)
    expected = find_stop(text, stops)
    shown, seen, matched = "", "", None
    for chunk in cut(text, places):
        emitted, matched = matcher.push(chunk)
        shown += emitted
        seen += chunk
        if matched is None:  # nothing that may still become a stop string has been shown
            held = len(seen) - len(shown)
            assert all(len(stop) <= held or not seen.endswith(stop) for stop in stops)
            for stop in stops:
                longest = max(n for n in range(len(stop)) if seen.endswith(stop[:n]))
                assert held >= longest
    shown += matcher.flush()
    if expected is None:
        assert matched is None
        assert shown == text
    else:
        end, stop = expected
        assert matched == stop
        assert shown == (text[:end] if include else text[: end - len(stop)])


@given(letters, stop_lists, st.lists(st.integers(0, 30), max_size=12), st.integers(0, 12))
@example("aaaa", ["aaa"], [3], 1)
@example("abab", ["abab"], [2], 1)
def test_what_is_complete_before_it_is_armed(
    text: str, stops: list[str], places: list[int], num_unarmed: int
) -> None:
    """Is passed over, but may be the beginning of what comes later."""
    matcher = StopMatcher(stops, include=True, is_armed=False)
    shown, num_passed_over = "", 0
    for number, chunk in enumerate(cut(text, places)):
        matcher.is_armed = number >= num_unarmed
        num_passed_over += 0 if matcher.is_armed else len(chunk)
        shown += matcher.push(chunk)[0]
    shown += matcher.flush()
    end, stop = find_stop(text, stops, num_passed_over) or (len(text), None)
    assert (shown, matcher.matched) == (text[:end], stop)


@given(letters, stop_lists)
def test_held_back_text_is_no_longer_than_needed(text: str, stops: list[str]) -> None:
    """What is held back is itself the beginning of a stop string."""
    matcher = StopMatcher(stops)
    emitted, matched = matcher.push(text)
    if matched is None:
        held = text[len(emitted) :]
        assert held == matcher.flush()
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_after_a_match_everything_is_withheld() -> None:
    """Later text is dropped, and the match is still told."""
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == ("one", None)
    assert matcher.push("\ntwo") == ("", "\n\n")
    assert matcher.push("three") == ("", "\n\n")
    assert matcher.flush() == ""


def test_empty_stop_string_is_refused() -> None:
    """An empty string would match at once, which nobody means."""
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["end", ""])
