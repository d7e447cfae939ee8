"""strace: events as lines, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.scripted_kernel import open_scripted_kernel

EXPECTED = """\
   0.000  spawned
   0.001  prefill 5 tokens in 1 chunk
(5 events before these are lost)
   0.502  read(offset=3) = 2 tokens, session 7 <500 ms>
   0.600  ended stop
"""


async def test_strace_follows_to_the_end(tmp_path: Path) -> None:
    """Every event is a line, lost ones are told of, and the process's end is the end; -n leaves before."""
    async with open_scripted_kernel(tmp_path, Gate()), open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        assert await shell.run("strace %1") == (0, EXPECTED)
        assert await shell.run("strace -n 1 1") == (0, EXPECTED.splitlines(keepends=True)[0])
        assert await shell.run("strace 1 | grep 'read.o'") == (0, EXPECTED.splitlines(keepends=True)[3])
        lines = (await shell.run("strace --json 1"))[1].splitlines()
        told = [row.get("kind", row.get("num_lost")) for row in map(json.loads, lines)]
        assert told == ["spawned", "prefill", 5, "read", "ended"]
        assert (await shell.run("strace 9"))[0] == 1
        assert "strace: ESRCH: no process 9; yours: 1\n" in shell.errors
