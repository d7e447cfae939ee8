"""Free address-space identifiers, and what the device still has mapped under each.

A driver unmaps lazily: when a space is released, its pages stay where they were until another owner of the
asid maps something else there. A new space that is given the right asid finds pages that it needs mapped
already: those that it shares with the space that was there (a process that comes back), or frames that are
free again and may as well be its own.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from attrs import define, field, frozen

from llmos.device import Asid
from llmos.errors import OutOfSpaces
from llmos.mm.frame import FramePool
from llmos.mm.page_table import PageFrames

MAX_TRIES = 4  # candidates of one kind that are looked at


@frozen(eq=False)
class FreeAsid:
    """One asid that nobody has."""

    asid: Asid
    mappings: list[PageFrames]  # by vpn: what the device has mapped there last
    num_own: int  # of these, from page 0 on: their frames were free when it became free
    landmarks: tuple[PageFrames, ...]  # the first and the last of the pages that went to the prefix index
    released: int  # counts releases: the larger, the later

    @property
    def key(self) -> tuple[int, int, int]:
        """Order among free asids: by how much can be had of it, then by age."""
        return (self.num_own, self.released, self.asid)


@define(eq=False)
class FreeAsids:
    """Gives out the asid whose leftover mappings fit best: enough of what is needed, the least to spare.

    Where none fits, the one that has been free the longest goes, so that processes which come back soon find
    theirs. O(log n) per call, with a few candidates looked at, and not by how many pages each has.

    Args:
        max_spaces: asids are below it.
        best_fit: False, to compare with it: whichever has been free the longest, whatever is there.

    Source: the best fit of Prabhu et al. 2024, vAttention, over all candidates and not the first two.
    """

    max_spaces: int
    best_fit: bool = True
    _by_size: list[tuple[int, int, int]] = field(init=False)  # keys, ascending
    _free: dict[Asid, FreeAsid] = field(init=False)
    _by_landmark: dict[PageFrames, list[Asid]] = field(init=False)
    _num_releases: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reset()

    def __len__(self) -> int:
        return len(self._free)

    def __iter__(self) -> Iterator[Asid]:
        return iter(self._free)

    def reset(self) -> None:
        """The device has nothing mapped, and nobody has an asid."""
        self._free = {Asid(asid): FreeAsid(Asid(asid), [], 0, (), 0) for asid in range(self.max_spaces)}
        self._by_size = sorted(free.key for free in self._free.values())
        self._by_landmark = {}
        self._num_releases = 0

    def take(self, shared: Sequence[PageFrames], num_pages: int, pool: FramePool) -> FreeAsid:
        """Give one out.

        Args:
            shared: pages 0, 1, … that the new space will share with others.
            num_pages: that it will need before long, those included.
            pool: says which frames are free.

        Raises:
            OutOfSpaces: none is free.
        """
        if not self._free:
            raise OutOfSpaces(1, 0)
        if self.best_fit:
            best = (
                self._find_shared(shared, num_pages)
                or self._find_free(num_pages, pool)
                or self._free[Asid(self._by_size[0][2])]
            )
        else:
            best = min(self._free.values(), key=lambda free: (free.released, free.asid))
        del self._free[best.asid]
        del self._by_size[bisect_left(self._by_size, best.key)]
        for page in best.landmarks:
            asids = self._by_landmark[page]
            asids.remove(best.asid)
            if not asids:
                del self._by_landmark[page]
        return best

    def give_back(
        self, asid: Asid, mappings: list[PageFrames], num_own: int, landmarks: tuple[PageFrames, ...]
    ) -> None:
        """Take one back, with what its device has mapped there; see FreeAsid."""
        self._num_releases += 1
        free = self._free[asid] = FreeAsid(asid, mappings, num_own, landmarks, self._num_releases)
        insort(self._by_size, free.key)
        for page in landmarks:
            self._by_landmark.setdefault(page, []).append(asid)

    def _find_shared(self, shared: Sequence[PageFrames], num_pages: int) -> FreeAsid | None:
        """One that has the last, or else the first, of the shared pages mapped where it is needed."""
        for vpn in {len(shared) - 1: None, 0: None} if shared else ():
            found = [
                self._free[asid]
                for asid in self._by_landmark.get(shared[vpn], ())[-MAX_TRIES:]
                if len(self._free[asid].mappings) > vpn and self._free[asid].mappings[vpn] == shared[vpn]
            ]
            if found:
                return min(found, key=lambda free: _misfit(len(free.mappings), num_pages))
        return None

    def _find_free(self, num_pages: int, pool: FramePool) -> FreeAsid | None:
        """The one with the fewest pages of free frames that are enough; else the one with the most."""
        start = bisect_left(self._by_size, (num_pages, 0, 0))
        places = [*range(start, min(start + MAX_TRIES, len(self._by_size)))]
        places += range(start - 1, max(start - 1 - MAX_TRIES, -1), -1)
        for place in places:
            num_own, _, asid = self._by_size[place]
            free = self._free[Asid(asid)]
            if num_own and all(
                pool.refcounts[free.mappings[vpn][0]] == 0 for vpn in (0, min(num_own, num_pages) - 1)
            ):
                return free
        return None


def _misfit(num_mapped: int, num_pages: int) -> tuple[bool, int]:
    """The smaller, the better: enough before too little, then what comes nearest."""
    return (num_mapped < num_pages, abs(num_mapped - num_pages))
