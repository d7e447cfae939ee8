"""What if systemd runs it? The unit is one that systemd takes, and a server tells it when it serves."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llmos.bench.server import running_server
from llmos.cli import EXIT_USAGE
from llmos.config import Config
from llmos.notify import notify_manager, read_watchdog_period
from tests.system.leaks import assert_no_leak, count

UNIT = Path(__file__).parents[2] / "docs/systemd/llmos.service"
TEXT = UNIT.read_text(encoding="utf-8")
PATIENCE_SECONDS = 120  # a bound for a hang, not a measurement


def test_a_manager_is_told_when_a_model_can_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY=1 comes once, and then the server answers."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        with running_server("--device", "sim", gateway=False) as server:
            assert manager.recv(100) == b"READY=1"
            assert_no_leak(server, count(server))
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)


def test_a_watchdog_is_fed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it serves, the manager hears from its event loop again and again."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        with running_server("--device", "sim", gateway=False) as server:
            told = [manager.recv(100) for _ in range(4)]
            assert told == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
            assert_no_leak(server, count(server))


@pytest.mark.parametrize(
    ("usec", "pid", "period"),
    [
        ("3000000", "", 3.0),
        ("3000000", "ours", 3.0),
        ("3000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("x", "", None),
    ],
)
def test_whom_a_watchdog_asks(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str, period: float | None
) -> None:
    """The process that it names, or any; no period, and no number, is nobody."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    assert read_watchdog_period() == period


def test_nobody_is_told_where_nobody_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a manager, and with one that has gone, nothing happens; names of the abstract space work."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify_manager("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify_manager("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{tmp_path}")
        manager.settimeout(PATIENCE_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{tmp_path}")
        assert notify_manager("STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_the_unit_fits_the_program() -> None:
    """Its options are real; it waits longer than a drain may take, and tries no wrong setting again."""
    (command,) = re.findall(r"^ExecStart=\S+/llmos up (.*)$", TEXT, re.MULTILINE)
    for option in re.findall(r"--([a-z-]+)", command):
        assert option == "config" or option.replace("-", "_") in Config.__struct_fields__
    (seconds,) = re.findall(r"^TimeoutStopSec=(\d+)$", TEXT, re.MULTILINE)
    assert int(seconds) > Config().shutdown_grace_seconds
    assert f"RestartPreventExitStatus={EXIT_USAGE}\n" in TEXT
    assert "Type=notify\n" in TEXT


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` finds nothing wrong with it, once its program exists."""
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"=/opt/llmos/\S+", f"={sys.executable}", TEXT))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert not complaints, result.stderr
