"""Variables: set, unset."""

from __future__ import annotations

from shell.llmsh.listing import Column, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments
from shell.llmsh.table import JSON, Command


async def list_variables(shell: Shell, arguments: Arguments) -> int:
    """`set`: the shell's own variables."""
    if shell.is_json(arguments):
        shell.screen.json(dict(shell.variables))
    elif rows := list(shell.variables):
        shell.screen.show(make_table((Column("NAME"), Column("VALUE", is_flexible=True)), rows))
    return 0


async def unset(shell: Shell, arguments: Arguments) -> int:
    """`unset`: forget variables."""
    for name in arguments.operands:
        shell.variables.remove(name)
    return 0


COMMANDS = (
    Command(
        "set",
        summary="List the variables of this shell",
        details=(
            "NAME=VALUE on a line of its own sets one, $NAME stands for it; $(commands) stands for what "
            "they write."
        ),
        function=list_variables,
        options=(JSON,),
        examples=(
            ('story=$(run "Tell me a story"); run "Who is in it? $story"', "use an answer more than once"),
        ),
    ),
    Command(
        "unset",
        summary="Forget variables of this shell",
        operands="NAME...",
        function=unset,
        min_operands=1,
        max_operands=None,
        completes=("variable",),
        examples=(("unset story", "one that is not needed any more"),),
    ),
)
