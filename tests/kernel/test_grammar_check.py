"""Grammars are looked at once, in a thread, and for no longer than it takes to say so."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from llmos.kernel.grammar_check import CHECK_SECONDS, NUM_REMEMBERED, GrammarCheck
from syscalls.errno import Errno, SyscallError


async def test_broken_grammars_are_named_and_remembered() -> None:
    """The complaint comes again without another look, for as long as it is remembered."""
    seen: list[str] = []

    def explain(source: str) -> str | None:
        seen.append(source)
        return "no such rule" if source == "bad" else None

    check, run = GrammarCheck(explain), trio.to_thread.run_sync
    for _ in range(2):
        with pytest.raises(SyscallError, match="no such rule") as refused:
            await check.check("bad", run)
        assert refused.value.errno is Errno.EINVAL
        await check.check("good", run)
    assert seen == ["bad", "good"]
    for number in range(NUM_REMEMBERED):
        await check.check(str(number), run)
    await check.check("good", run)
    assert seen.count("good") == 2


async def test_real_grammars() -> None:
    """With the library, in a thread."""
    check = GrammarCheck()
    await check.check('start: "a"', trio.to_thread.run_sync)
    with pytest.raises(SyscallError, match="nowhere"):
        await check.check("start: nowhere", trio.to_thread.run_sync)


async def test_a_slow_one_gives_up(autojump_clock: trio.abc.Clock) -> None:
    """Not read in time is an error by name, and the caller may try again."""

    async def never(*arguments: Any, **options: Any) -> None:
        await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(SyscallError, match="10 seconds") as refused:
        await GrammarCheck().check('start: "a"', never)
    assert refused.value.errno is Errno.EAGAIN
    assert trio.current_time() - began == CHECK_SECONDS
