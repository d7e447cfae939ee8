"""Memory family: meminfo, maps, frames, drop_cache."""

from __future__ import annotations

import msgspec


class Meminfo(msgspec.Struct, frozen=True, tag="meminfo"):
    """Account for the memory of every device: whose it is and what it is for.

    Processes and tenants are the caller's own; administrators see everybody's. Takes time that grows with the
    pages in use. No errors.
    """


class ProcessMemory(msgspec.Struct, frozen=True):
    """What one process maps, in bytes, and what copies there are of it."""

    pid: int
    tenant: str
    private: int  # of it alone
    shared: int  # also mapped by another process, or kept in the prefix cache
    ahead: int  # of it alone, mapped for tokens that are still to come
    host: int = 0  # copies of its pages in the host area
    disk: int = 0  # copies of its pages in the swap file


class TenantMemory(msgspec.Struct, frozen=True):
    """What one tenant has, in bytes; a page that several of its processes map counts once."""

    tenant: str
    private: int
    shared: int
    ahead: int
    cached: int  # of the prefix cache alone: given up when memory is short
    host: int = 0
    disk: int = 0
    pinned: int = 0  # of the prefix cache, in use or not: what outlasts the rest


class TierMemory(msgspec.Struct, frozen=True):
    """A tier of memory below a device, in bytes."""

    tier: str  # "host", "disk"
    total: int
    used: int


class DeviceMemory(msgspec.Struct, frozen=True):
    """One device's memory, in bytes. The columns from `private` to `free` add up to `pool`."""

    device: str
    model: str
    weights: int  # of the model, beside the pool; 0: the driver does not say
    pool: int
    private: int  # keys and values of one process alone
    shared: int  # of a process, and of others or the prefix cache; each page once
    ahead: int  # mapped for tokens that are still to come
    cached: int  # of the prefix cache alone
    moving: int  # read or filled by a copy between tiers, and nobody's
    free: int
    tenants: tuple[TenantMemory, ...]
    processes: tuple[ProcessMemory, ...]
    tiers: tuple[TierMemory, ...] = ()  # those that there are


class MemoryInfo(msgspec.Struct, frozen=True, tag="memory_info"):
    """Reply to `Meminfo`: the devices that have loaded a model."""

    devices: tuple[DeviceMemory, ...]


class Maps(msgspec.Struct, frozen=True, tag="maps"):
    """Describe the address space of a process. Errors: ESRCH, EPERM."""

    pid: int


class MapRange(msgspec.Struct, frozen=True, array_like=True):
    """Positions that are alike, and what is behind them."""

    start: int  # first position
    end: int  # one past the last
    kind: str  # "private", "shared", "ahead": mapped for tokens to come
    num_references: int  # of each of its pages: address spaces, and one for the prefix cache
    num_bytes: int


class MapList(msgspec.Struct, frozen=True, tag="map_list"):
    """Reply to `Maps`, by position; empty when the process has no memory at the moment."""

    pid: int
    device: str
    ranges: tuple[MapRange, ...]


class Frames(msgspec.Struct, frozen=True, tag="frames"):
    """Draw what the frames of each device are for. Takes time that grows with the frames. No errors.

    It tells kinds only, not whose: everybody sees the same map.
    """


class FrameRun(msgspec.Struct, frozen=True, array_like=True):
    """Neighbouring cells of a map that are of one kind."""

    kind: str  # "free", "moving", "cached", "ahead", "private", "shared": as the columns of `DeviceMemory`
    num_cells: int


class FrameMap(msgspec.Struct, frozen=True):
    """One device's pool in at most 1024 cells, by frame number; a cell has its most frequent kind."""

    device: str
    model: str
    weights: int  # bytes beside the pool; 0: the driver does not say
    frame_bytes: int
    num_frames: int
    frames_per_cell: int  # the last cell may have fewer
    num_by_kind: dict[str, int]  # frames, exactly; together num_frames
    runs: tuple[FrameRun, ...]


class FrameMapList(msgspec.Struct, frozen=True, tag="frame_map_list"):
    """Reply to `Frames`: the devices that have loaded a model."""

    devices: tuple[FrameMap, ...]


class DropCache(msgspec.Struct, frozen=True, tag="drop_cache"):
    """Give up the pages of the prefix cache that no process maps, on every device; wait until they are free.

    An administrator drops everybody's pages, others those of their own tenant. Pages in use stay in the
    cache, and so may some that come meanwhile. What processes compute and read is the same as before. It is
    done in small pieces between steps: all of it takes time that grows with the pages, a few microseconds for
    each, and nobody waits for more than a piece. Errors: ESHUTDOWN.
    """


class CacheDropped(msgspec.Struct, frozen=True, tag="cache_dropped"):
    """Reply to `DropCache`."""

    num_pages: int  # given up, of all devices
