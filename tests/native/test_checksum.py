"""CRC-32C against its definition, bit by bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native.checksum import crc32c


def by_definition(data: bytes) -> int:
    """The remainder, one bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_the_check_value_is_the_standards():
    """The nine digits that every table of checksums lists."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(b"") == 0


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=40), st.sampled_from([0, 1, 7, 8, 4096, 12287, 12288, 12289, 30000]), st.data())
def test_it_equals_the_definition_however_it_is_cut(tail, size, data):
    """Sizes around the three chains' stretches, in one piece and in two."""
    whole = bytes((i * 131 + i // 256) & 0xFF for i in range(size)) + tail
    cut = data.draw(st.integers(0, len(whole)))
    assert crc32c(whole) == by_definition(whole)
    assert crc32c(whole[cut:], crc32c(whole[:cut])) == crc32c(whole)


@pytest.mark.parametrize("position", [0, 5000, 12287, 20000])
def test_one_flipped_bit_shows(position):
    """Wherever a bit flips, the checksum is another."""
    data = bytearray(25_000)
    before = crc32c(data)
    data[position] ^= 0x10
    assert crc32c(data) != before
