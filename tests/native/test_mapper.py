"""The thread that maps pages: what it was asked for is there when it was waited for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native._cpu import ffi

from native.mapper import PageMapper
from native.paging import MemoryPool, ReservedRange

FRAME_BYTES, NUM_FRAMES, NUM_PAGES = 8192, 6, 12


@pytest.fixture
def place() -> Iterator[ReservedRange]:
    """A reserved range over a pool whose frames hold their own numbers."""
    with MemoryPool(NUM_FRAMES, FRAME_BYTES) as pool, ReservedRange(pool, NUM_PAGES) as place:
        for pfn in range(NUM_FRAMES):
            pool.buffer()[pfn * FRAME_BYTES : (pfn + 1) * FRAME_BYTES] = bytes([pfn + 1]) * FRAME_BYTES
        yield place


JOBS = st.lists(
    st.lists(
        st.tuples(st.integers(0, NUM_PAGES - 1), st.integers(0, NUM_FRAMES - 1)), min_size=1, max_size=4
    ),
    max_size=12,
)


@settings(max_examples=40)
@given(jobs=JOBS, waits=st.lists(st.booleans(), min_size=12, max_size=12))
def test_pages_show_the_frames_that_were_asked_for_last(
    jobs: list[list[tuple[int, int]]], waits: list[bool]
) -> None:
    """Jobs are done in order, whether one waits for each or for the last, and contents stay as they are."""
    with MemoryPool(NUM_FRAMES, FRAME_BYTES) as pool, ReservedRange(pool, NUM_PAGES) as place:
        for pfn in range(NUM_FRAMES):
            pool.buffer()[pfn * FRAME_BYTES : (pfn + 1) * FRAME_BYTES] = bytes([pfn + 1]) * FRAME_BYTES
        mapper = PageMapper(place)
        model: dict[int, int] = {}
        submitted = []
        for pairs, must_wait in zip(jobs, waits, strict=False):
            model.update(pairs)
            submitted.append(mapper.submit([page for page, _ in pairs], [pfn for _, pfn in pairs]))
            if must_wait:
                mapper.wait(submitted[-1])
        for job in submitted:
            mapper.wait(job)
            assert job.seconds > 0
        for page, pfn in model.items():
            start = page * FRAME_BYTES
            assert place.buffer()[start : start + FRAME_BYTES] == bytes([pfn + 1]) * FRAME_BYTES
        mapper.close()
        mapper.close()


def test_closing_finishes_what_was_begun(place: ReservedRange) -> None:
    """Nobody need wait for jobs one by one."""
    mapper = PageMapper(place)
    jobs = [mapper.submit([page], [page % NUM_FRAMES]) for page in range(NUM_PAGES)]
    mapper.close()
    assert [place.buffer()[job.pages[0] * FRAME_BYTES] for job in jobs] == [
        bytes([page % NUM_FRAMES + 1]) for page in range(NUM_PAGES)
    ]


def test_bad_numbers_are_refused_at_once(place: ReservedRange) -> None:
    """As for a map that is waited for."""
    mapper = PageMapper(place)
    for pages, pfns, named in (
        ([NUM_PAGES], [0], "pages 12"),
        ([0], [NUM_FRAMES], "frame 6"),
        ([0], [], "0 f"),
    ):
        with pytest.raises(ValueError, match=named):
            mapper.submit(pages, pfns)
    mapper.close()


def test_what_the_system_refuses_is_told_to_who_waits(place: ReservedRange) -> None:
    """With the reason; the mapper goes on."""
    pool = SimpleNamespace(frame_bytes=FRAME_BYTES, fd=-1)
    broken = SimpleNamespace(base=place.base, pool=pool, check_pairs=place.check_pairs)
    mapper = PageMapper(cast("Any", broken))
    for _ in range(2):
        with pytest.raises(OSError, match=r"cannot map frames \(1,\) at \(0,\)") as caught:
            mapper.wait(mapper.submit([0], [1]))
        assert caught.value.errno == errno.EBADF
    mapper.close()


@pytest.mark.skipif(
    tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) < (5, 14),
    reason="the system cannot populate mappings",
)
def test_pages_are_populated(place: ReservedRange) -> None:
    """Whoever reaches one causes no fault: all of it is resident before anybody has touched it."""
    mapper = PageMapper(place)
    mapper.wait(mapper.submit([3], [2]))
    place.map_frames([5], [4])
    resident = {}
    for page in (3, 5):
        (entry,) = re.findall(
            rf"^{int(ffi.cast('uintptr_t', place.base)) + page * FRAME_BYTES:x}-.*?^Rss: +(\d+) kB",
            Path("/proc/self/smaps").read_text(),
            re.MULTILINE | re.DOTALL,
        )
        resident[page] = int(entry)
    assert resident == {3: FRAME_BYTES >> 10, 5: 0}
    mapper.close()
