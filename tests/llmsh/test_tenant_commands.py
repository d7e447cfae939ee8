"""whoami, tenants."""

from __future__ import annotations

import json
from pathlib import Path

from syscalls.errno import Errno, SyscallError
from syscalls.process import Spawn
from syscalls.tenant import ReloadTenants, Tenants
from tests.llmsh.harness import open_shell
from tests.llmsh.test_process_commands import read_table
from tests.scripted_kernel import open_scripted_kernel


async def test_whoami(tmp_path: Path) -> None:
    """The tenant's name, and the rights."""
    async with open_scripted_kernel(tmp_path), open_shell(tmp_path) as shell:
        assert await shell.run("whoami") == (0, "tester (administrator)\n")
        assert json.loads((await shell.run("whoami --json"))[1])["uid"] == 1000


async def test_tenants_show_what_is_left(tmp_path: Path) -> None:
    """A row for each: what it has of what it may have; nothing where nothing is limited."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        (row,) = read_table((await shell.run("tenants"))[1])
        assert (row["TENANT"], row["WEIGHT"], row["SHARE"], row["REFUSED"]) == ("tester", "2", "50%", "3")
        assert (row["RUN"], row["WAIT"], row["MEMORY"]) == ("0 of 4", "0", "3.0 MiB")
        assert (row["TOKENS/MIN"], row["REQUESTS/MIN"]) == ("750 of 1000", "-")
        (tenant,) = json.loads((await shell.run("tenants -a --json"))[1])
        assert tenant["limits"]["max_running"] == 4
        asked = [call for call in kernel.calls if isinstance(call, Tenants)]
        assert [call.everyone for call in asked] == [False, True]


async def test_tenants_reload_tells_what_is_different(tmp_path: Path) -> None:
    """Names that came and went, and sessions that ended; other words are refused."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        assert await shell.run("tenants reload") == (0, "added: carol\nremoved: bob\n2 sessions ended\n")
        assert json.loads((await shell.run("tenants reload --json"))[1])["removed"] == ["bob"]
        assert (await shell.run("tenants bob"))[0] == 2
        assert "'bob' is not 'reload'" in shell.errors
        kernel.refusals[ReloadTenants] = SyscallError(Errno.EINVAL, "the tenants stay as they were: no")
        assert (await shell.run("tenants reload"))[0] == 1
        assert "the tenants stay as they were" in shell.errors


async def test_a_limit_is_explained(tmp_path: Path) -> None:
    """The message has the limit and the hint the command that shows it."""
    async with open_scripted_kernel(tmp_path) as kernel, open_shell(tmp_path) as shell:
        kernel.refusals[Spawn] = SyscallError(
            Errno.EDQUOT, "max_waiting of tenant tester is 2: 2 wait, 1 more"
        )
        assert (await shell.run("run hello"))[0] == 1
        assert "max_waiting of tenant tester is 2" in shell.errors
        assert "'tenants' shows your limits" in shell.errors
