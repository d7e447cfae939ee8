"""Another agreement with the tenants, while everything runs."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from llmos.kernel.server import SyscallServer
from llmos.kernel.system import System
from llmos.kernel.tenants import Agreement
from llmos.sched.messages import Reconsider
from syscalls.errno import Errno, SyscallError
from syscalls.tenant import TenantsReloaded


class BadAgreement(Exception):
    """The tenants file says what cannot be; the message names it."""


@attrs.define(eq=False)
class TenantReload:
    """Reads the tenants file again when it is asked to.

    Args:
        read: reads the agreement, blocking. Raises BadAgreement.
        on_change: told of the system whose tenants are others now.
    """

    system: System
    server: SyscallServer
    read: Callable[[], Agreement]
    on_change: Callable[[System], None] = lambda system: None
    _lock: trio.Lock = attrs.field(factory=trio.Lock)  # the file that was read last is the one that holds

    async def reload(self) -> TenantsReloaded:
        """Read and apply. All or nothing.

        Raises:
            SyscallError: EINVAL, the file is wrong or takes a restart; the tenants are what they were.
        """
        system = self.system
        async with self._lock:
            try:
                agreement = await system.errands.run_blocking(self.read)
                changes = system.tenants.replace(agreement)
            except (BadAgreement, SyscallError) as error:
                what = error.message if isinstance(error, SyscallError) else str(error)
                text = f"the tenants stay as they were: {what}"
                system.events.record("tenants", text, level="error")
                raise SyscallError(Errno.EINVAL, text) from error
            try:
                self.on_change(system)
            except OSError as error:  # the tenants are others all the same
                system.events.record("tenants", f"{error}", level="error")
            num_ended = self.server.identify_again()
            for core in system.cores.values():
                core.mailbox.send_nowait(Reconsider())
        done = TenantsReloaded(changes.added, changes.changed, changes.removed, num_ended)
        named = [
            f"{what} {', '.join(names)}"
            for what, names in (
                ("added", done.added),
                ("changed", done.changed),
                ("removed", done.removed),
            )
            if names
        ]
        text = f"tenants read again: {'; '.join(named) or 'nothing new'}; {num_ended} sessions ended"
        system.events.record("tenants", text)
        return done
