"""The table of grammars agrees with a few lines that count, and a device that keeps what it is told to."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmos.device import Compile, Compiled, Forget
from llmos.sched import grammars as grammars_module
from llmos.sched.grammars import Grammars

SOURCES = [letter * length for length, letter in enumerate("abcdefgh", start=1)]


class GrammarMachine(RuleBasedStateMachine):
    """Processes come and go, and so does the device."""

    @initialize(most=st.integers(0, 3), characters=st.integers(0, 20))
    def begin(self, most: int, characters: int) -> None:
        """Little is kept."""
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(grammars_module, "MAX_GRAMMARS_KEPT", most)
        self.patch.setattr(grammars_module, "MAX_GRAMMAR_CHARACTERS_KEPT", characters)
        self.patch.setattr(grammars_module, "MAX_GRAMMAR_CHARACTERS_IN_USE", 20)
        self.most, self.characters = most, characters
        self.grammars = Grammars()
        self.processes: list[Any] = []
        self.asked: dict[int, str] = {}  # the device compiles them
        self.ready: dict[int, str] = {}  # the device has them

    def teardown(self) -> None:
        """The limits are what they were."""
        if hasattr(self, "patch"):
            self.patch.undo()

    @rule(source=st.sampled_from([None, *SOURCES]))
    def join(self, source: str | None) -> None:
        """A process comes."""
        in_use = {each.sampling.grammar for each in self.processes} - {None}
        if source is not None:
            fits = source in in_use or sum(map(len, in_use)) + len(source) <= 20
            assert self.grammars.has_room(source) == fits
        process: Any = SimpleNamespace(sampling=SimpleNamespace(grammar=source), grammar=None)
        self.grammars.join(process)
        assert (process.grammar is None) == (source is None)
        self.processes.append(process)

    @precondition(lambda self: self.processes)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """One goes."""
        process = self.processes.pop(data.draw(st.integers(0, len(self.processes) - 1)))
        self.grammars.leave(process)
        assert process.grammar is None

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), is_good=st.booleans())
    def compiled(self, data: st.DataObject, is_good: bool) -> None:
        """The device is done with one; those who follow one that cannot be followed go."""
        id = data.draw(st.sampled_from(sorted(self.asked)))
        source = self.asked.pop(id)
        grammar = self.grammars.finish(Compiled(id, 0.1, None if is_good else "no"))
        assert grammar is not None
        assert grammar.source == source
        if is_good:
            self.ready[id] = source
        else:
            for process in [each for each in self.processes if each.grammar is grammar]:
                self.processes.remove(process)
                self.grammars.leave(process)

    @rule(id=st.integers(0, 40))
    def answered_unasked(self, id: int) -> None:
        """What was not asked for is known as such."""
        if id not in self.asked:
            assert self.grammars.finish(Compiled(id, 0.1)) is None

    @rule()
    def lose_device(self) -> None:
        """The device forgets all."""
        self.asked.clear()
        self.ready.clear()
        self.grammars.reset()

    @invariant()
    def device_has_what_it_should(self) -> None:
        """Whoever is ready has a grammar on the device, nothing is asked for twice, and little is kept."""
        if not hasattr(self, "grammars"):
            return
        for order in self.grammars.take_orders():
            if isinstance(order, Forget):
                del self.ready[order.id]
            else:
                assert isinstance(order, Compile)
                assert order.id not in self.asked.keys() | self.ready.keys()
                assert order.source not in [*self.asked.values(), *self.ready.values()]
                self.asked[order.id] = order.source
        self.grammars.check_integrity(self.processes)
        users = Counter(each.grammar for each in self.processes if each.grammar is not None)
        for grammar, count in users.items():
            assert grammar.num_users == count
            assert grammar.is_ready == (grammar.id in self.ready)
            assert (grammar.id in self.asked) != grammar.is_ready
        kept = [source for id, source in self.ready.items() if id not in {each.id for each in users}]
        assert len(kept) <= self.most
        assert sum(map(len, kept)) <= self.characters
        assert self.grammars.statistics().num_compiling == len(self.asked)


GrammarMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestGrammars = GrammarMachine.TestCase
