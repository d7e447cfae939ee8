"""llmsh over ssh: a real sshd with a key of its own, with and without a terminal."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import pexpect
import pytest
import trio

from tests.llmsh.person import ESCAPE, PROMPT, ROOT, finish, press_tab, use_shell
from tests.llmsh.programs import Gate, say
from tests.scripted_kernel import Program, ScriptedKernel, open_scripted_kernel

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
PRIVILEGE_SEPARATION = Path("/run/sshd")  # which a root's sshd wants to be there
PATIENCE_SECONDS = 60
OPTIONS = {
    "BatchMode": "yes", "IdentitiesOnly": "yes", "LogLevel": "ERROR", "ControlPath": "none",
    "StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null", "GlobalKnownHostsFile": "/dev/null",
}  # fmt: skip


@attrs.frozen
class Host:
    """A machine that is reached by ssh alone: this one.

    Each client starts an sshd for itself and speaks to it through a pipe, as inetd would have it: there is no
    port that another program might take first.
    """

    folder: Path

    def set_up(self) -> None:
        """Make keys, and the configuration; nothing of the machine's or its user's own is read."""
        for name in ("host", "mine"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)]
            subprocess.run(command, check=True, timeout=PATIENCE_SECONDS)
        lines = [
            f"HostKey {self.folder / 'host'}", f"AuthorizedKeysFile {self.folder / 'mine.pub'}",
            "StrictModes no", "UsePAM no", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password", "PidFile none", "PrintMotd no", "PrintLastLog no",
        ]  # fmt: skip
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")

    def command(self, *arguments: str, has_terminal: bool) -> list[str]:
        """What runs llmsh there. Its exit code is llmsh's; that of ssh itself is 255."""
        server = f"{SSHD} -i -f {self.folder / 'sshd_config'} -E {self.folder / 'sshd.log'}"
        options = [f"-o{name}={value}" for name, value in (OPTIONS | {"ProxyCommand": server}).items()]
        environment = [
            f"PYTHONPATH={ROOT}", f"XDG_STATE_HOME={self.folder / 'state'}", "PROMPT_TOOLKIT_NO_CPR=1",
        ]  # fmt: skip
        shell = [sys.executable, "-m", "tests.llmsh.patient", "--socket", str(self.folder / "llmos.sock")]
        remote = shlex.join(["env", *environment, *shell, *arguments])
        client = ["ssh", "-F", "/dev/null", "-i", str(self.folder / "mine"), "-tt" if has_terminal else "-T"]
        return [*client, *options, f"{pwd.getpwuid(os.getuid()).pw_name}@localhost", remote]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host that lets us in; skips where there is no sshd, or where it lets nobody in."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs ssh and sshd: openssh-client, openssh-server")
    if os.getuid() == 0 and not PRIVILEGE_SEPARATION.is_dir():
        try:
            PRIVILEGE_SEPARATION.mkdir(mode=0o755)
        except OSError as error:
            pytest.skip(f"a root's sshd needs {PRIVILEGE_SEPARATION}: {error}")
    made = Host(tmp_path)
    made.set_up()
    tried = subprocess.run(
        made.command("--help", has_terminal=False), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    if tried.returncode == 255:
        log = (tmp_path / "sshd.log").read_text() if (tmp_path / "sshd.log").exists() else ""
        pytest.skip(f"sshd lets nobody in here: {tried.stderr.strip()} {log.strip()[-300:]}")
    assert tried.returncode == 0, tried.stderr
    return made


async def on_host(
    host: Host, program: Program, person: Callable[[pexpect.spawn[str]], None]
) -> ScriptedKernel:
    """Let a person use a shell on the host through ssh. Returns the kernel afterwards."""

    def connect() -> pexpect.spawn[str]:
        ssh, *arguments = host.command(has_terminal=True)
        child = pexpect.spawn(
            ssh, arguments, env={**os.environ, "TERM": "xterm"},  # type: ignore[arg-type]
            encoding="utf-8", timeout=PATIENCE_SECONDS, dimensions=(24, 100),
        )  # fmt: skip
        child.delaybeforesend = None
        return child

    return await use_shell(host.folder, program, connect, person)


def widest_line_of_ps(child: pexpect.spawn[str]) -> int:
    """Columns that a table takes."""
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", finish(child, "ps"))
    lines = [line.rstrip() for line in shown.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["PID", "STATE"])
    return max(map(len, lines[start : start + 2]))


async def test_a_terminal_over_ssh(host: Host) -> None:
    """Tab completes, Ctrl-C kills what runs and no more, top redraws and leaves, Ctrl-D ends with 0."""

    def person(child: pexpect.spawn[str]) -> None:
        press_tab(child, "run --mo", "del")
        child.send(" ")
        press_tab(child, "scr", "ipted")
        child.sendline(" hi")
        child.expect("begun")
        child.sendintr()
        child.expect(r"\^C")
        child.expect(PROMPT)
        child.sendline("top -d 0.25")
        child.expect(r"\x1b\[\?1049h")
        child.expect("since boot: 1 spawned")
        child.expect("since boot: 1 spawned")
        child.send("q")
        child.expect(r"\x1b\[\?1049l")
        child.expect(PROMPT)
        child.sendeof()
        child.expect(pexpect.EOF)
        child.wait()
        assert child.exitstatus == 0

    kernel = await on_host(host, Gate(), person)
    assert [process.end.reason for process in kernel.spawned if process.end] == ["killed"]


async def test_the_window_is_resized_over_ssh(host: Host) -> None:
    """A table fits the window of the person, also after it has become another."""
    gate = Gate()

    def person(child: pexpect.spawn[str]) -> None:
        finish(child, "run a story of a length that is not to be seen whole where there is no room for it &")
        assert 60 < widest_line_of_ps(child) <= 100
        child.setwinsize(24, 40)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while widest_line_of_ps(child) > 40:  # the new size is on its way
            assert time.monotonic() < deadline
        trio.from_thread.run_sync(gate.opened.set)

    await on_host(host, gate, person)


async def test_the_line_goes_dead(host: Host) -> None:
    """Whoever loses the connection leaves nothing running: the shell hears of it, and its processes end."""

    def person(child: pexpect.spawn[str]) -> None:
        finish(child, "run one &")
        child.sendline("run two")
        child.expect("begun")
        child.kill(signal.SIGKILL)
        child.expect(pexpect.EOF)

    kernel = await on_host(host, Gate(), person)
    assert [process.end.reason for process in kernel.spawned if process.end] == ["killed", "killed"]


async def test_no_terminal_over_ssh(host: Host) -> None:
    """Commands from -c and from a pipe: plain text, and the exit code that it has here, too."""
    async with open_scripted_kernel(host.folder, say("said")):

        async def ssh(*arguments: str, lines: str = "") -> tuple[int, str, str]:
            command = host.command(*arguments, has_terminal=False)
            with trio.fail_after(PATIENCE_SECONDS):
                done = await trio.run_process(
                    command, stdin=lines.encode(), capture_stdout=True, capture_stderr=True, check=False
                )
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        assert await ssh("-c", "run hi") == (0, "said\n", "")
        code, shown, errors = await ssh(lines="run hi | grep -c said\nkill 99\n")
        assert (code, shown.strip()) == (1, "1")
        assert "99" in errors
        assert await ssh("-c", "exit 7") == (7, "", "")
        code, shown, errors = await ssh("-c", "no-such-command")
        assert (code, shown) == (2, "")
        assert ESCAPE not in errors
