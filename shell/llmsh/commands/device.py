"""What devices are to do: sleep, wake."""

from __future__ import annotations

from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import Command


def read_level(text: str) -> int:
    """Convert a level of sleep. Raises ValueError."""
    if text not in ("1", "2"):
        raise ValueError("1 or 2 is needed")
    return int(text)


async def sleep(shell: Shell, arguments: Arguments) -> int:
    """`sleep`: have all devices rest."""
    client = await shell.client()
    await client.sleep(arguments["level"] or 1)
    shell.screen.line("all devices sleep; `wake` has them go on")
    return 0


async def wake(shell: Shell, arguments: Arguments) -> int:
    """`wake`: have all devices go on."""
    client = await shell.client()
    await client.wake()
    shell.screen.line("all devices serve")
    return 0


COMMANDS = (
    Command(
        "sleep",
        summary="Have all devices rest (administrators)",
        details=(
            "No process ends: their memory goes to lower tiers, or is computed again later, and new ones "
            "wait. On level 1 weights stay where they are; on level 2 drivers end: nothing is left."
        ),
        function=sleep,
        options=(Option(("--level",), "1, which is meant unless said, or 2", "LEVEL", read_level),),
        examples=(("sleep --level 2", "all memory of the devices is free for something else"),),
    ),
    Command(
        "wake",
        summary="Have devices that sleep go on (administrators)",
        details="Ready when all of them serve; processes go on where they were.",
        function=wake,
        examples=(("wake", "load weights that are not there, and go on"),),
    ),
)
