"""sleep, wake, load and unload, typed against a scripted kernel."""

from __future__ import annotations

import json
from pathlib import Path

from syscalls.device import LoadModel, Sleep, UnloadModel, Wake
from tests.llmsh.harness import open_shell
from tests.scripted_kernel import open_scripted_kernel


async def test_devices_sleep_and_wake(tmp_path: Path) -> None:
    """On the first level unless the second is asked for; a third is a mistake, and nobody is told."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("sleep") == (0, "all devices sleep; `wake` has them go on\n")
        assert (await shell.run("sleep --level 2"))[0] == 0
        assert "sleeping" in (await shell.run("lsdev"))[1]
        assert await shell.run("wake") == (0, "all devices serve\n")
        told = [call for call in kernel.calls if isinstance(call, Sleep | Wake)]
        assert told == [Sleep(1), Sleep(2), Wake()]
        assert (await shell.run("sleep --level 3"))[0] == 2
        assert (await shell.run("sleep 10"))[0] == 2
        assert [call for call in kernel.calls if isinstance(call, Sleep | Wake)] == told


async def test_models_come_and_go(tmp_path: Path) -> None:
    """A path is told whole, since the kernel may run elsewhere; built-in is a name."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("load models/small") == (0, "small serves on sim:1\n")
        loaded = json.loads((await shell.run("load builtin --name second --json"))[1])
        assert (loaded["device"], loaded["model"]["name"]) == ("sim:1", "second")
        assert await shell.run("unload small") == (0, "small is unloaded\n")
        assert (await shell.run("unload second --force"))[0] == 0
        assert [call for call in kernel.calls if isinstance(call, LoadModel | UnloadModel)] == [
            LoadModel(str(Path.cwd() / "models" / "small")),
            LoadModel("builtin", "second"),
            UnloadModel("small"),
            UnloadModel("second", force=True),
        ]
        assert (await shell.run("load"))[0] == 2
        assert (await shell.run("unload"))[0] == 2
