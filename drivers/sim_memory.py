"""Simulated frames and page tables that check how the kernel uses them.

A frame holds a slot for each token written to it: the model's state before its first token, and after each.
Reading a position walks the page table, as a kernel on a device would, and every slot is checked
to follow from the one before it, so that a stale page or a frame given away too early is a hard error.
"""

from __future__ import annotations

from typing import NamedTuple

import attrs

from drivers.sim_model import ROOT_STATE
from llmos.device import Copy, CopyPage, KVFormat, Map


class ProtocolViolation(AssertionError):
    """The kernel did what no correct kernel does; the message names the thing."""


class Slot(NamedTuple):
    """What one token leaves in one segment."""

    before: int
    after: int
    segment: int


@attrs.define(eq=False)
class SimFrame:
    """What tokens, one after the other, leave in one segment, as numbers; slots are made when asked for."""

    segment: int = 0
    before: int = ROOT_STATE
    after: list[int] = attrs.field(factory=list)

    def slot(self, index: int) -> Slot:
        """One token's."""
        return Slot(self.after[index - 1] if index else self.before, self.after[index], self.segment)

    def copy(self) -> SimFrame:
        """The same, elsewhere."""
        return SimFrame(self.segment, self.before, self.after.copy())


NOTHING = SimFrame()


@attrs.define(eq=False)
class SimSpace:
    """The page table of one space."""

    asid: int
    pages: dict[int, tuple[int, ...]] = attrs.field(factory=dict)
    ahead: dict[int, tuple[int, ...]] = attrs.field(factory=dict)  # become pages when a row reaches them
    last_step: int = 0  # that had a row for it
    num_checked: int = 0  # positions below it are known to form one chain
    last_state: tuple[int, int] = (0, ROOT_STATE)  # the number of positions checked last, and what follows
    tail: list[SimFrame] = attrs.field(factory=list)  # of the page written last; empty: shared since, or gone


@attrs.define(eq=False)
class SimMemory:
    """All frames and page tables of one simulated device."""

    kv: KVFormat
    num_frames: int
    spaces: dict[int, SimSpace] = attrs.field(factory=dict, init=False)
    being_read: set[int] = attrs.field(factory=set, init=False)  # frames, by copies to lower tiers
    being_filled: set[int] = attrs.field(factory=set, init=False)
    step_id: int = attrs.field(default=0, init=False)  # of the last one that was begun
    _last_write: dict[int, int] = attrs.field(factory=dict, init=False)  # to a frame: by which step
    _last_read: dict[int, int] = attrs.field(factory=dict, init=False)  # of a frame that somebody had
    _frames: dict[int, SimFrame] = attrs.field(factory=dict, init=False)
    _users: dict[int, set[tuple[int, int, int]]] = attrs.field(
        factory=dict, init=False
    )  # pfn: asid, vpn, segment

    @property
    def num_mapped_frames(self) -> int:
        """Frames that at least one page table names."""
        return len(self._users)

    def lay_out(self, kv: KVFormat, num_frames: int) -> None:
        """Begin anew with other frames, while no space is open; what was in memory is gone."""
        assert not self.spaces, self.spaces
        self.kv, self.num_frames = kv, num_frames
        self._frames.clear()

    def space(self, asid: int) -> SimSpace:
        """Look up an open space. Raises ProtocolViolation when it is not reserved."""
        if asid not in self.spaces:
            raise ProtocolViolation(f"space {asid} is not reserved")
        return self.spaces[asid]

    def reserve(self, asid: int) -> None:
        """Open a space."""
        if asid in self.spaces:
            raise ProtocolViolation(f"space {asid} is reserved twice")
        self.spaces[asid] = SimSpace(asid)

    def release(self, asid: int) -> None:
        """Close a space and unmap its pages."""
        space = self.space(asid)
        for vpn in list(space.pages):
            self._unmap(space, vpn)
        del self.spaces[asid]

    def map(self, edit: Map, max_pages: int) -> None:
        """Back a page by frames."""
        space = self.space(edit.asid)
        self._check_frames(edit.pfns)
        if not 0 <= edit.vpn < max_pages:
            raise ProtocolViolation(f"space {edit.asid} has {max_pages} pages; page {edit.vpn} was mapped")
        if edit.vpn in space.pages:
            self._unmap(space, edit.vpn)
        space.ahead.pop(edit.vpn, None)
        space.num_checked = min(space.num_checked, edit.vpn * self.kv.tokens_per_page)
        if edit.is_ahead:
            space.ahead[edit.vpn] = edit.pfns
        else:
            self._enter(space, edit.vpn, edit.pfns)

    def copy(self, edit: CopyPage) -> None:
        """Copy frames; a target may have one user at most."""
        self._check_frames(edit.sources)
        self._check_frames(edit.targets)
        for target in edit.targets:
            if target in edit.sources:
                raise ProtocolViolation(f"frame {target} is copied onto a source of the same copy")
            self._check_writable(target)
            if len(self._users.get(target, ())) > 1:
                raise ProtocolViolation(
                    f"frame {target} is overwritten while shared by {self._name_users(target)}"
                )
        for source, target in zip(edit.sources, edit.targets, strict=True):
            if source in self.being_filled:
                raise ProtocolViolation(f"frame {source} is copied while a copy fills it")
            self._frames[target] = self.frame(source).copy()
            self._last_write[target] = self._last_read[source] = self.step_id
            for asid, vpn, _ in self._users.get(target, ()):
                space = self.spaces[asid]
                space.num_checked = min(space.num_checked, vpn * self.kv.tokens_per_page)

    def read(self, asid: int, num_tokens: int) -> int:
        """Return the state after the first `num_tokens` positions, checking what was not checked yet."""
        space = self.space(asid)
        if num_tokens == 0:
            return ROOT_STATE
        if space.last_state[0] == space.num_checked == num_tokens:  # nothing has touched its pages since
            self._check_readable(space, (num_tokens - 1) // self.kv.tokens_per_page)
            return space.last_state[1]
        start = min(space.num_checked, num_tokens - 1)
        state = self._slot(space, start - 1).after if start else ROOT_STATE
        while (
            start < num_tokens and (after := self._follow_page(space, start, num_tokens, state)) is not None
        ):
            state = after
            start = min(num_tokens, start - start % self.kv.tokens_per_page + self.kv.tokens_per_page)
        for position in range(start, num_tokens):  # one by one, for the sake of what is said of it
            slot = self._slot(space, position)
            if slot.before != state:
                raise ProtocolViolation(
                    f"space {asid} position {position}: page {position // self.kv.tokens_per_page} is stale, "
                    "its contents do not follow from the page before"
                )
            state = slot.after
        space.num_checked, space.last_state = num_tokens, (num_tokens, state)
        return state

    def write(self, asid: int, position: int, states: list[int]) -> None:
        """Store states[1:] at `position` and after it; states[0] is the state before `position`.

        What a frame held behind the last written slot is gone: keys are only ever appended.
        """
        space = self.space(asid)
        space.last_step = self.step_id
        size = self.kv.tokens_per_page
        end = position + len(states) - 1
        tail: list[SimFrame] = []
        for vpn in range(position // size, -(-end // size)):
            low, high = max(position, vpn * size), min(end, (vpn + 1) * size)
            tail.clear()
            for segment, pfn in enumerate(self._page(space, vpn)):
                if len(self._users[pfn]) > 1:
                    raise ProtocolViolation(
                        f"space {asid} writes page {vpn} to frame {pfn}, shared by {self._name_users(pfn)}: "
                        "copy-on-write was missed, or the frame was given away too early"
                    )
                self._check_writable(pfn)
                self._last_write[pfn] = self.step_id
                new = states[low - position + 1 : high - position + 1]
                if offset := low - vpn * size:
                    frame = self._frames.setdefault(pfn, SimFrame())
                    frame.after[offset:] = new
                else:
                    frame = self._frames[pfn] = SimFrame(segment, states[low - position], new)
                tail.append(frame)
        space.num_checked, space.last_state, space.tail = end, (end, states[-1]), tail

    def place_next(self, asid: int, position: int) -> SimSpace | None:
        """Find the space to which a step that begins now appends one position, if all is as usual.

        Its `tail` has the frames. The caller sets what `write` would set, and appends the new state to each.

        Returns:
            None: it is not as usual, for `read` and `write` to tell; nothing was done.
        """
        space = self.spaces.get(asid)
        if space is None or not space.tail or not position % self.kv.tokens_per_page:
            return None
        if not space.last_state[0] == space.num_checked == position or self.being_read or self.being_filled:
            return None
        space.last_step = self.step_id
        for pfn in space.pages[position // self.kv.tokens_per_page]:
            self._last_write[pfn] = self.step_id
        return space

    def frame(self, pfn: int) -> SimFrame:
        """What a frame holds; not to be changed."""
        return self._frames.get(pfn, NOTHING)

    def fill(self, pfn: int, frame: SimFrame) -> None:
        """Set what a frame holds, from a lower tier."""
        self._frames[pfn] = frame
        for asid, vpn, _ in self._users.get(pfn, ()):
            space = self.spaces[asid]
            space.num_checked = min(space.num_checked, vpn * self.kv.tokens_per_page)

    def check_unused(self, copy: Copy, after: int) -> None:
        """Raise ProtocolViolation where a step behind `after` uses what a copy reads, or fills."""
        for place in (copy.source, copy.target):
            for pfn in place.slots if place.tier == "device" else ():
                used = self._last_write.get(pfn, 0)
                if place is copy.target:
                    users = [self.spaces[asid].last_step for asid, _, _ in self._users.get(pfn, ())]
                    used = max(used, self._last_read.get(pfn, 0), *users, 0)
                if used > after:
                    raise ProtocolViolation(
                        f"copy {copy.id} waits for step {after} at most, and frame {pfn} is used by "
                        f"step {used}"
                    )

    def _check_writable(self, pfn: int) -> None:
        if pfn in self.being_read or pfn in self.being_filled:
            raise ProtocolViolation(f"frame {pfn} is written while a copy uses it")

    def _follow_page(self, space: SimSpace, start: int, end: int, state: int) -> int | None:
        """The state after position `end` or the page that `start` is in; None: something is wrong with it."""
        vpn, low = divmod(start, self.kv.tokens_per_page)
        high = min(self.kv.tokens_per_page, end - start + low)
        self._check_readable(space, vpn)
        expected: list[int] | None = None
        for segment, pfn in enumerate(self._page(space, vpn)):
            frame = self.frame(pfn)
            after = frame.after[low:high]
            if expected is None:
                if len(after) < high - low or frame.slot(low).before != state:
                    return None
                expected = after
            if after != expected or frame.segment != segment:
                return None
        return expected[-1] if expected else None

    def _check_readable(self, space: SimSpace, vpn: int) -> None:
        for pfn in self._page(space, vpn):
            if pfn in self.being_filled:
                raise ProtocolViolation(f"space {space.asid} reads frame {pfn} while a copy fills it")

    def _slot(self, space: SimSpace, position: int) -> Slot:
        """Read one position through every segment of the page table."""
        vpn, offset = divmod(position, self.kv.tokens_per_page)
        self._check_readable(space, vpn)
        slots = []
        for segment, pfn in enumerate(self._page(space, vpn)):
            frame = self.frame(pfn)
            if offset >= len(frame.after):
                raise ProtocolViolation(
                    f"space {space.asid} reads position {position}, which was never computed: frame {pfn} of "
                    f"page {vpn} holds {len(frame.after)} tokens"
                )
            if frame.segment != segment:
                raise ProtocolViolation(
                    f"space {space.asid} page {vpn}: segment {segment} is backed by frame {pfn}, "
                    f"which holds data of segment {frame.segment}"
                )
            slots.append(frame.slot(offset))
        if any(slot.after != slots[0].after for slot in slots):
            raise ProtocolViolation(f"space {space.asid} page {vpn}: its segments hold different tokens")
        return slots[0]

    def _enter(self, space: SimSpace, vpn: int, pfns: tuple[int, ...]) -> None:
        space.pages[vpn] = pfns
        for segment, pfn in enumerate(pfns):
            users = self._users.setdefault(pfn, set())
            for asid, *_ in users:
                self.spaces[asid].tail = []  # shared from now on
            users.add((space.asid, vpn, segment))

    def _page(self, space: SimSpace, vpn: int) -> tuple[int, ...]:
        if vpn in space.ahead:
            self._enter(space, vpn, space.ahead.pop(vpn))
        if vpn not in space.pages:
            raise ProtocolViolation(f"space {space.asid} uses page {vpn}, which is not mapped")
        return space.pages[vpn]

    def _unmap(self, space: SimSpace, vpn: int) -> None:
        space.tail = []
        for segment, pfn in enumerate(space.pages.pop(vpn)):
            self._last_read[pfn] = max(self._last_read.get(pfn, 0), space.last_step)
            users = self._users[pfn]
            users.discard((space.asid, vpn, segment))
            if not users:
                del self._users[pfn]

    def _check_frames(self, pfns: tuple[int, ...]) -> None:
        if len(pfns) != self.kv.frames_per_page or len(set(pfns)) != len(pfns):
            raise ProtocolViolation(f"a page takes {self.kv.frames_per_page} different frames, got {pfns}")
        for pfn in pfns:
            if not 0 <= pfn < self.num_frames:
                raise ProtocolViolation(f"frame {pfn} does not exist; the device has {self.num_frames}")

    def _name_users(self, pfn: int) -> str:
        return ", ".join(f"space {asid} page {vpn}" for asid, vpn, _ in sorted(self._users[pfn]))
