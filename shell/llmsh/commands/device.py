"""What devices are to do: load, unload, sleep, wake."""

from __future__ import annotations

import trio

from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.table import JSON, Command


def read_level(text: str) -> int:
    """Convert a level of sleep. Raises ValueError."""
    if text not in ("1", "2"):
        raise ValueError("1 or 2 is needed")
    return int(text)


async def load(shell: Shell, arguments: Arguments) -> int:
    """`load MODEL`: serve another model."""
    client = await shell.client()
    model = arguments.operands[0]
    if model != "builtin":
        model = str(
            await (await trio.Path(model).expanduser()).absolute()
        )  # the kernel may have been started elsewhere
    loaded = await client.load_model(model, arguments["name"])
    if shell.is_json(arguments):
        shell.screen.json(loaded)
    else:
        shell.screen.line(f"{loaded.model.name} serves on {loaded.device}")
    return 0


async def unload(shell: Shell, arguments: Arguments) -> int:
    """`unload NAME`: give up a model."""
    client = await shell.client()
    (name,) = arguments.operands
    await client.unload_model(name, force=bool(arguments["force"]))
    shell.screen.line(f"{name} is unloaded")
    return 0


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
        "load",
        summary="Serve another model (administrators)",
        details=(
            "A folder or GGUF file of the kernel's machine, or builtin. It gets an empty device, or a new "
            "one; formats and memory are as the kernel's options have them."
        ),
        function=load,
        operands="MODEL",
        min_operands=1,
        max_operands=1,
        completes=("file",),
        options=(Option(("--name",), "what it is called; else as its folder or file", "NAME"), JSON),
        examples=(("load ~/models/qwen3-0.6b --name small", "serve it as small"),),
    ),
    Command(
        "unload",
        summary="Give up a model (administrators)",
        details=(
            "Nothing new is taken for it, and processes that run are waited for. Stopped ones and those that "
            "wait for input keep it, unless --force ends them, with all others of the model."
        ),
        function=unload,
        operands="NAME",
        min_operands=1,
        max_operands=1,
        completes=("model",),
        options=(Option(("--force",), "end its processes"),),
        examples=(("unload small", "its device is empty then"),),
    ),
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
