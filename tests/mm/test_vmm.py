"""VMM against a device that carries its edits out, and a model that holds tokens by position."""

from __future__ import annotations

import pytest
from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llmos.device import CopyPage, Edit, KVFormat, Map, MapWork, Release, Reserve, Segment
from llmos.errors import KernelPanic, OutOfFrames, OutOfSpaces
from llmos.mm.address_space import AddressSpace
from llmos.mm.mapper import MappingMode
from llmos.mm.vmm import VMM

KV = KVFormat("test", (Segment("K", 4), Segment("V", 4)), frame_bytes=16, tokens_per_page=4)
NUM_FRAMES = 24
MAX_SPACES = 4
MAX_MODEL_LEN = 22  # ends inside a page

Content = tuple[str, tuple[int, ...]]  # segment, and all tokens up to here: what keys and values depend on


@define
class FakeDevice:
    """Physical memory and page tables, changed by edits and by writes of computed tokens."""

    frames: dict[int, list[Content | None]] = field(factory=dict)
    tables: dict[int, dict[int, tuple[int, ...]]] = field(factory=dict)

    def apply(self, edits: tuple[Edit, ...]) -> None:
        """Carry out edits in order."""
        for edit in edits:
            match edit:
                case Reserve(asid):
                    assert asid not in self.tables
                    self.tables[asid] = {}
                case Release(asid):
                    del self.tables[asid]
                case Map(asid, vpn, pfns):
                    self.tables[asid][vpn] = pfns
                case CopyPage(sources, targets):
                    copies = [list(self.frame(pfn)) for pfn in sources]
                    self.frames.update(zip(targets, copies, strict=True))
                case _:
                    raise AssertionError(edit)

    def frame(self, pfn: int) -> list[Content | None]:
        assert 0 <= pfn < NUM_FRAMES
        return self.frames.setdefault(pfn, [None] * KV.tokens_per_page)

    def write(self, asid: int, tokens: list[int], start: int) -> None:
        """Compute positions start … len(tokens) - 1."""
        for position in range(start, len(tokens)):
            vpn, slot = divmod(position, KV.tokens_per_page)
            for segment, pfn in zip(KV.segments, self.tables[asid][vpn], strict=True):
                self.frame(pfn)[slot] = (segment.name, tuple(tokens[: position + 1]))

    def read(self, asid: int, position: int) -> list[Content | None]:
        """What each segment holds at a position."""
        vpn, slot = divmod(position, KV.tokens_per_page)
        return [self.frame(pfn)[slot] for pfn in self.tables[asid][vpn]]


@define(eq=False)
class Model:
    """A space as its process sees it."""

    space: AddressSpace
    tokens: list[int]  # computed, or to be computed by the step that is being composed


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=14)
salts = st.sampled_from(["alice", "bob"])


class VmmMachine(RuleBasedStateMachine):
    """What a process reads through its space is what it wrote, whatever the others do.

    Rules compose a step: spaces grow and get rows; `run_step` applies the edits and then computes all rows,
    as a driver does. A space with a row is left alone until then.
    """

    mapping: MappingMode = "ahead"
    map_reuse = True

    def __init__(self) -> None:
        super().__init__()
        self.vmm = VMM(
            KV, NUM_FRAMES, MAX_SPACES, MAX_MODEL_LEN, mapping=self.mapping, map_reuse=self.map_reuse
        )
        self.device = FakeDevice()
        self.models: list[Model] = []
        self.rows: list[tuple[Model, int]] = []  # and the first position to compute
        self.retired: set[tuple[str, tuple[int, ...]]] = set()  # prefixes given to the index, by salt

    def draw_model(self, data: st.DataObject) -> Model:
        """Choose a space; if it has a row, that step runs first."""
        model = data.draw(st.sampled_from(self.models), label="space")
        if any(model is placed for placed, _ in self.rows):
            self.run_step()
        return model

    def available(self) -> int:
        statistics = self.vmm.statistics()
        return statistics.num_free + statistics.num_cached

    @rule(salt=salts, prompt=prompts, know=st.booleans(), data=st.data())
    def open(self, salt: str, prompt: list[int], know: bool, data: st.DataObject) -> None:
        """A new space starts with what its tenant retired for the same tokens, never the whole prompt."""
        if know and self.retired:
            known = data.draw(st.sampled_from(sorted(self.retired)), label="known")
            prompt = [*known[1], *prompt][: max(len(known[1]), MAX_MODEL_LEN)]
            prompt = prompt[: data.draw(st.integers(1, len(prompt)), label="size")]
        if len(self.models) == MAX_SPACES:
            with pytest.raises(OutOfSpaces):
                self.vmm.open_space(salt)
            return
        before = self.vmm.statistics()
        space = self.vmm.open_space(salt, prompt)
        assert self.vmm.statistics().prefix == before.prefix
        covered = self.vmm.attach_prefix(space, prompt, len(prompt) - 1)
        assert covered < len(prompt)
        assert covered == 0 or (salt, tuple(prompt[:covered])) in self.retired
        self.models.append(Model(space, prompt[:covered]))

    @precondition(lambda self: self.models)
    @rule(tokens=prompts, back=st.integers(0, 6), data=st.data())
    def grow(self, tokens: list[int], back: int, data: st.DataObject) -> None:
        """A space grows, perhaps over its last tokens (a rejected speculation), or nothing at all happens."""
        model = self.draw_model(data)
        space = model.space
        start = max(0, len(model.tokens) - (back if back > 3 else 0))
        end = min(start + len(tokens), MAX_MODEL_LEN)
        needed = self.vmm.pager.frames_needed(space, start, end)
        if needed > self.available():
            before = self.vmm.statistics(), list(space.page_table.entries), len(self.vmm._edits)
            with pytest.raises(OutOfFrames) as caught:
                self.vmm.pager.grow(space, start, end)
            assert (caught.value.needed, caught.value.free) == (needed, self.available())
            assert before == (self.vmm.statistics(), list(space.page_table.entries), len(self.vmm._edits))
            return
        # More than that may be left: a page that only this space and the index shared is now only cached.
        free_after = self.available() - needed
        self.vmm.pager.grow(space, start, end)
        assert self.available() >= free_after
        assert self.vmm.pager.frames_needed(space, start, end) == 0
        model.tokens[start:] = tokens[: end - start]
        self.rows.append((model, start))

    @precondition(lambda self: self.models)
    @rule(num_tokens=st.integers(1, 12), data=st.data())
    def map_ahead(self, num_tokens: int, data: st.DataObject) -> None:
        """Pages behind a space's last take frames that are free or only cached; no process loses any."""
        model = self.draw_model(data)
        before = self.vmm.statistics()
        end = min(len(model.tokens) + num_tokens, MAX_MODEL_LEN)
        num_pages = model.space.num_pages
        self.vmm.pager.map_ahead(model.space, end)
        after = self.vmm.statistics()
        assert after.num_free + after.num_cached == before.num_free + before.num_cached
        assert model.space.num_pages == num_pages
        if self.mapping == "sync":
            assert after.num_ahead == 0
        elif after.num_free - after.num_ahead >= len(KV.segments) or after.num_cached:
            assert num_pages + len(model.space.ahead) >= KV.num_pages(end)

    @precondition(lambda self: self.models)
    @rule(share=st.floats(0, 1), salt=salts, data=st.data())
    def fork(self, share: float, salt: str, data: st.DataObject) -> None:
        """A child starts with the first tokens of its parent."""
        model = self.draw_model(data)
        num_tokens = round(share * len(model.tokens))
        if len(self.models) == MAX_SPACES:
            with pytest.raises(OutOfSpaces):
                self.vmm.fork_space(model.space, num_tokens, salt)
            return
        free = self.vmm.statistics().num_free
        child = self.vmm.fork_space(model.space, num_tokens, salt)
        assert self.vmm.statistics().num_free == free
        self.models.append(Model(child, model.tokens[:num_tokens]))

    @precondition(lambda self: self.models)
    @rule(share=st.sampled_from([0.0, 0.5, 1.0]), data=st.data())
    def close(self, share: float, data: st.DataObject) -> None:
        """A space ends, and leaves the pages whose tokens are told to the index."""
        model = self.draw_model(data)
        known = model.tokens[: round(share * len(model.tokens))]
        self.vmm.close_space(model.space, known)
        for end in range(1, len(known) + 1):
            self.retired.add((model.space.salt, tuple(known[:end])))
        self.models.remove(model)
        with pytest.raises(KernelPanic):
            self.vmm.pager.grow(model.space, 0, 1)

    @rule(meant=st.frozensets(salts))
    def drop_cache(self, meant: frozenset[str]) -> None:
        """What nobody maps is free; every space still reads what it wrote, with the next step."""
        num_free, num_cached = self.vmm.statistics().num_free, self.vmm.statistics().num_cached
        num_pages = sum(self.vmm.drop_cache(meant.__contains__))
        after = self.vmm.statistics()
        assert after.num_free - num_free == num_cached - after.num_cached <= num_pages * KV.frames_per_page
        mapped = {frames for model in self.models for frames in model.space.page_table.entries}
        assert all(salt not in meant or frames in mapped for salt, frames in self.vmm.cached_pages())

    @rule()
    def run_step(self) -> None:
        """The device carries the edits out, then computes the rows; every space reads back what it wrote."""
        self.device.apply(self.vmm.take_edits())
        for model, start in self.rows:
            self.device.write(model.space.asid, model.tokens, start)
        self.rows.clear()
        assert set(self.device.tables) == {model.space.asid for model in self.models}
        for model in self.models:
            for position in range(len(model.tokens)):
                expected = [(segment.name, tuple(model.tokens[: position + 1])) for segment in KV.segments]
                assert self.device.read(model.space.asid, position) == expected

    @precondition(lambda self: len(self.models) == MAX_SPACES)
    @rule()
    def lose_device(self) -> None:
        """A new driver starts from nothing, and so does the VMM."""
        self.vmm.reset()
        self.device = FakeDevice()
        assert self.vmm.take_edits() == ()
        assert self.vmm.statistics().num_free == NUM_FRAMES
        for model in self.models:
            with pytest.raises(KernelPanic):
                self.vmm.close_space(model.space)
        self.models.clear()
        self.rows.clear()
        self.retired.clear()

    @invariant()
    def frames_are_conserved(self) -> None:
        """Every frame is free, cached or mapped, and every reference has its owner."""
        self.vmm.check_integrity()
        mapped = {pfn for model in self.models for frames in model.space.page_table.entries for pfn in frames}
        assert self.available() + len(mapped) == NUM_FRAMES
        assert self.vmm.statistics().num_spaces == len(self.models)
        for model in self.models:
            num_pages = model.space.num_pages
            num_private = sum(
                self.vmm._pool.refcount(frames[0]) == 1 for frames in model.space.page_table.entries
            )
            page_bytes = len(KV.segments) * KV.frame_bytes
            assert self.vmm.resident_bytes(model.space) == num_pages * page_bytes
            assert self.vmm.shared_bytes(model.space) == (num_pages - num_private) * page_bytes

    def teardown(self) -> None:
        """In the end everything is free or cached, and what is cached can be used."""
        for model in list(self.models):
            self.vmm.close_space(model.space)
        space = self.vmm.open_space("carol")
        assert self.available() == NUM_FRAMES
        self.vmm.pager.grow(space, 0, MAX_MODEL_LEN)
        self.vmm.close_space(space)
        self.vmm.check_integrity()


class SyncMachine(VmmMachine):
    """The same, with every page mapped in the step that writes it."""

    mapping: MappingMode = "sync"


class PremappedMachine(VmmMachine):
    """The same, with every page mapped as soon as a space has one."""

    mapping: MappingMode = "premapped"


class FirstFreeMachine(VmmMachine):
    """The same without a look at what is mapped already."""

    map_reuse = False


TestVmm = VmmMachine.TestCase
TestSync = SyncMachine.TestCase
TestPremapped = PremappedMachine.TestCase
TestFirstFree = FirstFreeMachine.TestCase
TestVmm.settings = settings(max_examples=150, stateful_step_count=40)
TestSync.settings = TestPremapped.settings = settings(TestVmm.settings, max_examples=50)
TestFirstFree.settings = settings(TestVmm.settings, max_examples=20)


def new_vmm(num_frames: int = NUM_FRAMES, *, prefix_cache: bool = True, mapping: MappingMode = "sync") -> VMM:
    return VMM(KV, num_frames, MAX_SPACES, MAX_MODEL_LEN, prefix_cache=prefix_cache, mapping=mapping)


def test_n_samples_of_one_prompt_copy_its_last_page_n_minus_1_times() -> None:
    """The last space that still holds a shared page writes in place."""
    vmm = new_vmm()
    parent = vmm.open_space("alice")
    vmm.pager.grow(parent, 0, 6)
    spaces = [parent, *(vmm.fork_space(parent, 6, "alice") for _ in range(3))]
    vmm.take_edits()
    for space in spaces:
        vmm.pager.grow(space, 6, 7)
    edits = vmm.take_edits()
    assert [type(edit) for edit in edits] == [CopyPage, Map] * 3
    assert vmm.statistics().num_copies == 3
    assert (vmm.resident_bytes(parent), vmm.shared_bytes(parent)) == (64, 32)


def test_a_shared_page_that_is_overwritten_from_its_start_is_not_copied() -> None:
    """New frames do where nothing of the old page is kept."""
    vmm = new_vmm()
    parent = vmm.open_space("alice")
    vmm.pager.grow(parent, 0, 8)
    child = vmm.fork_space(parent, 8, "alice")
    vmm.take_edits()
    vmm.pager.grow(child, 4, 5)
    assert [type(edit) for edit in vmm.take_edits()] == [Map]
    assert vmm.statistics().num_copies == 0
    assert child.page_table.entries[0] == parent.page_table.entries[0]
    assert child.page_table.entries[1] != parent.page_table.entries[1]


@pytest.mark.parametrize("start", range(4, 9))
def test_a_copy_is_made_exactly_where_a_page_is_kept_in_part(start: int) -> None:
    """Writing inside a shared page copies it first; writing at a page's first token does not."""
    vmm = new_vmm()
    parent = vmm.open_space("alice")
    vmm.pager.grow(parent, 0, 8)
    child = vmm.fork_space(parent, 8, "alice")
    vmm.take_edits()
    vmm.pager.grow(child, start, start + 1)
    is_inside = start % KV.tokens_per_page != 0
    assert [type(edit) for edit in vmm.take_edits()] == [CopyPage, Map][not is_inside :]


def test_a_grown_run_is_a_run_of_frames_in_each_segment() -> None:
    """Pages that are mapped together are adjacent in memory, segment by segment."""
    vmm = new_vmm()
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 12)
    assert space.page_table.entries == [(0, 3), (1, 4), (2, 5)]


def test_cached_pages_are_given_up_for_a_space_that_needs_their_frames() -> None:
    """A full cache never makes a request fail, and no more of it goes than must."""
    vmm = new_vmm(num_frames=8)
    first = vmm.open_space("alice")
    vmm.pager.grow(first, 0, 12)
    vmm.close_space(first, range(12))
    assert (vmm.statistics().num_free, vmm.statistics().num_cached) == (2, 6)
    second = vmm.open_space("alice")
    assert vmm.attach_prefix(second, [*range(4), 99], 4) == 4
    vmm.pager.grow(second, 4, 12)
    assert (vmm.statistics().num_free, vmm.statistics().num_cached) == (0, 2)
    assert vmm.statistics().prefix.num_evicted_pages == 1
    vmm.pager.grow(second, 12, 16)
    with pytest.raises(OutOfFrames, match="needs 2 frames, 0 free"):
        vmm.pager.grow(second, 16, 17)


def test_an_attached_prefix_stays_within_its_limit() -> None:
    """A limit that ends inside a page takes a copy of that page's first tokens."""
    vmm = new_vmm()
    first = vmm.open_space("alice")
    vmm.pager.grow(first, 0, 12)
    vmm.close_space(first, range(12))
    for limit, covered in [(0, 0), (3, 3), (4, 4), (11, 11), (12, 12)]:
        space = vmm.open_space("alice")
        assert vmm.attach_prefix(space, range(12), limit) == covered
        vmm.close_space(space)


def test_without_a_prefix_cache_nothing_is_kept() -> None:
    """Closing a space frees all of it, and nothing is found later."""
    vmm = new_vmm(prefix_cache=False)
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 8)
    vmm.close_space(space, range(8))
    assert vmm.statistics().num_free == NUM_FRAMES
    again = vmm.open_space("alice")
    assert vmm.attach_prefix(again, range(8), 7) == 0


def test_a_closed_spaces_asid_is_released_before_it_is_reserved_again() -> None:
    """The order of edits is what makes reuse of asids and frames safe."""
    vmm = VMM(KV, NUM_FRAMES, 1, MAX_MODEL_LEN)
    vmm.close_space(vmm.open_space("alice"))
    vmm.open_space("bob")
    assert vmm.take_edits() == (Reserve(0), Release(0), Reserve(0))
    assert vmm.take_edits() == ()


@pytest.mark.parametrize(("start", "end"), [(9, 10), (-1, 3), (8, MAX_MODEL_LEN + 1)])
def test_growing_with_a_gap_or_over_the_limit_is_a_kernel_bug(start: int, end: int) -> None:
    """Positions before the start must be mapped, and the model's length is never passed."""
    vmm = new_vmm()
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 8)
    with pytest.raises(KernelPanic, match="cannot grow"):
        vmm.pager.grow(space, start, end)
    with pytest.raises(KernelPanic, match="forked"):
        vmm.fork_space(space, 9, "alice")
    with pytest.raises(KernelPanic, match="prefix"):
        vmm.attach_prefix(space, range(8), 7)


def test_integrity_check_finds_a_leaked_reference() -> None:
    """A reference that nobody accounts for is reported with its frame."""
    vmm = new_vmm()
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 1)
    vmm._pool.acquire(space.page_table.entries[0][0])
    with pytest.raises(KernelPanic, match=r"frames \[0\]"):
        vmm.check_integrity()


def test_the_next_page_is_mapped_before_it_is_needed() -> None:
    """A decoding process never waits for a map, and what it did not need is given back."""
    kv = KVFormat("test", (Segment("K", 4), Segment("V", 4)), frame_bytes=128, tokens_per_page=32)
    vmm = VMM(kv, 24, 2, 128)
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 10)
    assert [edit.is_ahead for edit in vmm.take_edits() if isinstance(edit, Map)] == [False]
    ahead_at: dict[int, int] = {}
    for position in range(10, 70):
        vmm.pager.grow(space, position, position + 1)
        for edit in vmm.take_edits():
            assert isinstance(edit, Map)
            assert edit.is_ahead
            ahead_at[edit.vpn] = position
    assert {vpn: vpn * 32 - position for vpn, position in ahead_at.items()} == {1: 8, 2: 8}
    vmm.pager.grow(space, 70, 90)
    assert vmm.statistics().num_ahead == 2
    vmm.close_space(space)
    maps = vmm.statistics().maps
    assert (maps.num_sync, maps.num_ahead, maps.num_reused, maps.num_unused) == (1, 3, 0, 1)
    assert vmm.statistics().num_free == 24


def test_pages_mapped_ahead_go_before_cached_ones() -> None:
    """They are given back before anything is evicted."""
    vmm = new_vmm(num_frames=12, mapping="ahead")
    first = vmm.open_space("alice")
    vmm.pager.grow(first, 0, 8)
    vmm.close_space(first, range(8))  # two cached pages
    second = vmm.open_space("bob")
    vmm.pager.grow(second, 0, 4)
    vmm.pager.map_ahead(second, 16)
    statistics = vmm.statistics()
    assert (statistics.num_free, statistics.num_ahead, statistics.num_cached) == (6, 6, 4)
    third = vmm.open_space("carol")
    vmm.pager.grow(third, 0, 8)  # two pages that were ahead for bob; one of the cache for what comes next
    assert vmm.statistics().num_cached == 2
    assert [len(space.ahead) for space in (second, third)] == [1, 1]
    vmm.check_integrity()


def test_pages_of_the_cache_make_room_for_those_that_are_needed_next() -> None:
    """In the long run the cache fills every frame; steps do not wait for maps then either."""
    vmm = new_vmm(num_frames=12, mapping="ahead")
    first = vmm.open_space("alice")
    vmm.pager.grow(first, 0, 16)
    vmm.close_space(first, range(16))  # four cached pages: 8 of 12 frames
    second = vmm.open_space("bob")
    vmm.pager.grow(second, 0, 4)
    vmm.pager.map_ahead(second, 8)
    statistics = vmm.statistics()
    assert (statistics.num_free, statistics.num_ahead, statistics.num_cached) == (2, 2, 8)
    vmm.pager.map_ahead(second, 16)
    statistics = vmm.statistics()
    assert (statistics.num_free, statistics.num_ahead, statistics.num_cached) == (6, 6, 4)
    vmm.pager.grow(second, 4, 16)
    assert vmm.statistics().maps.num_sync == 4 + 1  # the first of each
    vmm.check_integrity()


def test_what_is_pinned_does_not_go_for_a_page_mapped_ahead() -> None:
    """It goes when that page is needed, not before; what nobody pinned goes at once."""
    vmm = VMM(KV, 12, MAX_SPACES, MAX_MODEL_LEN, mapping="ahead", max_pinned_bytes=4 * KV.frame_bytes)
    first = vmm.open_space("alice")
    vmm.pager.grow(first, 0, 8)
    vmm.close_space(first, range(8), pin_seconds=1000.0)  # two pages
    second = vmm.open_space("alice")
    vmm.pager.grow(second, 0, 4)
    vmm.close_space(second, range(100, 104))
    third = vmm.open_space("bob")
    vmm.pager.grow(third, 0, 12)  # all that is free, and one page ahead
    vmm.pager.map_ahead(third, 20)
    assert (len(third.ahead), vmm.statistics().num_cached) == (1, 4)
    assert vmm.pinned_bytes("alice") == 4 * KV.frame_bytes
    vmm.pager.grow(third, 12, 20)
    assert (len(third.ahead), vmm.statistics().num_cached) == (0, 2)
    vmm.check_integrity()


def test_a_page_mapped_ahead_may_become_a_copy_of_the_one_before_it() -> None:
    """What it holds behind its last page is no reason to be refused a page before that."""
    vmm = new_vmm(num_frames=4, mapping="ahead")
    parent = vmm.open_space("alice")
    vmm.pager.grow(parent, 0, 4)
    vmm.fork_space(parent, 4, "alice")
    assert (vmm.statistics().num_free, len(parent.ahead)) == (2, 1)
    vmm.pager.grow(parent, 3, 4)
    assert (vmm.statistics().num_free, len(parent.ahead), vmm.statistics().num_copies) == (0, 0, 1)
    vmm.check_integrity()


def test_a_process_that_comes_back_finds_its_pages_mapped() -> None:
    """It is given the asid under which the device still has them; its edits need no system call."""
    vmm = new_vmm()
    spaces = [vmm.open_space(salt) for salt in ("alice", "bob", "carol")]
    for number, space in enumerate(spaces):
        vmm.pager.grow(space, 0, 9)
        vmm.close_space(space, range(100 * number, 100 * number + 9))
    before = vmm.statistics().maps
    again = vmm.open_space("bob", range(100, 120))
    assert again.asid == spaces[1].asid
    assert vmm.attach_prefix(again, range(100, 120), 19) == 9
    after = vmm.statistics().maps
    assert (after.num_sync - before.num_sync, after.num_reused - before.num_reused) == (3, 2)


def test_frames_that_are_mapped_already_are_taken_where_they_are() -> None:
    """Of the spaces that left enough behind, the one with the least; nothing is mapped for it."""
    vmm = new_vmm(prefix_cache=False)
    for num_tokens in (20, 8, 12):
        vmm.pager.grow(vmm.open_space("alice"), 0, num_tokens)
    pages = {space.asid: list(space.page_table.entries) for space in vmm._spaces}
    for space in list(vmm._spaces):
        vmm.close_space(space)
    again = vmm.open_space("bob", range(9))
    vmm.pager.grow(again, 0, 9)
    assert again.page_table.entries == pages[2]
    assert vmm.statistics().maps.num_reused == 3


def test_sixty_four_children_cost_nothing_until_they_diverge() -> None:
    """Of a parent of 1,500 tokens; then a page each, but for the last one, who writes in place."""
    kv = KVFormat("test", (Segment("K", 4), Segment("V", 4)), frame_bytes=512, tokens_per_page=128)
    vmm = VMM(kv, 400, 65, 2048)
    parent = vmm.open_space("alice")
    vmm.pager.grow(parent, 0, 1500)
    before = vmm.statistics().num_free
    children = [vmm.fork_space(parent, 1500, "alice") for _ in range(64)]
    assert vmm.statistics().num_free == before
    for number, child in enumerate(children, 1):
        vmm.pager.grow(child, 1500, 1501)
        assert before - vmm.statistics().num_free == number * kv.frames_per_page
    vmm.pager.grow(parent, 1500, 1501)
    assert before - vmm.statistics().num_free == 64 * kv.frames_per_page
    vmm.check_integrity()


def test_what_was_counted_of_maps_outlives_the_device_that_did_it() -> None:
    """A device that comes back without its memory says what it did from then on; the counters go on."""
    vmm = new_vmm()
    vmm.pager.grow(vmm.open_space("alice"), 0, 9)
    vmm.note_map_work(MapWork(num_sync=3, wait_seconds=0.25))
    vmm.note_map_work(MapWork(num_ahead=2, num_reused=1, num_unmapped=4, beside_seconds=0.5))
    before = vmm.statistics().maps
    assert before.num_waiting_steps == 1
    vmm.reset()
    assert (vmm.take_edits(), vmm.statistics().num_ahead) == ((), 0)
    assert vmm.statistics().maps == before
    vmm.note_map_work(MapWork(num_ahead=1, num_late=1, wait_seconds=0.5))
    after = vmm.statistics().maps
    assert after.device == MapWork(0 + 3, 2 + 1, 1, 1, 4, 0.75, 0.5)
    assert after.num_waiting_steps == 2
    vmm.check_integrity()
