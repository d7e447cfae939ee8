"""Saving: from a process, whatever it does, to its description and its memory in a file.

The description is taken at one moment, in the Core's own task. The copies that write the memory are fenced
like all others: pages that they read are pinned, so a process that runs on writes to pages of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import attrs

from llmos.device import Loaded
from llmos.mm.page_copy import CopyState
from llmos.mm.transfer import Transfer
from llmos.proc.image import Image, describe, platform_of, with_checksums
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from llmos.sched.messages import Save
from llmos.sched.residents import Residents
from syscalls.errno import Errno, SyscallError


@attrs.define(eq=False)
class _Saving:
    """A process whose memory is on its way into a file, in one copy for each tier that it is on."""

    process: Process
    image: Image
    done: Callable[[Image | SyscallError], None]
    again: Callable[[], None]  # from what is left: a copy on a lower tier turned out to be bad
    num_left: int = 0  # copies that have not ended
    checksums: dict[int, tuple[int, ...]] = attrs.field(factory=dict)  # by page
    fault: str = ""
    lost_copies: bool = False

    def note(self, transfer: Transfer) -> None:
        """One of the copies has ended."""
        for vpn, copy in zip(transfer.vpns, transfer.pages, strict=True):
            self.checksums[vpn] = copy.checksums
        if transfer.faults:
            self.fault = next(iter(transfer.faults.values()))
            self.lost_copies |= any(source.state is CopyState.LOST for source in transfer.sources)
        self.num_left -= 1
        if not self.num_left:
            self.finish()

    def finish(self) -> None:
        """All of it is in the file, or some of it is not."""
        status = self.process.status
        if not self.fault and status is not None and status.reason == "error":
            self.fault = status.message  # by a step that was in flight: what it wrote is not to be trusted
        if self.lost_copies:
            self.again()  # it ends: each time there are fewer copies
        elif self.fault:
            self.done(SyscallError(Errno.EIO, f"process {self.process.pid} was not saved: {self.fault}"))
        else:
            self.done(with_checksums(self.image, [self.checksums[vpn] for vpn in sorted(self.checksums)]))


def start_saving(residents: Residents, save: Save, loaded: Loaded | None, *, is_up: bool) -> None:
    """Describe a process as it is now, and start to write its memory; `save.done` tells of the end.

    What is not in memory or whole on a lower tier at the moment is not saved: it is computed again after a
    restore. Nor is what turns out to be bad on a lower tier: then all is written again, without that.

    Args:
        residents: of the process's device.
        save: what was asked for.
        loaded: the device's model; None: it was unloaded, and nobody is left of it.
        is_up: there is a driver; without one nothing is in memory.
    """
    process, switch = save.process, residents.switch
    if loaded is None or process.state in (ProcState.ZOMBIE, ProcState.EMBRYO):
        save.done(SyscallError(Errno.EBUSY, f"process {process.pid} has exited"))
        return
    assert switch is not None
    platform = platform_of(loaded)
    space = None if process.num_arriving else process.space
    if not is_up:
        num_tokens = 0
    elif space is not None:
        # Steps in flight end before the copy begins, and known tokens are what they compute.
        num_tokens = min(process.num_scheduled, len(process.tokens))
    else:
        num_tokens = process.backing.num_tokens(platform.kv.tokens_per_page)
    image = describe(process, platform, num_tokens, time.time())
    again = partial(start_saving, residents, save, loaded, is_up=is_up)
    saving = _Saving(process, image, save.done, again)
    transfers = switch.swap.save(space, num_tokens, process.backing, save.path, saving.note)
    saving.num_left = len(transfers)
    if not transfers:
        saving.finish()
