"""What the kernel can say about memory and tenants by walking them: made when asked for."""

from __future__ import annotations

from collections import Counter

from llmos.kernel.system import System
from llmos.mm.ledger import Holder, Ledger, take_ledger
from llmos.proc.pcb import Process
from llmos.sched.core import Core
from syscalls.tenant import TenantShare


def holder_of(process: Process) -> Holder:
    """A process with memory, as the ledger needs to know it."""
    assert process.space is not None
    num_positions = max(process.num_scheduled, len(process.tokens) + process.num_pending)
    return Holder(process.pid, process.tenant, process.model, process.space, num_positions)


def ledger_of(core: Core) -> Ledger | None:
    """A device's ledger; None: it has not loaded a model yet."""
    residents = core.residents
    if residents.switch is None:
        return None
    holders = [holder_of(process) for process in residents.queue.members.values() if process.space]
    return take_ledger(residents.switch.vmm, holders)


def tenant_shares(system: System) -> list[TenantShare]:
    """What every tenant was served and has, by name."""
    resident: Counter[str] = Counter()
    for core in system.cores.values():
        if (ledger := ledger_of(core)) is not None:
            for tenant, usage in ledger.tenants.items():
                resident[tenant] += usage.resident_bytes
    return [
        TenantShare(
            tenant=account.tenant,
            weight=account.weight,
            counter=account.counter,
            num_prompt_tokens=account.num_prompt_tokens,
            num_output_tokens=account.num_output_tokens,
            token_seconds=account.token_seconds,
            num_running=account.num_running,
            num_waiting=account.num_waiting,
            num_resident_bytes=resident[account.tenant],
        )
        for account in sorted(system.accounts, key=lambda account: account.tenant)
    ]
