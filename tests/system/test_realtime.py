"""What if kernel and gateway are to go before others? They do, and nothing that they start does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmos import boot, doctor
from llmos.bench.gateway import find_gateway, send_large_body, wait_until_ready
from llmos.bench.server import running_server
from llmos.config import Config, ConfigError
from syscalls import realtime
from syscalls.realtime import PRIORITY, go_before_others
from tests.system.leaks import assert_no_leak, count

TRIAL = [sys.executable, "-c", "from syscalls.realtime import go_before_others as go; go()"]
IS_ALLOWED = subprocess.run(TRIAL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def threads_of(pid: int) -> Iterator[int]:
    """The threads of a process and of its children, theirs and so on, but for those that end meanwhile."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield int(task.name)
            for child in (task / "children").read_text().split():
                yield from threads_of(int(child))


def scheduler_of(tid: int) -> int:
    """A thread's scheduler; that of ordinary ones if it has ended."""
    with suppress(ProcessLookupError):
        return os.sched_getscheduler(tid)
    return os.SCHED_OTHER


def command_of(tid: int) -> bytes:
    """What a thread's process was started with; nothing if it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{tid}/cmdline").read_bytes()
    return b""


@pytest.mark.skipif(not IS_ALLOWED, reason="the system does not allow it")
def test_kernel_and_gateway_go_before_what_they_start() -> None:
    """The loops of both have the priority; their other threads, and the child for large bodies, have not."""
    with running_server("--device", "sim", "--realtime") as server:
        wait_until_ready(server.url)
        before = count(server)
        send_large_body(server.url)
        loops = {server.os_pid, find_gateway(server)}
        threads = set(threads_of(server.os_pid))
        assert {tid for tid in threads if scheduler_of(tid) != os.SCHED_OTHER} == loops
        assert {os.sched_getparam(pid).sched_priority for pid in loops} == {PRIORITY}
        assert {os.sched_getscheduler(pid) for pid in loops} == {os.SCHED_RR | os.SCHED_RESET_ON_FORK}
        assert any(b"body_process" in command_of(tid) for tid in threads)
        assert_no_leak(server, before)


def refuse(*_: object) -> None:
    """What the system says to those who may not."""
    raise PermissionError(1, "Operation not permitted")


async def test_a_kernel_that_may_not_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that cannot be obeyed is refused by name, before anything is started."""
    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with pytest.raises(ConfigError, match=rf"realtime .* not permitted; .* at least {PRIORITY}$"):
        await boot.boot(Config(realtime=True), "sim")


def test_a_gateway_that_may_not_says_so() -> None:
    """One that was started by hand ends with the reason."""
    program = (
        "import os, sys; from shell.gateway.__main__ import main; import tests.system.test_realtime as here;"
        "os.sched_setscheduler = here.refuse; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "--realtime", "--listen", "127.0.0.1:0"]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "it takes CAP_SYS_NICE" in ended.stderr


def test_a_system_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every system has such priorities."""
    monkeypatch.delattr(realtime.os, "SCHED_RR")
    with pytest.raises(OSError, match="no such priority") as caught:
        go_before_others()
    assert "realtime is set" in realtime.explain_refusal(caught.value)


def test_doctor_says_whether_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system has it; and that it is not allowed is no reason to call a machine unfit."""
    assert doctor.check_realtime().is_usable == IS_ALLOWED
    monkeypatch.setattr(doctor, "_ask_child", lambda code: (False, "PermissionError: not permitted"))
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.check_realtime()])
    assert doctor.check_realtime().detail == "`realtime` is not allowed: PermissionError: not permitted"
    assert doctor.main(as_json=True) == 0
