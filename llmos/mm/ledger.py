"""The ledger: whose the bytes of a device's pool are, and what they are for.

It is not kept but taken, by walking every page, when somebody asks: nothing on the way of a step pays for
it. Each frame is in one column, so the columns add up to the pool, and each frame in use is on one tenant's
account: a page that several processes map is counted once, whoever maps it.
"""

from __future__ import annotations

from collections.abc import Iterable

from attrs import define, field, frozen

from llmos.device import Tier
from llmos.mm.address_space import AddressSpace, tenant_of
from llmos.mm.page_copy import Backing, PageCopy
from llmos.mm.vmm import VMM


@frozen
class Holder:
    """A process with memory on the device, or with copies of it on lower tiers."""

    pid: int
    tenant: str
    model: str
    space: AddressSpace | None
    num_positions: int  # that hold tokens, or will when the steps in flight are done
    backing: Backing = field(factory=Backing)


@frozen
class ProcessMemory:
    """What one process maps. Shared bytes are also on the account of each of the others that map them."""

    pid: int
    tenant: str
    model: str
    private_bytes: int
    shared_bytes: int  # also mapped by another process, or kept in the prefix cache
    ahead_bytes: int  # mapped for tokens that are still to come
    host_bytes: int  # copies in the host area, others' as well
    disk_bytes: int  # copies in the swap file, others' as well


@define
class Usage:
    """Bytes of one tenant, of one model, or of the whole device, each frame and each copy once."""

    private_bytes: int = 0  # of one process alone
    shared_bytes: int = 0  # of a process, and of others or the prefix cache
    ahead_bytes: int = 0  # of one process, for tokens that are still to come
    cached_bytes: int = 0  # of the prefix cache alone: given up when memory is short
    host_bytes: int = 0  # beside the pool: copies in the host area
    disk_bytes: int = 0  # beside the pool: copies in the swap file

    @property
    def resident_bytes(self) -> int:
        """What its processes keep from others; the cache is anybody's."""
        return self.private_bytes + self.shared_bytes + self.ahead_bytes


@frozen
class Ledger:
    """A device's pool at one moment."""

    pool_bytes: int
    total: Usage
    moving_bytes: int  # of nobody's space: a copy between tiers still reads or fills them
    free_bytes: int
    processes: tuple[ProcessMemory, ...]
    tenants: dict[str, Usage]
    models: dict[str, Usage]  # of processes; the cache is not told by model


def take_ledger(vmm: VMM, holders: Iterable[Holder]) -> Ledger:
    """Account for every frame of a device. O(pages); mutates nothing.

    Args:
        vmm: of the device.
        holders: everybody who has a space there, or copies.
    """
    kv, refcounts = vmm.kv, vmm.refcounts
    page_bytes = kv.page_bytes
    total = Usage()
    tenants: dict[str, Usage] = {}
    models: dict[str, Usage] = {}
    processes = []
    seen: set[int] = set()  # shared pages, by their first frame
    seen_copies: set[PageCopy] = set()
    for holder in holders:
        entries = holder.space.page_table.entries if holder.space is not None else []
        num_used = kv.num_pages(holder.num_positions)
        shared = [frames[0] for frames in entries if refcounts[frames[0]] > 1]
        num_ahead = sum(refcounts[frames[0]] == 1 for frames in entries[num_used:])
        num_private = len(entries) - len(shared) - num_ahead
        copies = set(holder.backing)
        new_copies = copies - seen_copies
        seen_copies |= copies
        processes.append(
            ProcessMemory(
                holder.pid,
                holder.tenant,
                holder.model,
                num_private * page_bytes,
                len(shared) * page_bytes,
                num_ahead * page_bytes,
                _bytes_on("host", copies, kv.frame_bytes),
                _bytes_on("disk", copies, kv.frame_bytes),
            )
        )
        num_first = len(seen)
        seen.update(shared)
        for usage in (
            total,
            tenants.setdefault(holder.tenant, Usage()),
            models.setdefault(holder.model, Usage()),
        ):
            usage.private_bytes += num_private * page_bytes
            usage.shared_bytes += (len(seen) - num_first) * page_bytes
            usage.ahead_bytes += num_ahead * page_bytes
            usage.host_bytes += _bytes_on("host", new_copies, kv.frame_bytes)
            usage.disk_bytes += _bytes_on("disk", new_copies, kv.frame_bytes)
    for salt, frames in vmm.cached_pages():
        if frames[0] not in seen:
            total.cached_bytes += page_bytes
            tenants.setdefault(tenant_of(salt), Usage()).cached_bytes += page_bytes
    pool_bytes = len(refcounts) * kv.frame_bytes
    free_bytes = vmm.statistics().num_free * kv.frame_bytes
    moving_bytes = pool_bytes - free_bytes - total.resident_bytes - total.cached_bytes
    return Ledger(pool_bytes, total, moving_bytes, free_bytes, tuple(processes), tenants, models)


def _bytes_on(tier: Tier, copies: Iterable[PageCopy], slot_bytes: int) -> int:
    return sum(len(copy.slots) for copy in copies if copy.tier == tier) * slot_bytes
