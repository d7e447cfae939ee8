"""The context switch: gives a process its memory and takes it away, in one place.

Today a process that loses its memory recomputes it when it runs again; its tokens do not change, since the
sample at a position depends on history, seed and position alone.
"""

from __future__ import annotations

import attrs

from llmos.device import Bind, Edit
from llmos.mm.vmm import VMM
from llmos.proc.pcb import Process


@attrs.define(eq=False)
class ContextSwitch:
    """Memory side of a process's life on one device."""

    vmm: VMM
    _binds: dict[int, Bind] = attrs.field(factory=dict)  # by asid; sent with the next step

    def frames_needed(self, process: Process) -> int:
        """Frames to run what the process has now and one token more, beyond what it holds."""
        end = len(process.tokens) + 1
        if process.space is None:
            return self.vmm.kv.num_pages(end) * self.vmm.kv.frames_per_page
        return self.vmm.frames_needed(process.space, process.num_scheduled, end)

    def switch_in(self, process: Process) -> None:
        """Open an address space for a process that has none, over whatever prefix is in memory already.

        Mutates the process. Raises OutOfSpaces.
        """
        if process.space is not None:
            return
        process.space = self.vmm.open_space(process.tenant)
        covered = self.vmm.attach_prefix(process.space, process.tokens, len(process.tokens) - 1)
        process.num_scheduled = process.num_computed = covered
        if process.first_step_at is None:
            process.num_cached_tokens = covered

    def share(self, elder: Process, heir: Process, num_tokens: int) -> None:
        """Give `heir` the first `num_tokens` positions of `elder`, copy-on-write. Mutates the heir."""
        assert elder.space is not None
        heir.space = self.vmm.fork_space(elder.space, num_tokens, heir.tenant)
        heir.num_scheduled = heir.num_computed = num_tokens
        heir.num_cached_tokens = num_tokens

    def bind(self, process: Process) -> None:
        """Tell the device how the process samples, once for each time it has a space and for each turn."""
        if not process.bound:
            assert process.space is not None
            self._binds[process.space.asid] = Bind(
                asid=process.space.asid,
                sampling=process.sampling,
                tokens=tuple(process.tokens),
                num_prompt_tokens=process.turn_start,
                stop_token_ids=tuple(sorted(process.stop_tokens)),
                min_tokens=process.min_tokens,
            )
            process.bound = True

    def switch_out(self, process: Process, *, is_clean: bool = True) -> None:
        """Take a process's memory; samples in flight are no longer for it. Mutates the process.

        Pages that hold tokens we know go to the prefix index, unless `is_clean` is false: then what the
        device wrote is not trusted.
        """
        process.epoch += 1
        process.num_pending = 0
        if process.space is not None:
            self._binds.pop(process.space.asid, None)
            known = process.tokens[: process.num_scheduled] if is_clean else []
            self.vmm.close_space(process.space, known)
            process.space = None
        process.num_scheduled = process.num_computed = 0
        process.bound = False

    def take_edits(self) -> tuple[Edit, ...]:
        """Drain what the device must be told before its next step."""
        edits = self.vmm.take_edits()
        if self._binds:
            edits += tuple(self._binds.values())
            self._binds.clear()
        return edits

    def reset(self) -> None:
        """The device lost its memory. Mutates nothing of the processes: the caller walks them."""
        self.vmm.reset()
        self._binds.clear()
