"""why: the timeline, what time was spent on, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

from tests.llmsh.harness import open_shell
from tests.llmsh.programs import Gate
from tests.scripted_kernel import open_scripted_kernel

EXPECTED = """\
    AT    TOOK  WHAT         DETAIL
 +0 ms       -  spawned      -
 +0 ms   1.5 s  queued       3 others waited; most that ran were uid:7's
+1.5 s  250 ms  prefill      5 tokens in 2 chunks
+1.8 s       -  first token  -
+2.0 s       -  preempted    for pid 17; swap, fair share of bob
+2.0 s  500 ms  swapped out  64.0 MiB to host

(9 earlier entries are forgotten)
spent: queued 1.5 s (60%), swapped 500 ms (20%), prefill 250 ms (10%), decode 250 ms (10%)
verdict: slow to start: told so by the test
"""


async def test_why_tells_in_words(tmp_path: Path) -> None:
    """A row for each entry with times since the spawn, then the shares of the time, then the verdict."""
    gate = Gate()
    async with open_scripted_kernel(tmp_path, gate), open_shell(tmp_path) as shell:
        await shell.run("run hi &")
        code, out = await shell.run("why %1")
        assert code == 0
        assert out.removeprefix("[1] 1\n") == EXPECTED
        answer = json.loads((await shell.run("why --json 1"))[1])
        assert answer["entries"][4] == {
            "kind": "preempted", "at": 2.0, "seconds": 0.0, "count": 1, "num_tokens": 0, "num_bytes": 0,
            "pid": 17, "text": "swap, fair share of bob",
        }  # fmt: skip
        assert answer["verdict"] == "slow to start: told so by the test"


async def test_why_passes_the_kernels_refusal_on(tmp_path: Path) -> None:
    """An unknown process is an error with a hint, and a word that is no pid a usage error."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert (await shell.run("why 9"))[0] == 1
        assert (await shell.run("why me"))[0] == 2
        assert shell.errors.startswith("why: ESRCH: no process 9; you have no process\n")
