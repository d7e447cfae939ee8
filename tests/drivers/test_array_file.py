"""The array file: what was written comes back, and nothing that is not whole does."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivers.model import array_file
from drivers.model.array_file import DATA_OFFSET, PREAMBLE, ArrayFileError, open_arrays, write_arrays

ABOUT = {"model": "abc", "weights": "w8a8"}

arrays = st.dictionaries(
    st.text(max_size=12),
    st.tuples(
        st.sampled_from(array_file.DTYPES),
        st.lists(st.integers(0, 9), max_size=3).map(tuple),
        st.integers(0, 2**32 - 1),
    ),
    max_size=6,
)


def make(dtype: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An array of any bits."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(seed).integers(0, 256, num_bytes, dtype=np.uint8)
    return data.view(dtype).reshape(shape)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a file of two arrays."""
    path = tmp_path / "model.pack"
    write_arrays(path, ABOUT, [("a", make("int8", (3, 100), 1)), ("b", make("float32", (70,), 2))])
    return path


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(arrays, st.integers(1, 3))
def test_arrays_come_back_bit_for_bit(tmp_path, kinds, num_threads):
    """Whatever their names, types and shapes, each at a multiple of a cache line, and not to be written."""
    written = {name: make(*kind) for name, kind in kinds.items()}
    write_arrays(tmp_path / "x", ABOUT, written.items())
    found = open_arrays(tmp_path / "x", num_threads)
    assert found.about == ABOUT
    assert list(found.arrays) == list(written)
    for name, array in found.arrays.items():
        assert array.dtype == written[name].dtype
        assert array.shape == written[name].shape
        assert array.tobytes() == written[name].tobytes()
        assert array.ctypes.data % 64 == 0 or array.size == 0
        assert not array.flags.writeable


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_flipped_bit_is_found(path, data):
    """In the header, an array or the index; bytes between them belong to nobody."""
    whole = path.read_bytes()
    _, _, _, index_offset, _ = PREAMBLE.unpack_from(whole)
    ours = [*range(PREAMBLE.size), *range(DATA_OFFSET, DATA_OFFSET + 300)]
    ours += [*range(DATA_OFFSET + 320, DATA_OFFSET + 600), *range(index_offset, len(whole))]
    damaged = bytearray(whole)
    damaged[data.draw(st.sampled_from(ours))] ^= 1 << data.draw(st.integers(0, 7))
    copy = path.with_name("damaged")
    copy.write_bytes(damaged)
    with pytest.raises(ArrayFileError, match="damaged"):
        open_arrays(copy)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_file_of_another_length_is_refused(path, data):
    """A tail that never reached the disk, or one that does not belong."""
    whole = path.read_bytes()
    copy = path.with_name("cut")
    copy.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(ArrayFileError, match="cut"):
        open_arrays(copy)
    copy.write_bytes(whole + bytes(data.draw(st.integers(1, 5000))))
    with pytest.raises(ArrayFileError, match="cut"):
        open_arrays(copy)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=9000))
def test_nonsense_is_refused(tmp_path, junk):
    """A file of something else."""
    (tmp_path / "junk").write_bytes(junk)
    with pytest.raises(ArrayFileError, match="junk"):
        open_arrays(tmp_path / "junk")


def test_an_index_that_lies_is_refused(tmp_path):
    """Its checksum is right, but an array reaches into the index."""
    write_arrays(tmp_path / "x", ABOUT, [("a", make("int8", (10,), 0))])
    whole = bytearray((tmp_path / "x").read_bytes())
    _, _, _, offset, _ = PREAMBLE.unpack_from(whole)
    entries = (array_file._Entry("a", "int8", (4000,), DATA_OFFSET, 0),)
    index = array_file.msgspec.msgpack.encode(array_file._Index(ABOUT, entries))
    header = PREAMBLE.pack(array_file.MAGIC, array_file.VERSION, array_file.crc32c(index), offset, len(index))
    (tmp_path / "y").write_bytes(header + bytes(whole[len(header) : offset]) + index)
    with pytest.raises(ArrayFileError, match="array a lies outside"):
        open_arrays(tmp_path / "y")


def test_a_disk_that_fills_leaves_nothing(path, monkeypatch):
    """The error goes to the caller, the file that had the name keeps it, and no half of one stays."""
    before = path.read_bytes()

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_file.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(path, ABOUT, [("a", make("int8", (1 << 16,), 3))])
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_array_that_cannot_be_made_leaves_nothing(tmp_path):
    """A model that turns out to be unfit halfway."""

    def broken():
        yield "a", make("int8", (10,), 0)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_arrays(tmp_path / "x", ABOUT, broken())
    assert list(tmp_path.iterdir()) == []
