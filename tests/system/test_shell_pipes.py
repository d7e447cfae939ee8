"""What if a pipe of real processes is left early, interrupted, killed, or cannot be written?"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmos.bench.server import Server
from syscalls.process import ProcessInfo
from syscalls.sync import SyncClient
from tests.system.leaks import assert_no_leak, count

PATIENCE_SECONDS = 60.0
LONG = 'run --raw -t 0.8 --seed 3 --max-tokens 1900 "It was a dark night"'  # most of a context


@pytest.fixture(autouse=True)
def _nothing_stays(server: Server) -> Iterator[None]:
    before = count(server)
    yield
    assert_no_leak(server, before)


def start(server: Server, commands: str, *options: str) -> subprocess.Popen[str]:
    """Start a shell on commands."""
    return subprocess.Popen(
        [sys.executable, "-m", "shell.llmsh.main", "--socket", server.socket_path, *options, "-c", commands],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: Server, commands: str, *options: str) -> tuple[int, str, str]:
    """Run a shell on commands. Returns its exit code, output and errors."""
    with start(server, commands, *options) as shell:
        out, err = shell.communicate(timeout=2 * PATIENCE_SECONDS)
    return shell.returncode, out, err


def wait_for_processes(server: Server, condition: Callable[[tuple[ProcessInfo, ...]], bool]) -> None:
    """Wait until the process table is as wanted; fails after a while."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with SyncClient(server.socket_path, name="onlooker") as client:
        while not condition(found := client.ps()):
            assert time.monotonic() < deadline, found
            time.sleep(0.005)


def are_decoding(processes: tuple[ProcessInfo, ...]) -> bool:
    """Whether there are processes, and all have said something."""
    return bool(processes) and all(info.usage.num_output_tokens for info in processes)


def test_what_if_one_answer_is_the_next_ones_prompt(server: Server, tmp_path: Path) -> None:
    """A pipe says what its parts say one by one, through files, variables and filters."""
    copy = shlex.quote(str(tmp_path / "copy"))
    ask, then = 'run --max-tokens 40 "Tell me a story"', "run --max-tokens 40"
    code, piped, err = run(server, f'{ask} | tee {copy} | {then} "Who is in it? {{}}"')
    assert (code, err) == (0, "")
    code, by_variable, err = run(server, f'story=$({ask}); {then} "Who is in it? $story"')
    assert (code, err) == (0, "")
    code, by_file, err = run(server, f'{then} "Who is in it? {{}}" < {copy}')
    assert (code, err) == (0, "")
    assert piped == by_variable == by_file != ""
    assert run(server, f"cat < {copy} | wc")[1].split()[0] == "1"


def test_what_if_every_line_has_a_process(server: Server, tmp_path: Path) -> None:
    """Answers come in the order of the lines, the same as one by one."""
    lines = [f"Tell me about the number {number}" for number in range(20)]
    path = tmp_path / "lines"
    path.write_text("\n".join(lines) + "\n")
    command = "run --max-tokens 12 --raw"
    code, together, err = run(server, f"{command} --each-line < {shlex.quote(str(path))}")
    assert (code, err) == (0, "")
    one_by_one = run(server, "; ".join(f"{command} {shlex.quote(line)}" for line in lines))[1]
    assert together == one_by_one


def test_what_if_the_reader_has_read_enough(server: Server) -> None:
    """Whoever writes ends, its process too, and that is no failure."""
    code, out, err = run(server, f"{LONG} | head -n 1")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    wait_for_processes(server, lambda processes: not processes)


def test_what_if_ctrl_c_comes_amid_a_pipe(server: Server) -> None:
    """Every process of the pipe ends, and the exit code says why."""
    with start(server, f"{LONG} | grep -v nothing | tee /dev/null") as shell:
        wait_for_processes(server, are_decoding)
        shell.send_signal(signal.SIGINT)
        shell.communicate(timeout=PATIENCE_SECONDS)
    assert shell.returncode == 130
    wait_for_processes(server, lambda processes: not processes)


def test_what_if_the_shell_is_killed_amid_a_pipe(server: Server) -> None:
    """Its processes end with its session."""
    with start(server, f"{LONG} | wc") as shell:
        wait_for_processes(server, are_decoding)
        shell.kill()
    wait_for_processes(server, lambda processes: not processes)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_if_the_disk_is_full(server: Server) -> None:
    """The error names the file; the process that wrote ends."""
    code, _, err = run(server, f"{LONG} > /dev/full")
    assert code == 1
    assert err == "run: /dev/full: No space left on device\n"
    code, _, err = run(server, f"{LONG} | tee /dev/full")
    assert code == 1
    assert err == "tee: /dev/full: No space left on device\n"


def test_what_if_a_process_is_watched_while_others_are_in_its_way(server: Server) -> None:
    """strace tells every token and every page, once; a trace ends with the process."""
    others = 'run --raw --n 4 --max-tokens 300 --seed 1 -t 1 "a" &'
    watched = 'run --raw --max-tokens 300 "b" & strace --json %2; echo; stat --json %2'
    code, out, err = run(server, others + watched)
    assert (code, err) == (0, "")
    jobs_and_events, info = out.split("\n\n")
    events = [json.loads(line) for line in jobs_and_events.splitlines() if line.startswith("{")]
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "spawned"
    assert "ended" in kinds
    num_decoded = sum(event["num_tokens"] for event in events if event["kind"] == "decoding")
    assert num_decoded == json.loads(info)["usage"]["num_output_tokens"] > 0
    pages = {kind: sum(e["count"] for e in events if e["kind"] == kind) for kind in ("mapped", "unmapped")}
    assert pages["mapped"] == pages["unmapped"] > 0
