"""Bodies taken apart and put together: what comes back is what was sent, and parts are small."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shell.gateway import body_parts
from shell.gateway.body import parse_body
from shell.gateway.body_parts import BodyLimits, BodyTooLarge, Joiner, Splitter, count_characters
from shell.gateway.body_process import Refused, read_value

PART_SIZE = 16  # small, so that small values have many parts

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(
    SCALARS | st.lists(st.integers(0, 1000), max_size=100),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(TEXTS, inner, max_size=8),
    max_leaves=15,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=6)


@pytest.fixture(autouse=True, scope="module")
def _small_parts() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(body_parts, "PART_SIZE", PART_SIZE)
    yield
    patch.undo()


def join(parts: list[bytes]) -> Any:
    """Put a value together."""
    joiner = Joiner()
    return [joiner.add(part) for part in parts][-1]


def count_values(value: Any) -> int:
    """Members and entries at any depth."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return len(inner) + sum(map(count_values, inner))


def strings(value: Any) -> list[str]:
    """All of them, names of members too."""
    if isinstance(value, str):
        return [value]
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return [*(value if isinstance(value, dict) else ()), *(text for each in inner for text in strings(each))]


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types: 1 is neither true nor 1.0 here."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(value=OBJECTS)
def test_a_body_comes_back_as_it_was(value: dict[str, Any]) -> None:
    """Through the other process it is what decoding in place makes of it, in parts of bounded size."""
    raw = msgspec.json.encode(value) if _fits_json(value) else _write_json(value)
    expected = parse_body(raw)
    parts = read_value(raw, BodyLimits())
    assert isinstance(parts, list)
    assert same(join(parts), expected)
    longest_name = max((len(text.encode()) for text in strings(expected)), default=0)
    # A character has up to 4 bytes, a number 9, and a value that is not taken apart may follow a full group.
    assert max(map(len, parts)) <= 9 * (2 * PART_SIZE + 8) + longest_name


def _fits_json(value: Any) -> bool:
    """msgspec's encoder writes no integers of more than 64 bits."""
    try:
        msgspec.json.encode(value)
    except OverflowError:
        return False
    return True


def _write_json(value: Any) -> bytes:
    return json.dumps(value).encode()


@settings(max_examples=150)
@given(
    value=OBJECTS,
    limits=st.tuples(st.integers(0, 60), st.integers(0, 200), st.integers(0, 40)),
)
def test_limits_are_exact(value: dict[str, Any], limits: tuple[int, int, int]) -> None:
    """A body is refused exactly when a string, the sum of all, or the number of values is over a limit."""
    given_limits = BodyLimits(text_characters=limits[0], body_characters=limits[1], values=limits[2])
    texts = strings(value)
    is_over = (
        max(map(len, texts), default=0) > limits[0]
        or sum(map(len, texts)) > limits[1]
        or count_values(value) > limits[2]
    )
    try:
        parts = Splitter(given_limits).split(value)
    except BodyTooLarge:
        assert is_over
    else:
        assert not is_over
        assert same(join(parts), value)


@pytest.mark.parametrize(
    ("value", "param", "says"),
    [
        ({"input": ["a", "b" * 101]}, "input[1]", "it has 101 characters; at most 100 are taken"),
        ({"a": {"b": [{"c": "d" * 101}]}}, "a.b[0].c", "it has 101 characters; at most 100 are taken"),
        ({"input": ["a" * 90, "b" * 90, "c" * 90]}, "input[2]", "the body has more than 250 characters"),
        ({"input": list(range(50))}, "input", "the body holds more than 40 values"),
        ({"n" * 101: 1}, "n" * 100, "it has 101 characters"),
    ],
)
def test_a_refusal_names_field_and_limit(value: dict[str, Any], param: str, says: str) -> None:
    """Which field of the body it is, and what may be there."""
    refused = read_value(msgspec.json.encode(value), BodyLimits(100, 250, 40))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("invalid_value", param)
    assert says in refused.message
    assert param in refused.message
    assert refused.field == next(iter(value))[:100]
    assert refused.num_characters == count_characters(next(iter(value.values())))


def test_too_many_members_are_the_body_s_own() -> None:
    """They are in no field of it."""
    refused = read_value(msgspec.json.encode(dict.fromkeys(map(str, range(50)), 1)), BodyLimits(100, 250, 40))
    assert isinstance(refused, Refused)
    assert refused.param is None
    assert "the request body: the body holds more than 40 values" in refused.message


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "invalid_json"),
        (b"[1]", "invalid_type"),
        (b"[" * 100_000, "invalid_json"),
        (b"", "invalid_json"),
    ],
)
def test_what_is_no_object_is_refused_as_in_place(raw: bytes, code: str) -> None:
    """With the same code as a small body."""
    refused = read_value(raw, BodyLimits())
    assert isinstance(refused, Refused)
    assert refused.code == code


def test_a_large_context_raises_the_limits() -> None:
    """A prompt that a model has room for is not refused for its size."""
    limits = BodyLimits.for_context(1 << 21)
    assert (limits.text_characters, limits.body_characters) == (16 << 20, 16 << 20)
    assert limits.values > 1 << 21
    assert BodyLimits.for_context(8192) == BodyLimits()
