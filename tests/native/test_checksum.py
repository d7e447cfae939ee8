"""CRC-32C against its definition, bit by bit."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native._cpu import ffi, lib

from native.checksum import crc32c

# around words, the vectors' 256 bytes, and the three chains' stretches
SIZES = (0, 1, 7, 8, 255, 256, 4096, 12287, 12288, 12289, 30000)


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


@settings(max_examples=60)
@given(st.binary(max_size=40), st.sampled_from(SIZES), st.data())
def test_it_equals_the_definition_however_it_is_cut(tail, size, data):
    """In one piece and in two, in plain C, by the instruction for it, and by vectors."""
    whole = bytes((i * 131 + i // 256) & 0xFF for i in range(size)) + tail
    cut = data.draw(st.integers(0, len(whole)))
    expected = by_definition(whole)
    assert crc32c(whole) == expected
    for way in range(3):
        first = lib.llmos_crc32c_by(way, 0, ffi.from_buffer(whole), cut)
        rest = ffi.from_buffer(whole[cut:])
        assert lib.llmos_crc32c_by(way, first, rest, len(whole) - cut) == expected
        assert lib.llmos_crc32c_by(way, 0, ffi.from_buffer(whole), len(whole)) == expected
    assert crc32c(whole[cut:], crc32c(whole[:cut])) == crc32c(whole)


@pytest.mark.parametrize("position", [0, 5000, 12287, 20000])
def test_one_flipped_bit_shows(position):
    """Wherever a bit flips, the checksum is another."""
    data = bytearray(25_000)
    before = crc32c(data)
    data[position] ^= 0x10
    assert crc32c(data) != before
