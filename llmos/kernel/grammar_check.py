"""Is a grammar one that can be followed? Asked before a process exists, in a thread: steps do not wait."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import attrs
import trio

from syscalls.errno import Errno, SyscallError, invalid_parameter
from syscalls.text.grammar import explain_bad_grammar

CHECK_SECONDS = 10.0
MAX_THREADS = 2  # one that takes longer than CHECK_SECONDS keeps its place until it is done
NUM_REMEMBERED = 1024


@attrs.define(eq=False)
class GrammarCheck:
    """Checks grammars, and remembers what it found.

    Args:
        explain: says what is wrong with a source, or None.
    """

    explain: Callable[[str], str | None] = explain_bad_grammar
    _found: OrderedDict[bytes, str | None] = attrs.field(factory=OrderedDict)
    _threads: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(MAX_THREADS))

    async def check(self, source: str, run_blocking: Callable[..., Awaitable[Any]]) -> None:
        """Return when a grammar is sound, as far as it can be told without a model's tokens.

        Raises:
            SyscallError: EINVAL, with the part at fault; EAGAIN, it was not read in time.
        """
        key = hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
        if key not in self._found:
            explain = partial(run_blocking, self.explain, source, limiter=self._threads)
            with trio.move_on_after(CHECK_SECONDS):
                self._remember(key, await explain(abandon_on_cancel=True))
        if key not in self._found:
            raise SyscallError(Errno.EAGAIN, f"grammar was not read within {CHECK_SECONDS:g} seconds")
        if (problem := self._found[key]) is not None:
            raise invalid_parameter("grammar", f"cannot be followed: {problem}")

    def _remember(self, key: bytes, problem: str | None) -> None:
        self._found[key] = problem
        while len(self._found) > NUM_REMEMBERED:
            self._found.popitem(last=False)
