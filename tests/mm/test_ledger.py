"""The ledger against a model that asks of each frame, one by one, whose it is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos.device import KVFormat, Segment
from llmos.errors import OutOfFrames, OutOfSpaces
from llmos.mm.frame_map import KINDS, draw_cells, take_frame_kinds
from llmos.mm.ledger import Holder, Usage, take_ledger
from llmos.mm.vmm import VMM

KV = KVFormat("test", (Segment("K", 4), Segment("V", 4)), frame_bytes=16, tokens_per_page=4)
NUM_FRAMES = 40
MAX_MODEL_LEN = 32

TENANTS = st.sampled_from(["alice", "bob"])
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), TENANTS, st.integers(1, 20)),
        st.tuples(st.just("grow"), st.integers(0, 9), st.integers(1, 12)),
        st.tuples(st.just("fork"), st.integers(0, 9), st.floats(0, 1)),
        st.tuples(st.just("close"), st.integers(0, 9), st.booleans()),
        st.tuples(st.just("forget"), st.integers(0, 9), st.integers(1, 8)),
    ),
    max_size=40,
)


def carry_out(vmm: VMM, operations: list[tuple]) -> list[Holder]:
    """Live a little; what does not fit is left out. Returns who holds memory at the end."""
    holders: list[Holder] = []
    for pid, (name, *arguments) in enumerate(operations):
        try:
            if name == "open":
                tenant, length = arguments
                space = vmm.open_space(tenant)
                holders.append(Holder(pid, tenant, "model", space, length))
                start = vmm.attach_prefix(space, [7] * length, length - 1)
                vmm.pager.grow(space, start, length)
            elif holders:
                index = arguments[0] % len(holders)
                holder = holders[index]
                if name == "grow":
                    start = min(holder.num_positions, holder.space.num_pages * KV.tokens_per_page)
                    end = min(start + arguments[1], MAX_MODEL_LEN)
                    vmm.pager.grow(holder.space, start, end)
                    holders[index] = Holder(holder.pid, holder.tenant, holder.model, holder.space, end)
                elif name == "fork":
                    most = min(holder.num_positions, holder.space.num_pages * KV.tokens_per_page)
                    child = vmm.fork_space(holder.space, round(arguments[1] * most), holder.tenant)
                    holders.append(Holder(pid, holder.tenant, holder.model, child, most))
                elif name == "close":
                    is_known = arguments[1] and holder.num_positions <= MAX_MODEL_LEN
                    known = min(holder.num_positions, holder.space.num_pages * KV.tokens_per_page)
                    vmm.close_space(holder.space, [7] * known if is_known else [])
                    del holders[index]
                else:  # it turns out to need less than is mapped
                    fewer = min(holder.num_positions, arguments[1])
                    holders[index] = Holder(holder.pid, holder.tenant, holder.model, holder.space, fewer)
        except (OutOfFrames, OutOfSpaces):
            continue
    return holders


@settings(max_examples=300)
@given(operations=OPERATIONS)
def test_every_frame_is_in_one_column_and_on_one_account(operations: list[tuple]) -> None:
    """Columns add up to the pool, tenants to the columns; each frame is where the model puts it."""
    vmm = VMM(KV, NUM_FRAMES, 8, MAX_MODEL_LEN)
    holders = carry_out(vmm, operations)
    ledger = take_ledger(vmm, holders)
    vmm.check_integrity()

    total, tenants = Usage(), {}
    free = 0
    for pfn in range(NUM_FRAMES):
        mapped = [
            (holder, vpn)
            for holder in holders
            for vpn, frames in enumerate(holder.space.page_table.entries)
            if pfn in frames
        ]
        salts = [salt for salt, frames in vmm.cached_pages() if pfn in frames]
        if not mapped and not salts:
            free += KV.frame_bytes
            continue
        tenant = mapped[0][0].tenant if mapped else salts[0]
        for usage in (total, tenants.setdefault(tenant, Usage())):
            if not mapped:
                usage.cached_bytes += KV.frame_bytes
            elif len(mapped) + len(salts) > 1:
                usage.shared_bytes += KV.frame_bytes
            elif mapped[0][1] * KV.tokens_per_page >= mapped[0][0].num_positions:
                usage.ahead_bytes += KV.frame_bytes
            else:
                usage.private_bytes += KV.frame_bytes
    assert (ledger.free_bytes, ledger.moving_bytes) == (free, 0)
    kinds = take_frame_kinds(vmm, holders)
    columns = {kind: kinds.count(index) * KV.frame_bytes for index, kind in enumerate(KINDS)}
    assert columns == {
        "free": free,
        "moving": 0,
        "cached": total.cached_bytes,
        "ahead": total.ahead_bytes,
        "private": total.private_bytes,
        "shared": total.shared_bytes,
    }
    assert all(kinds[pfn] == 0 for pfn in range(NUM_FRAMES) if vmm.refcounts[pfn] == 0)
    assert ledger.total == total
    in_use = {tenant: usage for tenant, usage in ledger.tenants.items() if usage != Usage()}
    assert in_use == tenants
    assert ledger.pool_bytes == NUM_FRAMES * KV.frame_bytes
    assert ledger.free_bytes + total.resident_bytes + total.cached_bytes == ledger.pool_bytes
    assert sum(usage.resident_bytes for usage in ledger.models.values()) == total.resident_bytes
    for process, holder in zip(ledger.processes, holders, strict=True):
        mapped_bytes = process.private_bytes + process.shared_bytes + process.ahead_bytes
        assert mapped_bytes == vmm.resident_bytes(holder.space)


def test_what_nobody_maps_is_moving() -> None:
    """Frames that a copy still reads belong to no space; they are not free either."""
    vmm = VMM(KV, NUM_FRAMES, 8, MAX_MODEL_LEN)
    space = vmm.open_space("alice")
    vmm.pager.grow(space, 0, 8)
    ledger = take_ledger(vmm, ())
    assert ledger.moving_bytes == 4 * KV.frame_bytes
    assert ledger.moving_bytes + ledger.free_bytes == ledger.pool_bytes
    assert take_frame_kinds(vmm, ()).count(KINDS.index("moving")) >= 4


@given(kinds=st.lists(st.integers(0, len(KINDS) - 1), max_size=300), max_cells=st.integers(1, 40))
def test_a_frame_map_is_bounded_and_shows_the_majority(kinds: list[int], max_cells: int) -> None:
    """Runs alternate, cover every frame once, and each cell has the kind that most of its frames have."""
    frames_per_cell, runs = draw_cells(bytes(kinds), max_cells)
    cells = [kind for kind, count in runs for _ in range(count)]
    assert all(left[0] != right[0] for left, right in pairwise(runs))
    assert len(cells) == -(-len(kinds) // frames_per_cell) <= max_cells
    for index, kind in enumerate(cells):
        there = [KINDS[each] for each in kinds[index * frames_per_cell : (index + 1) * frames_per_cell]]
        assert there.count(kind) == max(map(there.count, KINDS))
