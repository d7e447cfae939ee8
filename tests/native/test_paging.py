"""Paging agrees with a dictionary from page to frame, and gives back what it took."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from native.paging import MemoryPool, ReservedRange, count_mappings, mapping_limit

NUM_FRAMES, NUM_PAGES = 6, 8


def num_open_files() -> int:
    """File descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


class PagingMachine(RuleBasedStateMachine):
    """Whatever is written through a mapping is read through every other mapping of the same frame."""

    @initialize(frame_pages=st.sampled_from([1, 2, 16]))
    def open(self, frame_pages: int) -> None:
        self.frame_bytes = frame_pages * mmap.PAGESIZE
        self.pool = MemoryPool(NUM_FRAMES, self.frame_bytes)
        self.range = ReservedRange(self.pool, NUM_PAGES)
        self.table: dict[int, int] = {}
        self.contents = dict.fromkeys(range(NUM_FRAMES), bytes(16))

    @rule(data=st.data(), pages=st.lists(st.integers(0, NUM_PAGES - 1), min_size=1, max_size=5, unique=True))
    def map(self, data: st.DataObject, pages: list[int]) -> None:
        frame = st.integers(0, NUM_FRAMES - 1)
        pfns = data.draw(st.lists(frame, min_size=len(pages), max_size=len(pages)))
        self.range.map_frames(pages, pfns)
        self.table.update(zip(pages, pfns, strict=True))

    @rule(first=st.integers(0, NUM_PAGES - 3), count=st.integers(1, 3))
    def unmap(self, first: int, count: int) -> None:
        self.range.unmap_pages(first, count)
        for page in range(first, first + count):
            self.table.pop(page, None)

    @precondition(lambda self: self.table)
    @rule(data=st.data(), pattern=st.binary(min_size=16, max_size=16))
    def write(self, data: st.DataObject, pattern: bytes) -> None:
        page = data.draw(st.sampled_from(sorted(self.table)))
        end = (page + 1) * self.frame_bytes
        self.range.buffer()[page * self.frame_bytes : page * self.frame_bytes + 8] = pattern[:8]
        self.range.buffer()[end - 8 : end] = pattern[8:]
        self.contents[self.table[page]] = pattern

    @rule(source=st.integers(0, NUM_FRAMES - 1), step=st.integers(1, NUM_FRAMES - 1))
    def copy(self, source: int, step: int) -> None:
        target = (source + step) % NUM_FRAMES
        self.pool.copy_frames([source], [target])
        self.contents[target] = self.contents[source]

    @invariant()
    def every_mapping_shows_its_frame(self) -> None:
        size = self.frame_bytes
        views = [(self.pool.buffer(), pfn, pfn) for pfn in range(NUM_FRAMES)]
        views += [(self.range.buffer(), page, pfn) for page, pfn in self.table.items()]
        for buffer, page, pfn in views:
            seen = buffer[page * size : page * size + 8] + buffer[(page + 1) * size - 8 : (page + 1) * size]
            assert seen == self.contents[pfn]

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.range.close()
            self.pool.close()


PagingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestPaging = PagingMachine.TestCase


def test_nothing_is_left_open() -> None:
    """Files and mappings are back where they were, also when a constructor refuses."""

    def open_and_close() -> None:
        with MemoryPool(4, 1 << 16) as pool:
            with ReservedRange(pool, 64) as range_:
                range_.map_frames([0, 1, 5, 63], [3, 2, 3, 0])
                range_.close()  # twice is fine
            with pytest.raises(OSError, match="cannot reserve"):
                ReservedRange(pool, 1 << 40)

    open_and_close()  # whatever the first run allocates for good
    num_files, num_maps = num_open_files(), count_mappings()
    for _ in range(20):
        open_and_close()
    assert num_open_files() == num_files
    assert abs(count_mappings() - num_maps) <= 2  # the interpreter's own arenas come and go


def test_adjacent_frames_take_one_mapping() -> None:
    """A run of adjacent pages and frames costs one mapping, scattered ones cost one each."""
    with MemoryPool(64, mmap.PAGESIZE) as pool, ReservedRange(pool, 64) as range_:
        before = count_mappings()
        range_.map_frames(list(range(64)), list(range(64)))
        assert count_mappings() <= before + 1
        range_.map_frames(list(range(64)), list(range(64))[::-1])
        assert count_mappings() >= before + 60


@pytest.mark.parametrize(
    ("pages", "pfns", "named"),
    [
        ([8], [0], "pages 8 to 9 are outside"),
        ([-1], [0], "pages -1 to 0 are outside"),
        ([0], [4], "frame 4 is outside a pool of 4"),
        ([0], [-1], "frame -1 is outside"),
        ([0, 1], [0], "2 pages for 1 frames"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_mapped(
    pages: list[int], pfns: list[int], named: str
) -> None:
    """A page or frame out of range names itself."""
    with MemoryPool(4, mmap.PAGESIZE) as pool, ReservedRange(pool, 8) as range_:
        before = count_mappings()
        with pytest.raises(ValueError, match=named):
            range_.map_frames(pages, pfns)
        assert count_mappings() == before


def test_bad_sizes_and_uses_are_refused() -> None:
    """Frames that are no multiple of a page, empty pools and ranges, closed ones, a copy onto itself."""
    for num_frames, frame_bytes in ((1, 100), (1, 0), (0, mmap.PAGESIZE)):
        with pytest.raises(ValueError, match=r"not a multiple|needs a frame"):
            MemoryPool(num_frames, frame_bytes)
    with MemoryPool(2, mmap.PAGESIZE) as pool:
        with pytest.raises(ValueError, match="needs a page"):
            ReservedRange(pool, 0)
        with pytest.raises(ValueError, match="onto itself"):
            pool.copy_frames([1], [1])
        with ReservedRange(pool, 2) as range_:
            pass
        with pytest.raises(ValueError, match="closed"):
            range_.map_frames([0], [0])
        with pytest.raises(ValueError, match="closed"):
            range_.buffer()
    with pytest.raises(ValueError, match="closed"):
        pool.copy_frames([0], [1])


def test_the_mapping_limit_is_an_error_with_a_name() -> None:
    """Too many mappings is ENOMEM that names the page, not a crash; closing makes room again."""
    program = f"""
import mmap
from native.paging import MemoryPool, ReservedRange, mapping_limit
pages = mapping_limit() + 10
with MemoryPool(2, mmap.PAGESIZE) as pool, ReservedRange(pool, pages) as range_:
    try:
        range_.map_frames(list(range(pages)), [0] * pages)
    except OSError as error:
        assert error.errno == {errno.ENOMEM}, error
        print(error)
"""
    if mapping_limit() > 1 << 18:
        pytest.skip("the system allows so many mappings that reaching the limit takes long")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root
    )
    assert "cannot map frame" in result.stdout, result.stderr


def test_touching_an_unmapped_page_ends_the_process() -> None:
    """A stale address is a crash of the driver, never somebody else's keys."""
    program = """
import mmap
from native.paging import MemoryPool, ReservedRange
pool = MemoryPool(2, mmap.PAGESIZE)
range_ = ReservedRange(pool, 2)
range_.map_frames([1], [0])
range_.unmap_pages(1, 1)
range_.buffer()[mmap.PAGESIZE]
"""
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, cwd=root)
    assert result.returncode == -11
