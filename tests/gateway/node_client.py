"""Clients for Node, each in a process of its own that plays the scenarios of a program in node/."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

FOLDER = Path(__file__).parent / "node"


@attrs.frozen
class Node:
    """The running client."""

    process: subprocess.Popen[str]

    def tell(self, scenario: str, **given: Any) -> Any:
        """Let it play a scenario; returns what it told."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([scenario, given]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"node ended: {self.process.wait()}"
        answer = json.loads(line)
        assert "told" in answer, answer["failed"]
        return answer["told"]


@contextmanager
def running_node(base_url: str, program: str = "sdk.mjs", package: str = "openai") -> Iterator[Node]:
    """Start a client before a server; skips where its package is not installed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / package).is_dir():
        pytest.skip(f"`make clients` installs the package {package} for node, where npm is")
    pipe = subprocess.PIPE
    command = ["node", str(FOLDER / program), base_url]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # its end closes the pipes
        try:
            yield Node(process)
        finally:
            process.kill()
