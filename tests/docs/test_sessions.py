"""What the README shows being typed does what it shows, on a real server with the built-in model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llmos.bench.server import Server, running_server
from shell.llmsh.commands import TABLE
from shell.llmsh.parser import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATORS = (ROOT / "docs/operators.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server as a new user has it, but for its address."""
    with running_server("--device", "cpu", "--threads", "1", "--pool-mib", "64") as running:
        yield running


def run_python(server: Server, *arguments: str, code: str | None = None) -> str:
    """Run a program beside the server; returns what it printed."""
    command = [sys.executable, *(["-"] if code is not None else []), *arguments]
    environment = {**os.environ, "LLMOS_SOCKET": server.socket_path, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command,
        input=code,
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def readme_program(marker: str) -> str:
    """The Python block of the README that contains a marker."""
    (program,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
        if marker in block
    ]
    return program


def test_curl(server: Server) -> None:
    """The body that the README sends with curl is answered as shown, but for ids and words."""
    command, shown = re.search(r"-d '(\{.*?\})'\n(\{.*\})$", README, re.DOTALL | re.MULTILINE).groups()  # type: ignore[union-attr]
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=json.loads(command), timeout=120)
    assert answer.status_code == 200
    assert answer.json().keys() == json.loads(shown).keys()
    assert answer.json()["choices"][0].keys() == json.loads(shown)["choices"][0].keys()
    assert answer.json()["choices"][0]["message"]["content"]


def test_openai_program(server: Server) -> None:
    """The README's program with the official client prints an answer."""
    program = readme_program("OpenAI(")
    assert "http://127.0.0.1:8000" in program
    assert run_python(server, code=program.replace("http://127.0.0.1:8000", server.url)).strip()


def test_syscall_program(server: Server) -> None:
    """The README's program on syscalls prints three samples, each by its seed."""
    printed = run_python(server, code=readme_program("SyncClient("))
    assert re.findall(r"^seed (\d), \w+: Once upon a time", printed, re.MULTILINE) == ["1", "2", "3"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "docs/examples").glob("*.py")))
def test_examples(server: Server, name: str) -> None:
    """Each example continues the prompt that it is given."""
    assert "Once upon a time" in run_python(server, f"docs/examples/{name}", "Once", "upon", "a", "time")


def test_llmsh_session(server: Server) -> None:
    """The first command of the README's session, through the shell's own entry point."""
    (line,) = re.findall(r'^llmsh> (run "[^"]*")$', README, re.MULTILINE)
    assert run_python(server, "-m", "shell.llmsh.main", "-c", f"{line}; ps; free; lsdev").count("\n") >= 5


def test_llmsh_commands_parse() -> None:
    """Every command line that the README and the operators' page show is one that llmsh takes."""
    lines = re.findall(r"^llmsh> (.+)$", README, re.MULTILINE)
    lines += re.findall(r"llmsh -c '([^']+)'", OPERATORS)
    assert len(lines) >= 6
    for line in lines:
        for pipeline in parse(line):
            for simple in pipeline.commands:
                TABLE.find(simple.name).parse(simple.arguments)


@pytest.mark.parametrize(("name", "count"), [("user_space", "20"), ("frame_size", "2")])
def test_experiments_with_a_model(name: str, count: str) -> None:
    """The experiments that need the built-in model still run; what they print is not judged."""
    path = ROOT / "docs/experiments" / f"{name}.py"
    result = subprocess.run(
        [sys.executable, str(path), count], cwd=ROOT, capture_output=True, text=True, timeout=480, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout
