"""Process images: checkpoint, restore, images, rm-image."""

from __future__ import annotations

from datetime import datetime

from shell.llmsh.errors import EXIT_ERROR
from shell.llmsh.hints import explain_error
from shell.llmsh.listing import Column, make_table
from shell.llmsh.loop import Shell
from shell.llmsh.options import Arguments, Option
from shell.llmsh.render import format_bytes, format_seconds
from shell.llmsh.table import JSON, Command
from syscalls.errno import SyscallError

TENANT = Option(("--tenant",), "another tenant's (administrators)", "NAME", completes="tenant")


async def checkpoint(shell: Shell, arguments: Arguments) -> int:
    """`checkpoint`: save a process as an image."""
    word, name = arguments.operands
    client = await shell.client()
    pid = shell.jobs.resolve_one(word)
    saved = await client.checkpoint(pid, name, overwrite=bool(arguments["force"]))
    if shell.is_json(arguments):
        shell.screen.json(saved)
    else:
        shell.screen.line(
            f"{saved.name}: {format_bytes(saved.num_bytes)}, {saved.num_tokens} tokens "
            f"({saved.num_saved_tokens} with their memory), in {format_seconds(saved.seconds)}"
        )
    return 0


async def restore(shell: Shell, arguments: Arguments) -> int:
    """`restore`: a process from an image; it outlives the shell."""
    client = await shell.client()
    spawned = await client.restore(
        arguments.operands[0], detached=True, label=arguments["label"], tenant=arguments["tenant"]
    )
    if shell.is_json(arguments):
        shell.screen.json(spawned)
    else:
        shell.screen.line(" ".join(map(str, spawned.pids)))
    return 0


async def list_images(shell: Shell, arguments: Arguments) -> int:
    """`images`: what can be restored."""
    client = await shell.client()
    images = await client.images(arguments["tenant"])
    if shell.is_json(arguments):
        shell.screen.json(images)
        return 0
    columns = (
        Column("IMAGE"),
        Column("SIZE", True),
        Column("TOKENS", True),
        Column("SAVED", True, is_minor=True),
        Column("OUT", True, is_minor=True),
        Column("KIND", is_minor=True),
        Column("MADE"),
        Column("MODEL"),
        Column("LABEL", is_flexible=True),
        Column("PROBLEM", is_flexible=True),
    )
    rows = [
        (
            image.name,
            format_bytes(image.num_bytes),
            image.num_tokens,
            image.num_saved_tokens,
            image.num_output_tokens,
            "chat" if image.interactive else "run",
            datetime.fromtimestamp(image.saved_at).strftime("%Y-%m-%d %H:%M"),
            image.model,
            image.label,
            image.problem,
        )
        for image in images
    ]
    shell.screen.show(make_table(columns, rows))
    return 0


async def remove_images(shell: Shell, arguments: Arguments) -> int:
    """`rm-image`: delete images; one failure does not keep the others from it."""
    client = await shell.client()
    code = 0
    for name in arguments.operands:
        try:
            await client.remove_image(name, arguments["tenant"])
        except SyscallError as error:
            shell.screen.error(f"rm-image: {await explain_error(shell, error, [name])}")
            code = EXIT_ERROR
    return code


COMMANDS = (
    Command(
        "checkpoint",
        summary="Save a process as an image, whatever it does",
        operands="PID|%JOB NAME",
        details=(
            "It runs on; the image has its tokens and memory as they are now, in a file of the kernel's. "
            "Names are made of letters, digits and . _ -."
        ),
        function=checkpoint,
        options=(Option(("--force", "-f"), "replace an image of that name"), JSON),
        min_operands=2,
        max_operands=2,
        completes=("pid", "image"),
        examples=(("checkpoint 7 night", "process 7 as the image 'night'"),),
    ),
    Command(
        "restore",
        summary="Create a process from an image and print its pid",
        operands="NAME",
        details=(
            "It goes on where the saved one was, also after a restart of the kernel, and outlives the "
            "shell; 'cat' and 'tail' show its output. The image stays."
        ),
        function=restore,
        options=(Option(("--label",), "shown by ps instead of the old one", "TEXT"), TENANT, JSON),
        min_operands=1,
        max_operands=1,
        completes=("image",),
        examples=(("restore night", "a process that goes on from there; its pid is printed"),),
    ),
    Command(
        "images",
        summary="List the images",
        details=(
            "Size, tokens of the process, how many have their memory in the image, and why one cannot be "
            "restored here."
        ),
        function=list_images,
        options=(TENANT, JSON),
        examples=(("images", "yours"),),
    ),
    Command(
        "rm-image",
        summary="Delete images",
        operands="NAME...",
        details="Processes that were restored from them live on.",
        function=remove_images,
        options=(TENANT,),
        min_operands=1,
        max_operands=None,
        completes=("image",),
        examples=(("rm-image night", "one image"),),
    ),
)
