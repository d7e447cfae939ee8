"""checkpoint, restore, images, rm-image."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from shell.llmsh.completion import Candidate, look_up_names
from syscalls.image import Checkpoint, Restore
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.llmsh.test_process_commands import read_table
from tests.scripted_kernel import open_scripted_kernel


async def test_an_image_is_made_listed_restored_and_removed(tmp_path: Path) -> None:
    """Each command says what it did; the list has what the kernel said."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await gate.reached.wait()
        length = len(kernel.processes[1].tokens)
        code, text = await shell.run("checkpoint %1 one")
        assert (code, text) == (
            0,
            f"one: 3.0 MiB, {length} tokens ({length - 1} with their memory), in 250 ms\n",
        )
        (row,) = read_table((await shell.run("images"))[1])
        assert {key: row[key] for key in ("IMAGE", "SIZE", "TOKENS", "OUT", "KIND", "LABEL", "PROBLEM")} == {
            "IMAGE": "one",
            "SIZE": "3.0 MiB",
            "TOKENS": str(length),
            "OUT": "5",
            "KIND": "run",
            "LABEL": "hi",
            "PROBLEM": "-",
        }
        assert await look_up_names(shell.shell, "image") == [Candidate("one", "hi")]
        assert await shell.run("restore one --label again") == (0, "2\n")
        assert kernel.calls[-1] == Restore("one", detached=True, label="again")
        assert await shell.run("rm-image one") == (0, "")
        assert (await shell.run("images --json"))[1] == "[]\n"


async def test_json(tmp_path: Path) -> None:
    """With --json every field is there by name."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await gate.reached.wait()
        saved = json.loads((await shell.run("checkpoint 1 one --json"))[1])
        assert (saved["name"], saved["num_bytes"]) == ("one", 3 << 20)
        (listed,) = json.loads((await shell.run("images --json"))[1])
        assert listed == msgspec.to_builtins(kernel.images["one"][1])
        assert json.loads((await shell.run("restore one --json"))[1])["pids"] == [2]


async def test_refusals(tmp_path: Path) -> None:
    """The kernel's reasons come out; rm-image goes on after one; a name that is taken takes --force."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await gate.reached.wait()
        assert (await shell.run("checkpoint 1 one"))[0] == 0
        assert (await shell.run("checkpoint 1 one"))[0] == 1
        assert (await shell.run("checkpoint 1 one --force"))[0] == 0
        assert kernel.calls[-1] == Checkpoint(1, "one", overwrite=True)
        assert (await shell.run("restore two"))[0] == 1
        assert (await shell.run("rm-image two one"))[0] == 1
        assert kernel.images == {}
        assert shell.errors == (
            "checkpoint: EEXIST: there is an image one; it was not replaced; "
            "choose another name, or --force\n"
            "restore: ENOENT: no image two; yours: one\n"
            "rm-image: ENOENT: no image two; yours: one\n"
        )


async def test_an_image_that_does_not_fit_says_why(tmp_path: Path) -> None:
    """The list has the kernel's reason in its last column."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        await gate.reached.wait()
        await shell.run("checkpoint 1 one")
        process, info = kernel.images["one"]
        problem = "was made with kernels torch, this system has native"
        kernel.images["one"] = (process, msgspec.structs.replace(info, problem=problem))
        assert problem in (await shell.run("images"))[1]
