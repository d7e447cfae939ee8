"""The grammars of a driver: compiled beside its steps, in threads, and kept until the kernel drops them."""

from __future__ import annotations

import heapq
import os
import threading
import time
import traceback
from collections import deque
from contextlib import suppress

import attrs

from drivers.model.grammar import CompiledGrammar, GrammarError, GrammarTokens
from llmos.device import Compile, Compiled

__all__ = ["Grammars"]

MAX_SECONDS = 60.0  # from when a grammar is taken to when it is given up
SHORT_CHARACTERS = 32 << 10  # a grammar up to here does not wait for longer ones
NICE = 3  # of the threads: where processors are short, steps come first, but not always
# Rules that refer to each other in a row are walked by recursion, kilobytes of stack for each; what spawn has
# let pass did with an eighth of this. It is addresses: memory is taken as it is used.
STACK_BYTES = 512 << 20


@attrs.define(eq=False)
class _Lane:
    """A thread that compiles what it is given, the shortest first."""

    tokens: GrammarTokens
    results: deque[tuple[int, CompiledGrammar | str]]
    fd: int  # told of each result
    waiting: list[tuple[int, int, str]] = attrs.field(factory=list)  # a heap: length, id, source
    changed: threading.Condition = attrs.field(factory=threading.Condition)
    is_closed: bool = False

    def start(self) -> None:
        """Start the thread. It ends with the lane, or with the process, whatever it does then."""
        ordinary = threading.stack_size(STACK_BYTES)
        try:
            threading.Thread(target=self._run, name="grammars", daemon=True).start()
        finally:
            threading.stack_size(ordinary)

    def submit(self, order: Compile) -> None:
        """Let a grammar be compiled."""
        with self.changed:
            heapq.heappush(self.waiting, (len(order.source), order.id, order.source))
            self.changed.notify()

    def close(self) -> None:
        """Compile nothing any more. What is under way goes on; nobody hears of it."""
        with self.changed:
            self.is_closed = True
            self.waiting.clear()
            self.changed.notify()

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self.changed:
                while not self.waiting and not self.is_closed:
                    self.changed.wait()
                if self.is_closed:
                    return
                _, id, source = heapq.heappop(self.waiting)
            found = self._compile(source)
            with self.changed:
                if self.is_closed:  # and so may be the descriptor
                    return
                self.results.append((id, found))
                os.eventfd_write(self.fd, 1)

    def _compile(self, source: str) -> CompiledGrammar | str:
        try:
            return self.tokens.compile(source)
        except GrammarError as error:
            return str(error)
        except Exception as error:
            traceback.print_exc()
            return f"grammar cannot be followed: {type(error).__name__}: {error}"


@attrs.define(eq=False)
class Grammars:
    """Compiled grammars by id. One user; `close` it, or its threads stay.

    Args:
        tokens: of the model; None: it has none that a grammar can be followed with.
        max_seconds: after which a grammar is given up. Those that are compiled before it count.
    """

    tokens: GrammarTokens | None
    max_seconds: float = MAX_SECONDS
    _ready: dict[int, CompiledGrammar] = attrs.field(init=False, factory=dict)
    _begun: dict[int, float] = attrs.field(init=False, factory=dict)  # when each was taken, in order
    _ended: deque[Compiled] = attrs.field(init=False, factory=deque)  # without a thread
    _results: deque[tuple[int, CompiledGrammar | str]] = attrs.field(init=False, factory=deque)
    _lanes: list[_Lane] = attrs.field(init=False, factory=list)  # for short ones, for any
    _fd: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    @property
    def num_compiling(self) -> int:
        """Grammars that were taken, and whose end was not collected."""
        return len(self._begun) + len(self._ended)

    def fileno(self) -> int:
        """A descriptor that polls as readable when there is something to collect."""
        return self._fd

    def seconds_left(self) -> float | None:
        """Until there is something to collect at the latest; None: nothing is being compiled."""
        if not self.num_compiling:
            return None
        first = next(iter(self._begun.values()), 0.0)
        return 0.0 if self._ended else max(0.0, first + self.max_seconds - time.monotonic())

    def begin(self, order: Compile) -> None:
        """Begin to compile a grammar. Never raises for what it asks."""
        if self.tokens is None:
            problem = "this model has no tokenizer.json that grammars can be followed with"
            self._ended.append(Compiled(order.id, 0.0, problem))
            return
        if not self._lanes:
            self._lanes = [_Lane(self.tokens, self._results, self._fd) for _ in range(2)]
            for lane in self._lanes:
                lane.start()
        self._begun[order.id] = time.monotonic()
        self._lanes[len(order.source) > SHORT_CHARACTERS].submit(order)

    def collect(self) -> list[Compiled]:
        """Those that have ended, or are given up, since the last call."""
        if not self.num_compiling:
            return []
        now = time.monotonic()
        ended = [*self._ended]
        self._ended.clear()
        with suppress(BlockingIOError):  # nothing was announced
            os.eventfd_read(self._fd)
        while self._results:
            id, found = self._results.popleft()
            if (began := self._begun.pop(id, None)) is None:
                continue  # given up
            if isinstance(found, str):
                ended.append(Compiled(id, now - began, found))
            else:
                self._ready[id] = found
                ended.append(Compiled(id, now - began))
        for id, began in list(self._begun.items()):
            if now - began < self.max_seconds:
                break
            del self._begun[id]
            problem = f"grammar was not compiled within {self.max_seconds:g} seconds"
            ended.append(Compiled(id, now - began, problem))
        return ended

    def get(self, id: int) -> CompiledGrammar:
        """A grammar that is ready. Raises GrammarError: there is none of this id."""
        if (found := self._ready.get(id)) is None:
            raise GrammarError(f"grammar {id} is not compiled")
        return found

    def forget(self, id: int) -> None:
        """Drop a grammar; spaces that follow it go on."""
        self._ready.pop(id, None)

    def close(self) -> None:
        """Drop all, and stop. Idempotent."""
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._ready.clear()
        self._begun.clear()
        self._ended.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
