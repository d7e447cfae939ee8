"""Tenants: whoami, tenants."""

from __future__ import annotations

from shell.llmsh.errors import UsageError
from shell.llmsh.listing import Column, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_bytes
from shell.llmsh.table import JSON, Command
from syscalls.tenant import Rate, TenantInfo


async def show_identity(shell: Shell, arguments: Arguments) -> int:
    """`whoami`: the tenant that this session acts for."""
    client = await shell.client()
    identity = await client.whoami()
    if shell.is_json(arguments):
        shell.screen.json(identity)
    else:
        shell.screen.line(identity.tenant + (" (administrator)" if identity.admin else ""))
    return 0


async def list_tenants(shell: Shell, arguments: Arguments) -> int:
    """`tenants`: what each has, and may have; `tenants reload` has their file read again."""
    client = await shell.client()
    if arguments.operands:
        return await _reload(shell, arguments)
    tenants = await client.tenants(everyone=bool(arguments["all"]))
    if shell.is_json(arguments):
        shell.screen.json(tenants)
        return 0
    columns = (
        Column("TENANT"),
        *(Column(name, True) for name in ("WEIGHT", "SHARE", "RUN", "WAIT", "MEMORY", "TOKENS")),
        *(Column(name, True, is_minor=True) for name in ("REQUESTS/MIN", "TOKENS/MIN", "BUDGET", "REFUSED")),
    )
    shell.screen.show(make_table(columns, [_describe(tenant) for tenant in tenants]))
    return 0


async def _reload(shell: Shell, arguments: Arguments) -> int:
    (action,) = arguments.operands
    if action != RELOAD:
        raise UsageError(f"{action!r} is not {RELOAD!r}")
    done = await (await shell.client()).reload_tenants()
    if shell.is_json(arguments):
        shell.screen.json(done)
        return 0
    for what, names in (("added", done.added), ("changed", done.changed), ("removed", done.removed)):
        if names:
            shell.screen.line(f"{what}: {', '.join(names)}")
    if not (done.added or done.changed or done.removed):
        shell.screen.line("nothing is different")
    if done.num_ended_sessions:
        shell.screen.line(f"{done.num_ended_sessions} sessions ended")
    return 0


def _describe(tenant: TenantInfo) -> tuple[str | int, ...]:
    usage, limits = tenant.usage, tenant.limits
    memory = None if limits.max_resident_bytes is None else format_bytes(limits.max_resident_bytes)
    return (
        tenant.name,
        f"{usage.weight:g}",
        f"{tenant.share:.0%}",
        _of(usage.num_running, limits.max_running),
        _of(usage.num_waiting, limits.max_waiting),
        _of(format_bytes(usage.num_resident_bytes), memory),
        usage.num_prompt_tokens + usage.num_output_tokens,
        _left(tenant.rates.requests),
        _left(tenant.rates.tokens),
        "" if limits.token_budget is None else f"{tenant.num_spent_tokens} of {limits.token_budget}",
        tenant.num_refused,
    )


def _of(used: int | str, limit: int | str | None) -> str:
    return str(used) if limit is None else f"{used} of {limit}"


def _left(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.remaining:.0f} of {rate.limit:g}"


RELOAD = "reload"

COMMANDS = (
    Command(
        "whoami",
        summary="Print the tenant that you act for",
        function=show_identity,
        options=(JSON,),
        examples=(("whoami", "the tenant's name"),),
    ),
    Command(
        "tenants",
        summary="Show your tenant, or with -a all",
        details=(
            "Its share of the last minute, what it has now and what it may have, and what is left of its "
            "limits per minute and spent of its budget. Administrators may see all. 'tenants reload' "
            "(administrators) has the kernel read its tenants file again: names, keys, weights and limits "
            "hold from then on; a file that is wrong changes nothing."
        ),
        operands="[reload]",
        max_operands=1,
        function=list_tenants,
        options=(Option(("--all", "-a"), "everybody's"), JSON),
        examples=(
            ("tenants", "you"),
            ("tenants -a", "everybody"),
            ("tenants reload", "after the file was edited"),
        ),
    ),
)
