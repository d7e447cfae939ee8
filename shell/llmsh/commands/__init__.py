"""The commands, one file for each family; here they make up the table."""

from __future__ import annotations

from shell.llmsh.commands import (
    chat,
    filters,
    image,
    jobs,
    memory,
    prefix,
    process,
    run,
    strace,
    system,
    tenant,
    top,
    variables,
    why,
)
from shell.llmsh.table import CommandTable

TABLE = CommandTable(
    (
        *run.COMMANDS,
        *process.COMMANDS,
        *why.COMMANDS,
        *strace.COMMANDS,
        *jobs.COMMANDS,
        *chat.COMMANDS,
        *filters.COMMANDS,
        *variables.COMMANDS,
        *prefix.COMMANDS,
        *image.COMMANDS,
        *top.COMMANDS,
        *memory.COMMANDS,
        *system.COMMANDS,
        *tenant.COMMANDS,
    )
)
