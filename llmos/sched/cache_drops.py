"""Dropping the prefix cache of a device: in small pieces, so that steps go on between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import attrs
import trio

from llmos.mm.address_space import tenant_of
from llmos.mm.vmm import VMM
from llmos.sched.messages import DropCache


@attrs.define(eq=False)
class _Drop:
    """One call that is being carried out."""

    call: DropCache
    pieces: Iterator[int]
    num_pages: int = 0  # given up so far


@attrs.define(eq=False)
class CacheDrops:
    """The drop_cache calls that a device has not ended, in the order in which they came."""

    _drops: deque[_Drop] = attrs.field(init=False, factory=deque)

    def __bool__(self) -> bool:
        return bool(self._drops)

    def start(self, call: DropCache, vmm: VMM | None) -> None:
        """Take a call in; None: the device has no memory yet."""
        tenant = call.tenant
        pieces = iter(()) if vmm is None else vmm.drop_cache(lambda salt: tenant in (None, tenant_of(salt)))
        self._drops.append(_Drop(call, pieces))

    async def go_on(self) -> None:
        """Give up one more piece of the oldest call's pages, or answer it behind the last. A checkpoint."""
        drop = self._drops[0]
        num_pages = next(drop.pieces, None)
        if num_pages is None:
            self._drops.popleft()
            drop.call.done(drop.num_pages)
        else:
            drop.num_pages += num_pages
        await trio.lowlevel.checkpoint()  # others' turn: readers, and results that are there
