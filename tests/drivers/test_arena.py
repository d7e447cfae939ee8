"""Both arenas agree with a model of frames that remember what was written to them.

That of CUDA runs on a stand-in for the driver, whose kernels write as late as they may.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from drivers import host_arena as arena_module
from drivers.arena import Arena
from drivers.cuda_arena import CudaArena
from drivers.host_arena import HostArena, max_virtual_frames
from drivers.page_table import ArenaError
from llmos.device import CopyPage, KVFormat, Map, MapWork, Segment
from native.cuda.device import CudaFault, CudaRefused
from native.mapper import PageMapper
from native.paging import count_mappings
from tests.fake_cuda import GRANULE, ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda, load_fake

KV = KVFormat("fp32", (Segment("K", 256), Segment("V", 256)), GRANULE, 256)
FRAME = KV.frame_bytes
NUM_FRAMES, NUM_SPACES, NUM_PAGES = 9, 3, 4  # an odd number: one frame never finds company
CPU = torch.device("cpu")


def open_arena(kind: str, *, debug: bool = False) -> Arena:
    """An arena of NUM_FRAMES frames; that of CUDA on a lazy stand-in, as if the process were new."""
    if kind == "host":
        return HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES, debug=debug)
    fake = load_fake()
    fake.reset()
    fake.be_lazy()
    return CudaArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES, device=fake.open(), torch_device=CPU, debug=debug)


def close(arena: Arena) -> None:
    """Close it; on the stand-in nothing is left."""
    arena.close()
    if isinstance(arena, CudaArena):
        arena._frames.device.close()
        assert not any(load_fake().count_live())


class ArenaMachine(RuleBasedStateMachine):
    """The kernel's view: pages of frames that are shared, copied, given up and recombined."""

    @initialize(kind=st.sampled_from(["host", "cuda"]), debug=st.booleans())
    def open(self, kind: str, debug: bool) -> None:
        self.arena = open_arena(kind, debug=debug)
        self.fake = load_fake() if kind == "cuda" else None
        self.contents: dict[tuple[int, int], tuple[int, int]] = {}  # live pages: what their frames hold
        self.tables: dict[int, dict[int, tuple[int, int]]] = {}
        self.ahead: dict[int, dict[int, tuple[int, int]]] = {}  # mapped ahead of need; their frames stay free
        self.stale: set[tuple[int, int]] = set()  # those whose frames were given to somebody else since
        self.next_value = 1

    def is_used(self, page: tuple[int, int]) -> bool:
        """True when a table names the page."""
        return any(page in table.values() for table in self.tables.values())

    def free_frames(self) -> list[int]:
        """Frames of no live page."""
        return sorted(set(range(NUM_FRAMES)) - {pfn for page in self.contents for pfn in page})

    @precondition(lambda self: len(self.tables) < NUM_SPACES)
    @rule(data=st.data())
    def reserve(self, data: st.DataObject) -> None:
        asid = data.draw(st.sampled_from(sorted(set(range(NUM_SPACES)) - set(self.tables))))
        self.arena.reserve(asid)
        self.tables[asid], self.ahead[asid] = {}, {}

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        asid = data.draw(st.sampled_from(sorted(self.tables)))
        self.arena.release(asid)
        del self.tables[asid], self.ahead[asid]

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        """The kernel frees a page that nobody maps; the arena is not told."""
        idle = [page for page in sorted(self.contents) if not self.is_used(page)]
        if idle:
            del self.contents[data.draw(st.sampled_from(idle))]

    @precondition(lambda self: self.tables and len(self.free_frames()) > 1)
    @rule(data=st.data())
    def map_fresh(self, data: st.DataObject) -> None:
        """Map two free frames in any combination, and write to them."""
        asid, vpn = data.draw(st.sampled_from(sorted(self.tables))), data.draw(st.integers(0, NUM_PAGES - 1))
        k, v = data.draw(st.permutations(self.free_frames()))[:2]
        self.hand_out(k, v)
        self.arena.map(Map(asid, vpn, (k, v)))
        self.write(asid, vpn, (k, v))

    def hand_out(self, *frames: int) -> None:
        """The kernel gives free frames to somebody; pages that were mapped ahead on them are nobody's now."""
        for asid, pages in self.ahead.items():
            self.stale |= {(asid, vpn) for vpn, page in pages.items() if not set(frames).isdisjoint(page)}

    def write(self, asid: int, vpn: int, page: tuple[int, int]) -> None:
        """A process writes to a page that is mapped for it alone."""
        self.tables[asid][vpn] = page
        self.ahead[asid].pop(vpn, None)
        value, self.next_value = self.next_value, self.next_value + 1
        for segment, tensor in enumerate(self.arena.segments):
            index = self.arena.page_index(asid, vpn)
            self.launch(tensor[index * FRAME : (index + 1) * FRAME], (2 * value + segment) % 256)
        self.arena.mark_step([asid])
        self.contents[page] = ((2 * value) % 256, (2 * value + 1) % 256)

    def launch(self, frame: torch.Tensor, value: int) -> None:
        """A kernel fills a frame: on the device some time, on the processor now."""
        if self.fake is not None:
            self.fake.launch_fill(frame.data_ptr(), FRAME, value)
        else:
            frame.fill_(value)

    @rule()
    def catch_up(self) -> None:
        """The device has done all that was launched."""
        if isinstance(self.arena, CudaArena):
            self.arena._frames.device.synchronize()

    @precondition(lambda self: self.tables and len(self.free_frames()) > 1)
    @rule(data=st.data())
    def map_ahead(self, data: st.DataObject) -> None:
        """Map two free frames at a page that nobody reads, for later."""
        asid, vpn = data.draw(st.sampled_from(sorted(self.tables))), data.draw(st.integers(0, NUM_PAGES - 1))
        k, v = data.draw(st.permutations(self.free_frames()))[:2]
        self.hand_out(k, v)
        self.arena.map(Map(asid, vpn, (k, v), is_ahead=True))
        self.tables[asid].pop(vpn, None)
        self.ahead[asid][vpn] = (k, v)
        self.stale.discard((asid, vpn))

    @precondition(lambda self: any(self.ahead.values()))
    @rule(data=st.data())
    def use_ahead(self, data: st.DataObject) -> None:
        """A process reaches a page that was mapped ahead, if nobody else was given its frames meanwhile."""
        usable = [
            (asid, vpn)
            for asid, pages in self.ahead.items()
            for vpn in pages
            if (asid, vpn) not in self.stale
        ]
        if usable:
            asid, vpn = data.draw(st.sampled_from(usable))
            self.arena.finish_maps(asid, vpn + 1)
            self.write(asid, vpn, self.ahead[asid][vpn])

    @precondition(lambda self: self.tables and self.contents)
    @rule(data=st.data())
    def map_shared(self, data: st.DataObject) -> None:
        """Map a page that others map, or that only the prefix cache knows."""
        asid, vpn = data.draw(st.sampled_from(sorted(self.tables))), data.draw(st.integers(0, NUM_PAGES - 1))
        page = data.draw(st.sampled_from(sorted(self.contents)))
        self.arena.map(Map(asid, vpn, page))
        self.tables[asid][vpn] = page
        self.ahead[asid].pop(vpn, None)

    @precondition(lambda self: self.contents and len(self.free_frames()) > 1)
    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        """Copy a live page to free frames."""
        source = data.draw(st.sampled_from(sorted(self.contents)))
        k, v = data.draw(st.permutations(self.free_frames()))[:2]
        self.hand_out(k, v)
        self.arena.copy_page(CopyPage(source, (k, v)))
        self.contents[k, v] = self.contents[source]

    @invariant()
    def every_page_shows_its_frames(self) -> None:
        is_behind = getattr(self, "fake", None) is not None and self.fake.count().waiting > 0
        for asid, table in getattr(self, "tables", {}).items():
            mapped = table.keys() | self.ahead[asid].keys()
            num_mapped = next(vpn for vpn in range(NUM_PAGES + 1) if vpn not in mapped)
            assert self.arena.num_mapped_pages(asid) == num_mapped
            for vpn, page in () if is_behind else table.items():
                index = self.arena.page_index(asid, vpn)
                for tensor, value in zip(self.arena.segments, self.contents[page], strict=True):
                    frame = tensor[index * FRAME : (index + 1) * FRAME]
                    assert bool((frame == value).all())

    def teardown(self) -> None:
        if hasattr(self, "arena"):
            self.catch_up()
            self.every_page_shows_its_frames()
            close(self.arena)


ArenaMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestArenas = ArenaMachine.TestCase


@pytest.fixture(params=["host", "cuda"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """Each kind of arena, with space 0 open."""
    arena = open_arena(request.param)
    arena.reserve(0)
    yield arena
    close(arena)


def test_bad_edits_are_named(arena: Arena) -> None:
    """An edit that cannot be carried out says which number is wrong, and changes nothing."""
    for asid, named in ((0, "space 0 is open"), (3, "space 3 is outside the 3"), (-1, "space -1")):
        with pytest.raises(ArenaError, match=named):
            arena.reserve(asid)
    with pytest.raises(ArenaError, match="space 1 is not open"):
        arena.release(1)
    for edit, named in (
        (Map(1, 0, (0, 1)), "space 1 is not open"),
        (Map(0, 4, (0, 1)), "page 4 is outside the 4"),
        (Map(0, 0, (0,)), "takes 2 different frames"),
        (Map(0, 0, (1, 1)), "takes 2 different frames"),
        (Map(0, 0, (0, 9)), "frame 9 is outside the 9"),
    ):
        with pytest.raises(ArenaError, match=named):
            arena.map(edit)
    assert arena.num_mapped_pages(0) == 0
    with pytest.raises(ArenaError, match="one is in both"):
        arena.copy_page(CopyPage((0, 1), (1, 2)))


def test_a_space_is_contiguous_for_kernels(arena: Arena) -> None:
    """A space's pages lie side by side whatever frames they are in, K and V alike."""
    arena.reserve(1)
    for vpn, pfns in enumerate(((7, 2), (0, 5), (3, 1))):
        arena.map(Map(1, vpn, pfns))
    keys, values = arena.segments
    start = arena.page_index(1, 0) * KV.frame_bytes
    run = torch.arange(3 * KV.frame_bytes) % 251
    keys[start : start + len(run)] = run.to(torch.uint8)
    values[start : start + len(run)] = run.to(torch.uint8)
    arena.reserve(2)
    arena.map(Map(2, 0, (0, 5)))
    shared = arena.page_index(2, 0) * KV.frame_bytes
    for tensor in (keys, values):
        assert torch.equal(tensor[shared : shared + FRAME], run[FRAME : 2 * FRAME].to(torch.uint8))


def test_nothing_is_left_open() -> None:
    """Closing an arena gives back its files and mappings."""

    def use() -> None:
        for debug in (False, True):
            arena = open_arena("host", debug=debug)
            arena.reserve(0)
            arena.map(Map(0, 0, (0, 1)))
            arena.release(0)
            arena.close()
            arena.close()

    use()
    before = len(os.listdir("/proc/self/fd")), count_mappings()
    for _ in range(10):
        use()
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert abs(count_mappings() - before[1]) <= 2


def test_debug_mode_unmaps_at_once() -> None:
    """A released space keeps its mappings, and in debug mode it does not."""
    for debug, num_left in ((False, 4), (True, 0)):
        arena = HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES, debug=debug)
        arena.reserve(0)
        arena.map(Map(0, 0, (0, 2)))
        arena.map(Map(0, 1, (4, 6)))
        arena.release(0)
        assert arena.num_mappings == num_left
        arena.close()


def test_mappings_made_since_frames_were_counted_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver counts what it may have, measures its model, and opens the arena with a few mappings more."""
    monkeypatch.setattr(arena_module, "SPARE_MAPPINGS", 40)
    limit = count_mappings() + 40 + 2 * NUM_SPACES + 6
    monkeypatch.setattr(arena_module, "mapping_limit", lambda: limit)
    num_frames = max_virtual_frames(NUM_SPACES, 2)
    others = [HostArena(KV, 2, 1, 1) for _ in range(2)]
    HostArena(KV, num_frames, NUM_SPACES, NUM_PAGES).close()
    for other in others:
        other.close()


def test_the_limit_on_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many frames are refused with the way out; stale mappings make room; live ones are an error."""
    monkeypatch.setattr(arena_module, "SPARE_MAPPINGS", 0)
    monkeypatch.setattr(arena_module, "mapping_limit", lambda: count_mappings() + 2 * NUM_SPACES + 7)
    assert max_virtual_frames(NUM_SPACES, 2) == 7
    with pytest.raises(ArenaError, match=r"vm\.max_map_count .*larger frames"):
        HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES)
    arena = HostArena(KV, 6, NUM_SPACES, NUM_PAGES)
    for asid in (0, 1):
        arena.reserve(asid)
        arena.map(Map(asid, 0, (0, 2)))
    arena.map(Map(0, 1, (3, 5)))
    arena.release(1)
    arena.reserve(2)
    arena.map(Map(2, 0, (0, 2)))  # the mappings of space 1 had to go
    assert arena.num_mappings == 6
    with pytest.raises(ArenaError, match="6 frames are mapped"):
        arena.map(Map(2, 1, (3, 5)))
    assert arena.num_mapped_pages(2) == 1
    arena.close()


def test_without_room_for_a_mapping_ahead_the_row_that_needs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And each one after it; when there is room again, the page is mapped then."""
    monkeypatch.setattr(arena_module, "SPARE_MAPPINGS", 0)
    monkeypatch.setattr(arena_module, "mapping_limit", lambda: count_mappings() + 2 * NUM_SPACES + 4)
    arena = HostArena(KV, 4, NUM_SPACES, NUM_PAGES)
    arena.reserve(0)
    arena.reserve(1)
    arena.map(Map(0, 0, (0, 1)))
    arena.map(Map(0, 1, (2, 3)))
    arena.map(Map(1, 0, (0, 1), is_ahead=True))
    for _ in range(2):
        with pytest.raises(ArenaError, match="4 frames are mapped"):
            arena.finish_maps(1, 1)
    arena.release(0)
    arena.finish_maps(1, 1)
    arena.segments[0][arena.page_index(1, 0) * KV.frame_bytes] = 7
    work = arena.map_work()
    assert (work.num_sync, work.num_ahead, work.num_reused, work.num_late, work.num_unmapped) == (
        3,
        1,
        0,
        0,
        2,
    )
    arena.close()


def test_what_is_mapped_already_is_not_mapped_again() -> None:
    """A space that gets back what its asid had needs no system call, ahead or not."""
    arena = HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES)
    for _ in range(2):
        arena.reserve(1)
        arena.map(Map(1, 0, (0, 2)))
        arena.map(Map(1, 1, (4, 6), is_ahead=True))
        arena.finish_maps(1, 2)
        arena.release(1)
    work = arena.map_work()
    assert (work.num_sync, work.num_ahead, work.num_reused) == (1, 1, 2)
    arena.reserve(1)
    arena.map(Map(1, 0, (2, 0)))
    assert arena.map_work().num_sync == 2
    arena.close()


def test_what_was_mapped_is_told_once() -> None:
    """Each call tells what came since the one before, None for nothing; together they are all there was."""
    arena = HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES, debug=True)
    assert arena.take_map_work() is None
    arena.reserve(1)
    arena.map(Map(1, 0, (0, 2)))
    first = arena.take_map_work()
    assert first is not None
    assert (first.num_sync, first.num_ahead, first.num_unmapped, first.beside_seconds) == (1, 0, 0, 0.0)
    assert first.wait_seconds > 0
    arena.map(Map(1, 1, (4, 6), is_ahead=True))
    arena.finish_maps(1, 2)
    arena.map(Map(1, 0, (0, 2)))
    second = arena.take_map_work()
    assert second is not None
    assert (second.num_sync, second.num_ahead, second.num_reused) == (0, 1, 1)
    assert second.beside_seconds > 0
    assert (second.wait_seconds > 0) == (second.num_late == 1)
    assert arena.take_map_work() is None
    arena.release(1)
    third = arena.take_map_work()
    assert third == MapWork(num_unmapped=2)
    assert first.plus(second).plus(third) == arena.map_work()
    arena.close()


def test_what_the_mapper_could_not_map_is_mapped_when_a_row_needs_it() -> None:
    """A refusal in the background is not the end of it."""
    arena = HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES)
    arena._mapper.close()
    pool = SimpleNamespace(frame_bytes=KV.frame_bytes, fd=-1)
    place = SimpleNamespace(base=arena._range.base, pool=pool, check_pairs=arena._range.check_pairs)
    arena._mapper = PageMapper(cast("Any", place))
    arena.reserve(0)
    arena.map(Map(0, 0, (3, 5), is_ahead=True))
    arena.finish_maps(0, 1)
    arena.segments[1][arena.page_index(0, 0) * KV.frame_bytes] = 7
    arena.map(Map(0, 1, (4, 6), is_ahead=True))
    arena.map(Map(0, 1, (4, 6)))
    arena.segments[1][arena.page_index(0, 1) * KV.frame_bytes] = 8
    assert arena.map_work().num_sync == 2
    arena.close()


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    """The stand-in, lazy."""
    fake = load_fake()
    yield fake
    fake.reset()


def test_the_first_page_of_a_segment_always_has_memory(fake: FakeCuda) -> None:
    """What a launcher asks the driver of a tensor's address is answered, whatever spaces come and go."""
    arena = open_arena("cuda", debug=True)

    def look() -> None:
        load_fake().open().synchronize()
        for segment in arena.segments:
            segment[0] = 1  # a page without memory would end the process

    look()
    arena.reserve(0)
    for vpn in range(2):
        arena.map(Map(0, vpn, (5 + 2 * vpn, 6 + 2 * vpn)))
    look()
    arena.release(0)
    look()
    arena.close()


def test_a_refusal_is_of_one_edit_and_a_fault_of_the_device(fake: FakeCuda) -> None:
    """A map that the driver refuses is named and can be made again; after a fault nothing can."""
    arena = open_arena("cuda")
    arena.reserve(0)
    fake.fail("cuMemMap", OUT_OF_MEMORY)
    with pytest.raises(CudaRefused, match="cuMemMap: CUDA_ERROR_OUT_OF_MEMORY"):
        arena.map(Map(0, 1, (2, 3)))
    assert arena.num_mapped_pages(0) == 0
    for vpn in range(2):
        arena.map(Map(0, vpn, (2 + 2 * vpn, 3 + 2 * vpn)))
    fake.fail("cuMemSetAccess", OUT_OF_MEMORY)
    arena.map(Map(0, 2, (6, 7), is_ahead=True))
    arena.finish_maps(0, 3)  # what the mapper could not do is done now
    assert arena.num_mapped_pages(0) == 3
    fake.fail("cuMemMap", ILLEGAL_ADDRESS)
    arena.map(Map(0, 3, (0, 1), is_ahead=True))
    with pytest.raises(CudaFault, match="cuMemMap: CUDA_ERROR_ILLEGAL_ADDRESS"):
        arena.finish_maps(0, 4)
    with pytest.raises(CudaFault, match="cuMemMap: CUDA_ERROR_ILLEGAL_ADDRESS"):
        arena.mark_step([0])
    with pytest.raises(CudaFault, match="cuMemMap: CUDA_ERROR_ILLEGAL_ADDRESS"):
        arena.close()


@pytest.mark.parametrize(
    "call", ["cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuEventCreate", "cuMemSetAccess"]
)
def test_a_fault_on_the_way_is_told_by_the_call_that_met_it(fake: FakeCuda, call: str) -> None:
    """What gives back the half of an arena fails as well, and does not hide which call was the first."""
    fake.reset()
    device = fake.open()
    fake.fail(call, ILLEGAL_ADDRESS, after=0 if call == "cuEventCreate" else 1)
    with pytest.raises(CudaFault, match=f"^{call}: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        CudaArena(KV, 9, 3, 4, device=device, torch_device=CPU)


def test_an_arena_that_does_not_fit_keeps_nothing(fake: FakeCuda) -> None:
    """Whichever call is refused on the way, frames, addresses and events go back."""
    fake.reset()
    device = fake.open()
    for call in ("cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuEventCreate", "cuMemSetAccess"):
        for after in (0, 1):
            fake.fail(call, OUT_OF_MEMORY, after)
            with pytest.raises(CudaRefused, match=f"{call}: CUDA_ERROR_OUT_OF_MEMORY"):
                CudaArena(KV, 9, 3, 4, device=device, torch_device=CPU)
            assert fake.count_live() == (0, 0, 0, 0, 1, 0, 0)
            if call == "cuEventCreate":
                break  # there is one
    device.close()
