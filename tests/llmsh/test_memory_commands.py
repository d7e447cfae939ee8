"""free, maps, cache."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from syscalls.memory import DropCache
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.llmsh.test_process_commands import read_table
from tests.scripted_kernel import make_device, open_scripted_kernel


async def test_free_adds_up(tmp_path: Path) -> None:
    """free splits each device's pool by use, in the table and in JSON; the tiers below come last."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.devices.append(msgspec.structs.replace(make_device("sim:1"), num_free_frames=80))
        rows = read_table((await shell.run("free"))[1])
        assert [list(row.values()) for row in rows] == [
            [
                "sim:0", "5.0 MiB", "200.0 MiB", "119.0 MiB", "1.0 MiB", "0 B", "20.0 MiB", "0 B",
                "60.0 MiB", "4.0 MiB of 64.0 MiB",
            ],
            [
                "sim:1", "5.0 MiB", "200.0 MiB", "19.0 MiB", "1.0 MiB", "0 B", "20.0 MiB", "0 B",
                "160.0 MiB", "4.0 MiB of 64.0 MiB",
            ],
        ]  # fmt: skip
        for row in json.loads((await shell.run("free --json"))[1]):
            uses = ("private", "shared", "ahead", "cached", "moving", "free")
            assert sum(row[use] for use in uses) == row["pool"]


async def test_free_by_tenant_and_by_process(tmp_path: Path) -> None:
    """free -t has a row for each tenant, free -p one for each process that has memory."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        (tenant,) = read_table((await shell.run("free -t"))[1])
        assert (tenant["TENANT"], tenant["PRIVATE"], tenant["HOST"]) == ("tester", "119.0 MiB", "4.0 MiB")
        (process,) = read_table((await shell.run("free -p"))[1])
        assert (process["PID"], process["PRIVATE"], process["SHARED"]) == ("1", "2.0 MiB", "1.0 MiB")


async def test_maps_shows_ranges(tmp_path: Path) -> None:
    """maps has a row for each range of positions; an unknown pid is the kernel's error."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        rows = read_table((await shell.run("maps %1"))[1])
        assert [list(row.values()) for row in rows] == [
            ["0-127", "1.0 MiB", "2", "shared", "sim:0"],
            ["128-383", "2.0 MiB", "1", "private", "sim:0"],
        ]
        assert json.loads((await shell.run("maps --json 1"))[1])["ranges"][0]["end"] == 128
        assert (await shell.run("maps 7"))[0] == 1
        assert shell.errors == "maps: ESRCH: no process 7; yours: 1\n"


async def test_cache_shows_what_was_found(tmp_path: Path) -> None:
    """A row for each device that has loaded a model; tokens found against tokens asked for."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.devices.append(msgspec.structs.replace(make_device("sim:1"), cache=None))
        (row,) = read_table((await shell.run("cache"))[1])
        assert list(row.values()) == [
            "sim:0", "cost", "20", "10", "4", "40.0 MiB", "8", "6", "1000", "250", "25.0%", "3", "7",
        ]  # fmt: skip
        (cache,) = json.loads((await shell.run("cache --json"))[1])
        assert (cache["device"], cache["num_hit_tokens"], cache["tokens_per_page"]) == ("sim:0", 250, 64)


async def test_cache_shows_how_pages_were_mapped(tmp_path: Path) -> None:
    """cache -m has a row for each device that has memory: pages ahead and in steps, and what steps waited."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.devices.append(msgspec.structs.replace(make_device("sim:1"), maps=None))
        (row,) = read_table((await shell.run("cache -m"))[1])
        assert list(row.values()) == [
            "sim:0", "40", "12", "5", "2", "1", "3", "7", "6", "12.5 ms", "500.0 ms",
        ]  # fmt: skip
        (maps,) = json.loads((await shell.run("cache --maps --json"))[1])
        assert (maps["device"], maps["num_ahead"], maps["num_waiting_steps"]) == ("sim:0", 40, 6)


async def test_cache_is_dropped(tmp_path: Path) -> None:
    """cache --drop says how many pages went; with --maps it is a mistake, and nothing is dropped."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("cache --drop") == (0, "5 pages dropped\n")
        assert json.loads((await shell.run("cache --drop --json"))[1]) == {"num_pages": 5}
        kernel.calls.clear()
        assert (await shell.run("cache --drop --maps"))[0] == 2
        assert DropCache() not in kernel.calls
