"""Swap and its fences: random lives over a device whose frames and slots hold what the model says."""

from __future__ import annotations

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmos.device import Copy, CopyDone, CopyFault, CopyPage, KVFormat, Place, Segment
from llmos.errors import OutOfFrames, OutOfSpaces
from llmos.mm.address_space import AddressSpace
from llmos.mm.copy_store import PAUSE_SECONDS
from llmos.mm.page_copy import Backing
from llmos.mm.swap import Swap
from llmos.mm.vmm import VMM

PAGE = 4
KV = KVFormat("test", (Segment("K", 1), Segment("V", 1)), PAGE, PAGE)
NUM_FRAMES, NUM_SPACES = 20, 6


@attrs.define(eq=False)
class Owner:
    """A process as far as memory goes: the tokens it has computed, and where they are."""

    name: int
    tokens: list[int] = attrs.field(factory=list)
    space: AddressSpace | None = None
    backing: Backing = attrs.field(factory=Backing)
    arriving: int = 0
    covered: int = 0  # tokens in memory


@attrs.define(eq=False)
class Device:
    """Frames and slots by content: the tokens of a page, with the name of the segment."""

    held: dict[tuple[str, int], tuple] = attrs.field(factory=dict)
    copies: list[tuple[Copy, list[tuple]]] = attrs.field(factory=list)

    def uses(self, pfn: int) -> bool:
        """Does a copy that is under way read or fill this frame?"""
        return any(
            place.tier == "device" and pfn in place.slots
            for copy, _ in self.copies
            for place in (copy.source, copy.target)
        )

    def start(self, copy: Copy) -> None:
        """Read the sources; nobody may write to them, and nobody else to the targets."""
        for other, _ in self.copies:
            busy = {(other.target.tier, slot) for slot in other.target.slots}
            read = {(other.source.tier, slot) for slot in other.source.slots}
            assert not busy & {(copy.target.tier, slot) for slot in copy.target.slots}
            assert not busy & {(copy.source.tier, slot) for slot in copy.source.slots}
            assert not read & {(copy.target.tier, slot) for slot in copy.target.slots}
        contents = [self.held.get((copy.source.tier, slot), ("junk",)) for slot in copy.source.slots]
        self.copies.append((copy, contents))


class SwapMachine(RuleBasedStateMachine):
    """Every page that is brought back holds the tokens that it was sent down with."""

    def __init__(self) -> None:
        super().__init__()
        self.open(prefix_cache=True)

    def open(self, prefix_cache: bool) -> None:
        self.vmm = VMM(KV, NUM_FRAMES, NUM_SPACES, max_model_len=40, prefix_cache=prefix_cache)
        self.faults: list[str] = []
        self.now = self.paused_until = 0.0
        self.swap = Swap(self.vmm, {"host": 14, "disk": 20}, self.faults.append, clock=lambda: self.now)
        self.device = Device()
        self.owners: list[Owner] = []
        self.next_name = 0

    @initialize(prefix_cache=st.booleans())
    def choose(self, prefix_cache: bool) -> None:
        self.open(prefix_cache)

    # --- the device --------------------------------------------------------------------------------------

    def carry_out(self) -> None:
        """Edits first, then copies, as the Core sends them."""
        for edit in self.vmm.take_edits():
            if isinstance(edit, CopyPage):
                for source, target in zip(edit.sources, edit.targets, strict=True):
                    assert not self.device.uses(target)
                    self.device.held["device", target] = self.device.held.get(("device", source), ("junk",))
        for copy in self.swap.transfers.take_messages():
            self.device.start(copy)

    def write(self, owner: Owner, start: int, end: int) -> None:
        """Compute positions [start, end): frames of their pages hold the tokens up to there."""
        for vpn in range(start // PAGE, -(-end // PAGE)):
            page = tuple(owner.tokens[vpn * PAGE : min(end, (vpn + 1) * PAGE)])
            for segment, pfn in enumerate(owner.space.page_table.entries[vpn]):
                assert not self.device.uses(pfn)
                self.device.held["device", pfn] = (segment, *page)

    # --- lives -------------------------------------------------------------------------------------------

    @rule(prompt=st.integers(0, 1))
    def spawn(self, prompt: int) -> None:
        self.next_name += 1
        self.owners.append(Owner(self.next_name, [prompt] * 3 + [10 * self.next_name]))

    @precondition(lambda self: self.owners)
    @rule(data=st.data(), count=st.integers(1, 6))
    def run(self, data: st.DataObject, count: int) -> None:
        owner = data.draw(st.sampled_from(self.owners))
        if owner.space is None:
            self.bring_in(owner)
        if owner.space is None or owner.arriving:
            return
        end = min(36, len(owner.tokens) + count)
        try:
            self.vmm.pager.grow(owner.space, owner.covered, end)
        except OutOfFrames:
            return
        owner.tokens += [100 * owner.name + position for position in range(len(owner.tokens), end)]
        self.carry_out()
        self.write(owner, owner.covered, end)
        owner.covered = end

    def bring_in(self, owner: Owner) -> None:
        try:
            space = self.vmm.open_space("tenant")
        except OutOfSpaces:
            return
        owner.space = space
        limit = len(owner.tokens) - 1
        copied = min(limit, owner.backing.num_tokens(PAGE))
        owner.covered = self.vmm.attach_prefix(space, owner.tokens, limit, has=copied)
        owner.covered = self.swap.attach(space, owner.covered, limit, owner.backing)
        if owner.covered < copied:
            try:
                self.vmm.pager.grow(space, owner.covered, copied)
            except OutOfFrames:
                copied = owner.covered
            else:
                first, stop = owner.covered // PAGE, -(-copied // PAGE)

                def arrive(transfer: object) -> None:
                    if owner.space is not space:
                        return
                    owner.arriving -= 1
                    bad = min((vpn * PAGE for vpn in transfer.faults), default=copied)
                    arrived.append(bad)
                    if not owner.arriving:
                        owner.covered = max(owner.covered, min(arrived))
                        self.swap.copies.set_needed(owner.backing, False)

                arrived: list[int] = []
                owner.arriving = len(self.swap.swap_in(space, first, stop, owner.backing, arrive))
        if not owner.arriving:
            self.swap.copies.set_needed(owner.backing, False)
        self.carry_out()

    @precondition(lambda self: any(o.space is not None for o in self.owners))
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from([o for o in self.owners if o.space is not None]))
        known = owner.tokens[: owner.covered]
        if known:
            dirty = self.swap.plan_out(owner.space, len(known), owner.backing)
            tier = self.swap.copies.tier_with_room(len(dirty)) if dirty else None
            if tier is not None:
                self.swap.swap_out(owner.space, dirty, len(known), owner.backing, tier, lambda transfer: None)
        self.vmm.close_space(owner.space, known)
        owner.space, owner.arriving, owner.covered = None, 0, 0
        self.swap.copies.set_needed(owner.backing, True)
        self.carry_out()

    @precondition(lambda self: any(o.space is not None and not o.arriving and o.covered for o in self.owners))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        ready = [o for o in self.owners if o.space is not None and not o.arriving and o.covered]
        parent = data.draw(st.sampled_from(ready))
        try:
            space = self.vmm.fork_space(parent.space, parent.covered, "tenant")
        except OutOfSpaces:
            return
        self.next_name += 1
        child = Owner(self.next_name, parent.tokens[: parent.covered], space, covered=parent.covered)
        self.owners.append(child)
        self.carry_out()

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(self.owners))
        self.owners.remove(owner)
        if owner.space is not None:
            self.vmm.close_space(owner.space, owner.tokens[: owner.covered])
            owner.space = None
        self.swap.copies.abandon(owner.backing)
        self.carry_out()

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def demote(self, data: st.DataObject) -> None:
        self.swap.demote(data.draw(st.sampled_from(self.owners)).backing)
        self.carry_out()

    @rule(slot=st.integers(0, 19))
    def damage(self, slot: int) -> None:
        """The swap file lies from now on; what was read of it before is as it was."""
        self.device.held["disk", slot] = ("damaged",)

    @rule(seconds=st.floats(0.0, 2 * PAUSE_SECONDS))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.device.copies)
    @rule(data=st.data(), fails=st.booleans())
    def end_copy(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.integers(0, len(self.device.copies) - 1))
        copy, contents = self.device.copies.pop(index)
        wanted = copy.checksums or map(hash, contents)
        faults = [
            CopyFault(i, "it is damaged", True)
            for i, (content, checksum) in enumerate(zip(contents, wanted, strict=True))
            if hash(content) != checksum
        ]
        if fails and not faults:
            faults = [CopyFault(0, "it failed")]
        for slot, content in zip(copy.target.slots, contents, strict=True):
            self.device.held[copy.target.tier, slot] = content
        for fault in faults:
            self.device.held[copy.target.tier, copy.target.slots[fault.index]] = ("junk",)
        if faults and copy.target.tier == "disk":
            self.paused_until = self.now + PAUSE_SECONDS
        checksums = tuple(hash(content) for content in contents) if copy.target.tier == "disk" else ()
        usable = self.usable_pages()
        num_messages = len(self.faults)
        assert self.swap.transfers.finish(CopyDone(copy.id, 0.0, checksums, tuple(faults))) is not None
        assert len(self.faults) == num_messages + bool(faults)
        if faults and (copy.source.tier, copy.target.tier) == ("host", "disk"):
            assert self.usable_pages() == usable  # a full disk is no reason to lose one
        self.carry_out()

    def usable_pages(self) -> set[tuple[int, int]]:
        """Pages of owners that have a copy below."""
        return {
            (owner.name, vpn)
            for owner in self.owners
            for vpn in range(len(owner.backing.pages))
            if owner.backing.usable(vpn) is not None
        }

    @rule()
    def lose_device(self) -> None:
        """All memory is gone, lower tiers too, with copies under way; nobody has anything left."""
        self.vmm.reset()
        self.swap.reset()
        self.paused_until = 0.0
        self.device = Device()
        for owner in self.owners:
            self.swap.copies.forget(owner.backing)
            self.swap.copies.set_needed(owner.backing, True)
            owner.space, owner.arriving, owner.covered = None, 0, 0

    # --- what must hold ----------------------------------------------------------------------------------

    @invariant()
    def memory_holds_what_it_should(self) -> None:
        for owner in self.owners:
            if owner.space is None:
                continue
            for vpn in range(-(-owner.covered // PAGE)):
                page = tuple(owner.tokens[vpn * PAGE : min(owner.covered, (vpn + 1) * PAGE)])
                for segment, pfn in enumerate(owner.space.page_table.entries[vpn]):
                    content = self.device.held["device", pfn]
                    assert content[: len(page) + 1] == (segment, *page), (owner.name, vpn)

    @invariant()
    def nothing_is_written_where_writing_failed(self) -> None:
        if self.now < self.paused_until:
            assert self.swap.copies.tier_with_room(1) != "disk"
            assert not self.swap.copies.is_host_short
        elif self.swap.copies.areas["disk"].num_free >= 2:
            assert self.swap.copies.tier_with_room(1) is not None

    @invariant()
    def everything_is_accounted_for(self) -> None:
        self.vmm.check_integrity()
        self.swap.check_integrity([owner.backing for owner in self.owners])

    def teardown(self) -> None:
        while self.device.copies:
            copy, contents = self.device.copies.pop()
            for slot, content in zip(copy.target.slots, contents, strict=True):
                self.device.held[copy.target.tier, slot] = content
            self.swap.transfers.finish(CopyDone(copy.id, 0.0, tuple(map(hash, contents))))
        for owner in self.owners:
            if owner.space is not None:
                self.vmm.close_space(owner.space, owner.tokens[: owner.covered])
            self.swap.copies.abandon(owner.backing)
        assert all(tier.num_free == tier.num_slots for tier in self.swap.statistics().tiers.values())
        assert self.vmm.num_allocatable_frames == NUM_FRAMES


SwapMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestSwap = SwapMachine.TestCase


def test_places_of_a_copy_are_runs() -> None:
    """Three pages that lie side by side are one run in each segment, at both ends."""
    vmm = VMM(KV, NUM_FRAMES, NUM_SPACES, max_model_len=40)
    swap = Swap(vmm, {"host": 14}, lambda message: None)
    space = vmm.open_space("tenant")
    vmm.pager.grow(space, 0, 12)
    backing = Backing()
    swap.swap_out(space, swap.plan_out(space, 12, backing), 12, backing, "host", lambda transfer: None)
    (copy,) = swap.transfers.take_messages()
    assert copy.source == Place("device", (0, 1, 2, 3, 4, 5))
    assert copy.target == Place("host", (0, 1, 2, 3, 4, 5))


def test_slots_of_a_bad_copy_wait_for_all_who_read_it() -> None:
    """One of two readers finds it bad: nobody trusts it from then on, and nobody writes there yet."""
    vmm = VMM(KV, NUM_FRAMES, NUM_SPACES, max_model_len=40, prefix_cache=False)
    swap = Swap(vmm, {"disk": 2}, lambda message: None)
    area = swap.copies.areas["disk"]
    space = vmm.open_space("tenant")
    vmm.pager.grow(space, 0, PAGE)
    first, second = Backing(), Backing()
    swap.swap_out(space, swap.plan_out(space, PAGE, first), PAGE, first, "disk", lambda transfer: None)
    (copy,) = swap.transfers.take_messages()
    swap.transfers.finish(CopyDone(copy.id, 0.0, (7, 8)))
    vmm.close_space(space)
    first.set_needed(True)
    swap.copies.inherit(first, second)
    for backing in (first, second):
        space = vmm.open_space("tenant")
        vmm.pager.grow(space, 0, PAGE)
        swap.swap_in(space, 0, 1, backing, lambda transfer: None)
    one, other = swap.transfers.take_messages()
    assert one.source.slots == other.source.slots
    swap.transfers.finish(CopyDone(one.id, 0.0, (), (CopyFault(1, "it is damaged", True),)))
    assert second.usable(0) is None
    assert area.num_free == 0
    swap.transfers.finish(CopyDone(other.id, 0.0))
    assert area.num_free == 2
    swap.check_integrity([first, second])
