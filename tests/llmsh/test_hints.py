"""What a shell says to somebody who mistyped a name that only the kernel knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from shell.llmsh.hints import suggest_pid
from syscalls.device import LoadModel, UnloadModel
from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawn
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.scripted_kernel import open_scripted_kernel


@pytest.mark.parametrize(
    ("words", "pids", "hint"),
    [
        (["5"], [], "you have no process"),
        (["127"], [27, 12, 300], "did you mean 27 or 12?"),
        (["5"], [27, 12], "yours: 27, 12"),
        (["5", "name"], list(range(10, 30, 2)), "'ps' lists your processes"),
        (["12", "31"], [12, 13], "did you mean 13 or 12?"),
    ],
)
def test_which_process_may_be_meant(words: list[str], pids: list[int], hint: str) -> None:
    """Pids with some of the same digits are offered; else all of a few, or where they are listed."""
    assert suggest_pid(words, pids) == hint


async def test_mistyped_names(tmp_path: Path) -> None:
    """Pids, jobs, images, models and options: each answer says what there is, or what may be meant."""
    async with open_scripted_kernel(tmp_path, Gate()), open_shell(tmp_path) as shell:
        await shell.run("fg %2; run one & checkpoint 1 night")
        await shell.run("stat 11; kill 2; why %3; restore nigth; rm-image nite; run -m scriptd hi; ps --al")
        assert shell.errors.splitlines() == [
            "fg: no job '%2'; 'run PROMPT &' starts one",
            "stat: ESRCH: no process 11; did you mean 1?",
            "kill: ESRCH: no process 2; yours: 1",
            "why: no job '%3'; there are %1",
            "restore: ENOENT: no image nigth; did you mean 'night'?",
            "rm-image: ENOENT: no image nite; did you mean 'night'?",
            "run: no model 'scriptd': did you mean 'scripted'?",
            "ps: unknown option '--al': did you mean '--all'?",
        ]


async def test_what_the_kernel_refuses(tmp_path: Path) -> None:
    """A model that is not there is not explained with images; who asks for too much is told what to lower."""
    refusals: dict[type, SyscallError] = {
        UnloadModel: SyscallError(Errno.ENOENT, "no model 'scriptd'", parameter="model"),
        LoadModel: SyscallError(Errno.EEXIST, "a model called x is served", parameter="name"),
        Spawn: SyscallError(Errno.ENOMEM, "2006 tokens need 64 frames; sim:0 has 32 in all"),
    }
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.refusals.update(refusals)
        await shell.run("unload scriptd; unload other; load x; run hi")
        assert shell.errors.splitlines() == [
            "unload: ENOENT: no model 'scriptd'; did you mean 'scripted'?",
            "unload: ENOENT: no model 'scriptd'; served: scripted",
            "load: EEXIST: a model called x is served; choose another with --name",
            "run: ENOMEM: 2006 tokens need 64 frames; sim:0 has 32 in all; ask for less, as with "
            "--max-tokens; 'free' shows the pools",
        ]
