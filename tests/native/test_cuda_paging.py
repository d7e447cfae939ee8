"""Paging on a GPU agrees with a dictionary from page to frame, on a driver that enforces its rules."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from native.cuda.device import CudaDevice, CudaFault, CudaRefused, ffi
from native.cuda.mapper import CudaMapper
from native.cuda.paging import CudaPool, CudaRange
from tests.fake_cuda import GRANULE, ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda, load_fake

NUM_FRAMES, NUM_PAGES = 5, 8


def read(place: CudaRange, page: int) -> tuple[int, int]:
    """The first and the last byte of a page."""
    data = ffi.buffer(ffi.cast("char *", place.base + page * place.pool.frame_bytes), place.pool.frame_bytes)
    return data[0][0], data[place.pool.frame_bytes - 1][0]


class CudaPagingMachine(RuleBasedStateMachine):
    """Kernels write late through mappings; maps, unmaps and refusals come between, from two threads."""

    @initialize(granules=st.sampled_from([1, 2]))
    def open(self, granules: int) -> None:
        self.fake = load_fake()
        self.fake.reset()
        self.fake.be_lazy()
        self.device = self.fake.open()
        self.pool = CudaPool(self.device, NUM_FRAMES, granules * GRANULE)
        self.last_steps = dict.fromkeys(range(NUM_PAGES), 0)
        self.place = CudaRange(self.pool, NUM_PAGES, self.last_steps.__getitem__)
        self.mapper = CudaMapper(self.place)
        self.table: dict[int, int] = {}
        self.contents = dict.fromkeys(range(NUM_FRAMES), 0)

    @rule(
        data=st.data(),
        pages=st.lists(st.integers(0, NUM_PAGES - 1), min_size=1, max_size=5, unique=True),
        by_thread=st.booleans(),
    )
    def map(self, data: st.DataObject, pages: list[int], by_thread: bool) -> None:
        frame = st.integers(0, NUM_FRAMES - 1)
        pfns = data.draw(st.lists(frame, min_size=len(pages), max_size=len(pages)))
        if by_thread:
            self.mapper.wait(self.mapper.submit(pages, pfns))
        else:
            self.place.map_frames(pages, pfns)
        self.table.update(zip(pages, pfns, strict=True))

    @rule(first=st.integers(0, NUM_PAGES - 3), count=st.integers(1, 3))
    def unmap(self, first: int, count: int) -> None:
        self.place.unmap_pages(first, count)
        for page in range(first, first + count):
            self.table.pop(page, None)

    @precondition(lambda self: self.table)
    @rule(data=st.data(), value=st.integers(0, 255))
    def launch(self, data: st.DataObject, value: int) -> None:
        """A step writes to a page some time; the fence knows of it."""
        page = data.draw(st.sampled_from(sorted(self.table)))
        size = self.pool.frame_bytes
        self.fake.launch_fill(self.place.base + page * size, size, value)
        self.last_steps[page] = self.pool.mark_step()
        self.contents[self.table[page]] = value

    @rule(source=st.integers(0, NUM_FRAMES - 1), step=st.integers(1, NUM_FRAMES - 1))
    def copy(self, source: int, step: int) -> None:
        target = (source + step) % NUM_FRAMES
        self.pool.copy_frames([source], [target])
        self.contents[target] = self.contents[source]

    @rule(
        page=st.integers(0, NUM_PAGES - 2),
        pfns=st.permutations(range(NUM_FRAMES)),
        call=st.sampled_from(["cuMemMap", "cuMemSetAccess"]),
        after=st.integers(0, 1),
    )
    def refuse(self, page: int, pfns: list[int], call: str, after: int) -> None:
        """The driver has no memory for a mapping: each page is as it was asked for, or not mapped at all."""
        self.fake.fail(call, OUT_OF_MEMORY, after)
        wanted = {page: pfns[0], page + 1: pfns[1]}
        try:
            self.place.map_frames(list(wanted), list(wanted.values()))
        except CudaRefused as error:
            assert re.fullmatch(rf"{call}: CUDA_ERROR_OUT_OF_MEMORY", str(error))  # noqa: PT017
            for at in wanted:
                if self.place._frames.get(at) is None:
                    self.table.pop(at, None)
            assert {at: self.place._frames[at] for at in wanted if at in self.table}.items() <= {
                **self.table,
                **wanted,
            }.items()
        else:
            self.table.update(wanted)
        self.fake.fail("", 0, 0)

    @rule()
    def look(self) -> None:
        """After the device has caught up, every mapping shows its frame."""
        self.device.synchronize()
        for page, pfn in self.table.items():
            assert read(self.place, page) == (self.contents[pfn],) * 2

    @invariant()
    def nothing_is_mapped_beyond_the_table(self) -> None:
        if hasattr(self, "place"):
            assert self.fake.count().mappings == NUM_FRAMES + len(self.table)
            assert self.fake.count().frames == NUM_FRAMES

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.look()
            self.mapper.close()
            self.place.close()
            self.pool.close()
            self.device.close()
            assert not any(self.fake.count_live())


CudaPagingMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20)
TestCudaPaging = CudaPagingMachine.TestCase


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    """A machine that was just started."""
    fake = load_fake()
    fake.reset()
    fake.be_lazy()
    yield fake
    fake.reset()


@pytest.fixture
def device(fake: FakeCuda) -> CudaDevice:
    """Its device."""
    return fake.open()


def test_adjacent_pages_get_access_in_one_call(fake: FakeCuda, device: CudaDevice) -> None:
    """Setting access is the dear call: one for a pool, one for each run of pages, none for what is there."""
    before = fake.count().set_access + 1
    place = CudaRange(CudaPool(device, NUM_FRAMES, GRANULE), NUM_PAGES)
    assert fake.count().set_access == before
    place.map_frames([5, 0, 1, 2], [0, 4, 3, 2])
    assert fake.count().set_access == before + 2
    place.map_frames([5, 0, 1, 2], [0, 4, 3, 2])
    assert fake.count().set_access == before + 2


def test_a_pool_that_does_not_fit_keeps_nothing(fake: FakeCuda, device: CudaDevice) -> None:
    """Too little memory names the call and the error, and what was taken goes back."""
    fake.set_memory(3 * GRANULE)
    with pytest.raises(CudaRefused, match="cuMemCreate: CUDA_ERROR_OUT_OF_MEMORY"):
        CudaPool(device, 4, GRANULE)
    assert fake.count_live() == (0, 0, 0, 0, 1, 0, 0)
    CudaPool(device, 3, GRANULE).close()
    device.close()
    device.close()
    assert not any(fake.count_live())


def test_a_fault_is_for_good(fake: FakeCuda, device: CudaDevice) -> None:
    """An illegal access, whenever it is seen, is not taken for a refusal; later calls name the first."""
    pool = CudaPool(device, 2, GRANULE)
    place = CudaRange(pool, 2)
    fake.launch_fill(place.base, GRANULE, 1)  # nothing is mapped there
    for _ in range(2):
        with pytest.raises(CudaFault, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            device.synchronize()
    with pytest.raises(CudaFault, match="cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        place.map_frames([0], [0])
    with pytest.raises(CudaFault, match="cuCtxSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.call("cuMemRelease", 12345)  # by now it is no matter what else is wrong
    assert ILLEGAL_ADDRESS == 700


def test_without_the_fence_memory_is_pulled_away(fake: FakeCuda, device: CudaDevice) -> None:
    """The fake sees what the fence prevents: a step that nobody marked loses its page."""
    pool = CudaPool(device, 2, GRANULE)
    place = CudaRange(pool, 2)
    place.map_frames([0], [0])
    fake.launch_fill(place.base, GRANULE, 1)
    with pytest.raises(CudaFault, match="cuMemUnmap: CUDA_ERROR_ILLEGAL_ADDRESS"):
        place.unmap_pages(0, 1)


def test_a_page_waits_for_its_own_last_step_and_for_no_later_one(fake: FakeCuda, device: CudaDevice) -> None:
    """Of three steps in flight the first is over when its page goes, by either thread; the others run on."""
    pool = CudaPool(device, 4, GRANULE)
    last_steps = [0, 0, 0]
    place = CudaRange(pool, 3, last_steps.__getitem__)
    mapper = CudaMapper(place)
    place.map_frames([0, 1, 2], [0, 1, 2])
    for page in range(3):
        fake.launch_fill(place.base + page * GRANULE, GRANULE, 1 + page)
        last_steps[page] = pool.mark_step()
    assert fake.count().waiting == 3
    place.map_frames([0], [3])
    assert fake.count().waiting == 2
    job = mapper.submit([1], [0])
    last_steps[1] = pool.mark_step()  # launched since: it is nothing to the page as it was
    mapper.wait(job)
    assert fake.count().waiting == 1
    place.unmap_pages(0, 3)
    assert fake.count().waiting == 0
    mapper.close()


def test_more_steps_than_events(fake: FakeCuda, device: CudaDevice) -> None:
    """Whose event was used again waits for a later step, and never for none."""
    pool = CudaPool(device, 1, GRANULE)
    place = CudaRange(pool, 1, lambda page: 1)
    place.map_frames([0], [0])
    fake.launch_fill(place.base, GRANULE, 1)
    for _ in range(20):
        pool.mark_step()
    place.unmap_pages(0, 1)
    assert fake.count().waiting == 0


def test_a_mapper_tells_who_waits(fake: FakeCuda, device: CudaDevice) -> None:
    """A refusal reaches the job's owner and nobody else; jobs before and after it are done."""
    with pytest.raises(CudaRefused, match="cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"):
        CudaDevice(3, fake.library)
    pool = CudaPool(device, NUM_FRAMES, GRANULE)
    place = CudaRange(pool, NUM_PAGES)
    mapper = CudaMapper(place)
    mapper.wait(mapper.submit([0], [0]))
    fake.fail("cuMemSetAccess", OUT_OF_MEMORY)
    refused = mapper.submit([1], [1])
    later = mapper.submit([2], [2])
    mapper.wait(later)
    with pytest.raises(CudaRefused, match="cuMemSetAccess"):
        mapper.wait(refused)
    assert place._frames == {0: 0, 2: 2}
    mapper.close()
    mapper.close()


@pytest.mark.parametrize(
    ("pages", "pfns", "named"),
    [
        ([8], [0], "pages 8 to 9 are outside"),
        ([-1], [0], "pages -1 to 0 are outside"),
        ([0], [5], "frame 5 is outside a pool of 5"),
        ([0, 1], [0], "2 pages for 1 frames"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_mapped(
    device: CudaDevice, pages: list[int], pfns: list[int], named: str
) -> None:
    """As on the CPU."""
    place = CudaRange(CudaPool(device, NUM_FRAMES, GRANULE), NUM_PAGES)
    with pytest.raises(ValueError, match=named):
        place.map_frames(pages, pfns)
    assert place._frames == {}


def test_bad_sizes_and_uses_are_refused(device: CudaDevice) -> None:
    """Frames that are no multiple of the granularity, empty pools and ranges, closed ones, no driver."""
    for num_frames, frame_bytes in ((1, 4096), (1, 0), (0, GRANULE)):
        with pytest.raises(ValueError, match=r"not a multiple|needs a frame"):
            CudaPool(device, num_frames, frame_bytes)
    pool = CudaPool(device, 2, GRANULE)
    with pytest.raises(ValueError, match="needs a page"):
        CudaRange(pool, 0)
    with pytest.raises(ValueError, match="onto itself"):
        pool.copy_frames([1], [1])
    place = CudaRange(pool, 2)
    place.close()
    place.close()
    with pytest.raises(ValueError, match="closed"):
        place.map_frames([0], [0])
    with pytest.raises(CudaRefused, match=r"there is no CUDA driver: .*libnothing"):
        CudaDevice(0, "libnothing.so.1")
