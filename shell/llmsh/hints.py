"""What might help somebody whose command failed: what they perhaps meant, or where to look."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import trio

from shell.llmsh.errors import CommandError
from shell.llmsh.loop import Shell
from shell.llmsh.options import suggest
from syscalls.client import ConnectionLost
from syscalls.errno import Errno, SyscallError

PATIENCE_SECONDS = 0.5  # a hint is worth no more
MAX_LISTED = 8

PLACES = {
    Errno.ESRCH: "'ps' lists your processes",
    Errno.ENOENT: "'images' lists yours",
    Errno.EEXIST: "choose another name, or --force",
    Errno.ENOEXEC: "'images' lists what can be restored",
    Errno.EBADMSG: "'images' lists what can be restored",
    Errno.ENODEV: "'lsdev' shows the devices",
    Errno.ENOMEM: "ask for less, as with --max-tokens; 'free' shows the pools",
    Errno.ENOSPC: "'rm-image' makes room",
    Errno.EDQUOT: "'tenants' shows your limits",
    Errno.E2BIG: "shorten the prompt or lower --max-tokens",
    Errno.EFAULT: "'dmesg' may say more",
    Errno.EIO: "'dmesg' may say more",
}


async def explain_error(shell: Shell, error: SyscallError, words: Sequence[str]) -> str:
    """Return what an error says, and a hint when there is one.

    Args:
        shell: asks the kernel for the names that there are.
        error: of a call.
        words: of the command, among them perhaps a wrong one.
    """
    hint = PLACES.get(error.errno, "")
    if (error.errno, error.parameter) == (Errno.EEXIST, "name"):  # of a model: images have no such field
        hint = "choose another with --name"
    with trio.move_on_after(PATIENCE_SECONDS):
        try:
            if error.errno is Errno.ESRCH:
                hint = suggest_pid(words, [info.pid for info in await (await shell.client()).ps()])
            elif error.errno is Errno.ENOENT and error.parameter == "model":
                models = [model.name for model in await (await shell.client()).models()]
                hint = suggest_name(words, models, "served", "'models' lists them")
            elif error.errno is Errno.ENOENT:
                images = [image.name for image in await (await shell.client()).images()]
                hint = (
                    suggest_name(words, images, "yours", PLACES[Errno.ENOENT])
                    if images
                    else "you have no image"
                )
        except (CommandError, ConnectionLost, SyscallError):
            pass  # then without
    return f"{error}; {hint}" if hint else str(error)


def suggest_pid(words: Sequence[str], pids: Sequence[int]) -> str:
    """Say which process somebody may have meant, or which there are."""
    known = [str(pid) for pid in pids]
    if not known:
        return "you have no process"
    for word in words:
        if word.isdecimal() and word not in known:
            close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
            if close:
                return f"did you mean {' or '.join(close)}?"
    return f"yours: {', '.join(known)}" if len(known) <= MAX_LISTED else PLACES[Errno.ESRCH]


def suggest_name(words: Sequence[str], names: Sequence[str], kind: str, place: str) -> str:
    """Say which name may have been meant, or which there are: `kind` says whose, `place` where to look."""
    for word in words:
        if word not in names and (meant := suggest(word, names)):
            return meant.removeprefix(": ")
    return f"{kind}: {', '.join(names)}" if len(names) <= MAX_LISTED else place
