"""top: frames in a pipe, and what they show of devices, tenants and processes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import attrs
import msgspec
import pytest
from rich.console import Console

from shell.llmsh.commands.top_frame import draw, take_snapshot
from shell.llmsh.render import Screen
from syscalls.process import ExitStatus
from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate, say, wait_until
from tests.llmsh.test_process_commands import read_table
from tests.scripted_kernel import ScriptedProcess, open_scripted_kernel


def split(frame: str) -> tuple[str, str, str]:
    """A frame's parts: what comes before the tables, tenants, processes."""
    head, tenants, processes = frame.split("\n\n")
    return head, tenants, processes


async def test_top_in_a_pipe_prints_one_frame(tmp_path: Path) -> None:
    """Without a terminal: counters, a bar of each device's memory, tenants and processes, once, no rates."""
    async with open_scripted_kernel(tmp_path, say("abc")) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run --detach 'a story'")
        await wait_until(lambda: kernel.processes[1].is_zombie)
        code, out = await shell.run("top")
        assert code == 0
        head, tenants, processes = split(out)
        assert "processes: 1, 0 running" in head
        assert head.splitlines()[-1] == (
            "  [########################----            ] # 119.0 MiB private, = 1.0 MiB shared, "
            "- 20.0 MiB cached, 60.0 MiB free; host: 4.0 MiB"
        )
        (tenant,) = read_table(tenants)
        assert (tenant["TENANT"], tenant["WEIGHT"], tenant["SHARE"], tenant["OVERALL"]) == (
            "tester", "2", "-", "100%",
        )  # fmt: skip
        (process,) = read_table(processes)
        assert (process["PID"], process["STATE"], process["TOK/S"]) == ("1", "ZOMBIE", "-")
        assert (process["SWAP"], process["LABEL"]) == ("4.0 MiB", "a story")
        assert "\x1b" not in out
        frame = json.loads((await shell.run("top --json"))[1])
        assert frame["statistics"]["num_spawned"] == 1
        assert frame["devices"][0]["name"] == "sim:0"
        assert frame["shares"][0]["weight"] == 2.0
        assert frame["processes"][0]["label"] == "a story"


async def test_rates_are_of_the_time_between_two_frames(tmp_path: Path) -> None:
    """Tokens per second by process and tenant; the fastest process comes first, and the list is cut."""
    gates = {1: Gate("begun", "x" * 9), 2: Gate("begun", "x" * 99)}

    async def program(process: ScriptedProcess) -> ExitStatus:
        return await gates[process.pid](process)

    async with open_scripted_kernel(tmp_path, program) as kernel, open_shell(tmp_path) as shell:
        await shell.run("run --detach one; run --detach two")
        for gate in gates.values():
            await gate.reached.wait()
        client = await shell.shell.client()
        before = await take_snapshot(client)
        for gate in gates.values():
            gate.opened.set()
        await wait_until(lambda: all(process.is_zombie for process in kernel.processes.values()))
        now = await take_snapshot(client)
        seconds = now.statistics.uptime_seconds - before.statistics.uptime_seconds
        out = io.StringIO()
        Screen(out).show(draw(now, before))
        _, tenants, processes = split(out.getvalue())
        assert [(row["PID"], row["TOK/S"]) for row in read_table(processes)] == [
            ("2", f"{100 / seconds:.1f}"),
            ("1", f"{10 / seconds:.1f}"),
        ]
        (tenant,) = read_table(tenants)
        assert (tenant["SHARE"], tenant["TOK/S"]) == ("100%", f"{110 / seconds:.1f}")
        out = io.StringIO()
        Console(file=out, width=50).print(draw(now, before), height=6)  # its head would be more
        lines = out.getvalue().splitlines()
        assert len(lines) <= 6
        assert [line.split()[0] for line in lines[-2:]] == ["PID", "2"]


async def test_as_many_frames_as_asked_for(tmp_path: Path) -> None:
    """-n frames come one after the other, -d seconds apart; neither may be nothing."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        code, out = await shell.run("top -n 2 -d 0.25")
        assert code == 0
        assert out.count("since boot") == 2
        assert (await shell.run("top -n 0"))[0] == 2
        assert (await shell.run("top -d 0"))[0] == 2


@pytest.mark.parametrize("size", [(20, 5), (20, 15), (40, 10), (80, 24), (200, 60)])
async def test_processes_are_seen_at_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    """However small the screen, and however many devices and tenants there are."""
    async with open_scripted_kernel(tmp_path, Gate()) as kernel, open_shell(tmp_path) as shell:
        kernel.devices = [msgspec.structs.replace(kernel.devices[0], name=f"sim:{i}") for i in range(12)]
        await shell.run("run --detach --n 4 'a story'")
        now = await take_snapshot(await shell.shell.client())
        (share,) = now.shares
        shares = tuple(msgspec.structs.replace(share, tenant=f"t{i}") for i in range(50))
        width, height = size
        out = io.StringIO()
        console = Console(file=out, width=width, height=height, color_system=None)
        console.print(draw(attrs.evolve(now, shares=shares), None), height=height)
        lines = [line.rstrip() for line in out.getvalue().splitlines()]
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        assert lines[0].startswith("llmos ")
        header = next(i for i, line in enumerate(lines) if line.startswith("PID"))
        assert lines[header + 1].split()[0] == "1"
        num_named = sum(line.startswith("t") for line in lines)
        assert (f"and {50 - num_named} others" in lines) == (num_named > 0) == (height >= 12)
