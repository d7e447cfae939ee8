"""The commands, one file for each family; here they make up the table."""

from __future__ import annotations

from shell.llmsh.commands import (
    chat,
    device,
    filters,
    help,
    image,
    jobs,
    leave,
    memory,
    output,
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
    {
        "Generate": (*run.COMMANDS, *chat.COMMANDS),
        "Processes": (*process.COMMANDS, *output.COMMANDS, *why.COMMANDS, *strace.COMMANDS),
        "Jobs": jobs.COMMANDS,
        "Images": image.COMMANDS,
        "The system": (*top.COMMANDS, *memory.COMMANDS, *system.COMMANDS, *device.COMMANDS, *tenant.COMMANDS),
        "Pipes and variables": (*filters.COMMANDS, *variables.COMMANDS),
        "The shell": (*prefix.COMMANDS, *help.COMMANDS, *leave.COMMANDS),
    }
)
