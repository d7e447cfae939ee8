"""The grammars of one device: which are compiled there, and which are kept for whoever comes next."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from llmos.device import Compile, Compiled, Forget
from llmos.params import MAX_GRAMMAR_CHARACTERS_IN_USE, MAX_GRAMMAR_CHARACTERS_KEPT, MAX_GRAMMARS_KEPT
from llmos.proc.grammar import Grammar
from llmos.proc.pcb import Process


@attrs.frozen
class GrammarStatistics:
    """A device's grammars at one moment."""

    num_used: int
    num_kept: int  # ready, for whoever comes next
    num_compiling: int
    num_characters: int  # of those that are used


@attrs.define(eq=False)
class Grammars:
    """Knows of each grammar who follows it, and tells the device what to compile and what to drop.

    A grammar is compiled once, when its first process comes. It stays as long as one follows it, whatever
    happens to their memory, and for a while after the last.
    """

    _by_source: dict[str, Grammar] = attrs.field(factory=dict)
    _by_id: dict[int, Grammar] = attrs.field(factory=dict)
    _kept: OrderedDict[int, Grammar] = attrs.field(factory=OrderedDict)  # ready and not used, oldest first
    _orders: list[Compile | Forget] = attrs.field(factory=list)
    _last_id: int = 0
    _num_characters: int = 0  # of those that are used
    _num_characters_kept: int = 0

    def has_room(self, source: str) -> bool:
        """May a process bring this grammar, or are those that are in use too long together?"""
        grammar = self._by_source.get(source)
        if grammar is not None and grammar.num_users:
            return True
        return self._num_characters + len(source) <= MAX_GRAMMAR_CHARACTERS_IN_USE

    def join(self, process: Process) -> None:
        """Let a process that has come to the device have its grammar, if it follows one. Mutates it."""
        source = process.sampling.grammar
        if source is None:
            return
        grammar = self._by_source.get(source)
        if grammar is None:
            self._last_id += 1
            grammar = self._by_source[source] = self._by_id[self._last_id] = Grammar(self._last_id, source)
            self._orders.append(Compile(grammar.id, source))
        if self._kept.pop(grammar.id, None) is not None:
            self._num_characters_kept -= len(source)
        if not grammar.num_users:
            self._num_characters += len(source)
        grammar.num_users += 1
        process.grammar = grammar

    def leave(self, process: Process) -> None:
        """A process has ended. Mutates it."""
        grammar, process.grammar = process.grammar, None
        if grammar is None:
            return
        grammar.num_users -= 1
        if not grammar.num_users:
            self._num_characters -= len(grammar.source)
            if grammar.is_ready and self._by_id.get(grammar.id) is grammar:
                self._keep(grammar)

    def finish(self, result: Compiled) -> Grammar | None:
        """The device is done with a grammar. None: it was not asked for that.

        One with a problem is gone: whoever follows it cannot.
        """
        grammar = self._by_id.get(result.id)
        if grammar is None or grammar.is_ready:
            return None
        if result.problem is not None:
            self._drop(grammar)
        else:
            grammar.is_ready = True
            if not grammar.num_users:
                self._keep(grammar)
        return grammar

    def take_orders(self) -> list[Compile | Forget]:
        """Drain what the device is to be told. They may be sent before whatever else there is."""
        orders, self._orders = self._orders, []
        return orders

    def reset(self) -> None:
        """The device lost what it had: what is used is to be compiled again when it is back."""
        self._orders.clear()
        for grammar in list(self._by_id.values()):
            grammar.is_ready = False
            if grammar.num_users:
                self._orders.append(Compile(grammar.id, grammar.source))
            else:
                self._drop(grammar)
        self._kept.clear()
        self._num_characters_kept = 0

    def statistics(self) -> GrammarStatistics:
        """Count what there is."""
        num_ready = sum(grammar.is_ready for grammar in self._by_id.values())
        return GrammarStatistics(
            num_used=sum(grammar.num_users > 0 for grammar in self._by_id.values()),
            num_kept=len(self._kept),
            num_compiling=len(self._by_id) - num_ready,
            num_characters=self._num_characters,
        )

    def check_integrity(self, processes: list[Process]) -> None:
        """Raise AssertionError where the table, its sums and the processes contradict each other."""
        users = [process.grammar for process in processes if process.grammar is not None]
        for grammar in self._by_id.values():
            assert grammar.num_users == users.count(grammar), grammar.id
            assert (grammar.id in self._kept) == (grammar.is_ready and not grammar.num_users), grammar.id
        assert self._by_id.keys() >= {grammar.id for grammar in users}
        assert sorted(self._by_id) == sorted(grammar.id for grammar in self._by_source.values())
        assert self._num_characters == sum(len(g.source) for g in self._by_id.values() if g.num_users)
        assert self._num_characters_kept == sum(len(g.source) for g in self._kept.values())

    def _keep(self, grammar: Grammar) -> None:
        """Keep a grammar that nobody follows any more, and drop those that were kept longest."""
        self._kept[grammar.id] = grammar
        self._num_characters_kept += len(grammar.source)
        while len(self._kept) > MAX_GRAMMARS_KEPT or self._num_characters_kept > MAX_GRAMMAR_CHARACTERS_KEPT:
            _, oldest = self._kept.popitem(last=False)
            self._num_characters_kept -= len(oldest.source)
            self._drop(oldest)
            self._orders.append(Forget(oldest.id))

    def _drop(self, grammar: Grammar) -> None:
        del self._by_id[grammar.id], self._by_source[grammar.source]
