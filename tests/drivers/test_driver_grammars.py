"""Grammars are compiled beside the steps: taken early, answered by name, kept until they are dropped."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator

import attrs
import numpy as np
import pytest

from drivers import grammars as grammars_module
from drivers.builtin import base_path
from drivers.cpu import CpuDriver
from drivers.engine import Engine
from drivers.grammars import Grammars
from drivers.link import KernelLink, LinkError
from drivers.model.grammar import CompiledGrammar, Grammar, GrammarError, GrammarTokens
from llmos.device import (
    Bind,
    Compile,
    Compiled,
    Forget,
    Load,
    Loaded,
    Map,
    Reserve,
    Row,
    Sampling,
    Step,
    encode_message,
)  # fmt: skip

STOPS = np.array([2, 6])


@pytest.fixture(scope="module")
def tokens() -> GrammarTokens:
    """The built-in model's."""
    found = GrammarTokens.open(str(base_path()), 2560, (2, 6))
    assert found is not None
    return found


def collect(grammars: Grammars, count: int) -> list[Compiled]:
    """Wait for so many answers."""
    found: list[Compiled] = []
    while len(found) < count:
        assert select.select([grammars.fileno()], [], [], 60)[0]
        found += grammars.collect()
    return found


def test_compiled_in_threads_and_kept(tokens: GrammarTokens) -> None:
    """Good ones can be followed until they are dropped, then by those that have begun; bad ones are named."""
    grammars = Grammars(tokens)
    for order in (Compile(1, 'start: "a"'), Compile(2, "start: nowhere"), Compile(3, "start: /[0-9]/")):
        grammars.begin(order)
    answers = {answer.id: answer for answer in collect(grammars, 3)}
    assert answers[1].problem is answers[3].problem is None
    assert "nowhere" in (answers[2].problem or "")
    assert grammars.num_compiling == 0
    assert grammars.seconds_left() is None
    follower = Grammar(grammars.get(1), STOPS)
    grammars.forget(1)
    for id in (1, 2, 7):
        with pytest.raises(GrammarError, match=f"grammar {id} is not compiled"):
            grammars.get(id)
    for found, source in ((follower, 'start: "a"'), (Grammar(grammars.get(3), STOPS), "start: /[0-9]/")):
        assert found.allowed_ids().tolist() == Grammar(tokens.compile(source), STOPS).allowed_ids().tolist()
    grammars.close()
    grammars.close()


@attrs.frozen(eq=False)
class GatedTokens(GrammarTokens):
    """Long grammars wait for a gate."""

    gate: threading.Event = attrs.field(factory=threading.Event)

    def compile(self, source: str) -> CompiledGrammar:
        """See GrammarTokens."""
        if len(source) > grammars_module.SHORT_CHARACTERS:
            assert self.gate.wait(60)
        return super().compile(source)


@pytest.fixture
def gated(tokens: GrammarTokens) -> Iterator[GatedTokens]:
    """A gate that is open in the end."""
    found = GatedTokens(tokens.tokenizer)
    yield found
    found.gate.set()


LONG = "start: /[0-9]{3}/" + " " * grammars_module.SHORT_CHARACTERS


def test_short_ones_do_not_wait_for_long_ones(gated: GatedTokens) -> None:
    """And of those that wait, the shortest is next."""
    grammars = Grammars(gated)
    for order in (
        Compile(1, LONG),
        Compile(2, LONG + "  "),
        Compile(3, LONG + " "),
        Compile(4, 'start: "a"'),
    ):
        grammars.begin(order)
    assert [answer.id for answer in collect(grammars, 1)] == [4]
    assert grammars.num_compiling == 3
    gated.gate.set()
    assert [answer.id for answer in collect(grammars, 3)] == [1, 3, 2]
    grammars.close()


def test_one_that_takes_too_long_is_given_up(gated: GatedTokens) -> None:
    """By name; when it is ready after all, nobody is told."""
    grammars = Grammars(gated, max_seconds=0.0)
    grammars.begin(Compile(1, LONG))
    assert grammars.seconds_left() == 0.0
    (answer,) = grammars.collect()
    assert (answer.id, answer.problem) == (1, "grammar was not compiled within 0 seconds")
    gated.gate.set()
    assert select.select([grammars.fileno()], [], [], 60)[0]
    grammars.max_seconds = 60.0
    grammars.begin(Compile(2, 'start: "b"'))
    assert [answer.id for answer in collect(grammars, 1)] == [2]
    with pytest.raises(GrammarError, match="grammar 1 is not compiled"):
        grammars.get(1)
    grammars.close()


def test_closed_while_it_compiles(gated: GatedTokens) -> None:
    """A model is unloaded: what is under way comes to nothing, and its thread to an end."""
    grammars = Grammars(gated)
    grammars.begin(Compile(1, LONG))
    threads = [thread for thread in threading.enumerate() if thread.name == "grammars"]
    grammars.close()
    gated.gate.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def test_a_model_without_a_tokenizer() -> None:
    """It follows no grammar, and says so."""
    grammars = Grammars(None)
    grammars.begin(Compile(1, 'start: "a"'))
    assert grammars.seconds_left() == 0.0
    (answer,) = grammars.collect()
    assert "tokenizer.json" in (answer.problem or "")
    grammars.close()


def test_a_chain_of_rules_that_needs_much_stack(tokens: GrammarTokens) -> None:
    """What spawn has let pass does not end the driver: its threads have the stack."""
    rules = "\n".join(f"r{i}: r{i + 1}" for i in range(8000))
    grammars = Grammars(tokens)
    grammars.begin(Compile(1, f'start: r0\n{rules}\nr8000: "z"\n'))
    (answer,) = collect(grammars, 1)
    assert answer.problem is None
    assert STOPS[0] not in Grammar(grammars.get(1), STOPS).allowed_ids()
    grammars.close()


def test_a_space_is_bound_by_the_grammars_number(tokens: GrammarTokens) -> None:
    """The engine samples what the grammar allows; a number that it does not know breaks the space alone."""
    engine = Engine(CpuDriver(1))
    with pytest.raises(RuntimeError, match="grammar 1 came before a model"):
        engine.begin_grammars([Compile(1, 'start: "a"')])
    load = Load(str(base_path()), "base", "fp32", "auto", 1 << 22, 1 << 16, 4, 128, 64)
    loaded = engine.load(load, lambda done, total, what: None)
    assert isinstance(loaded, Loaded)
    assert loaded.takes_grammars
    engine.begin_grammars([Compile(1, "start: /[0-9]{3}/")])
    while not (answers := engine.collect()):
        fds, seconds = engine.wait_for()
        select.select(fds, [], [], seconds)
    assert [(answer.id, answer.problem) for answer in answers if isinstance(answer, Compiled)] == [(1, None)]
    frames = loaded.kv.frames_per_page
    edits = [
        edit
        for asid, grammar in ((0, 1), (1, 9), (2, None))
        for edit in (
            Reserve(asid),
            Map(asid, 0, tuple(range(asid * frames, (asid + 1) * frames))),
            Bind(asid, Sampling(), (1, 300), 2, (2, 6), grammar=grammar),
        )
    ]
    done = engine.run_step(Step(1, tuple(edits), tuple(Row(asid, 0, (1, 300), True) for asid in range(3))))
    assert [fault.row for fault in done.faults] == [1]
    assert "grammar 9 is not compiled" in done.faults[0].message
    assert done.tokens[0] in Grammar(tokens.compile("start: /[0-9]{3}/"), STOPS).allowed_ids()
    assert done.tokens[2] is not None
    engine.forget_grammar(1)
    engine.close()


def test_a_kernel_that_is_gone_sends_no_grammars() -> None:
    """The end of the stream is for `receive` to tell."""
    ours, theirs = socket.socketpair()
    with theirs:
        link = KernelLink(theirs)
        ours.close()
        assert link.take_compiles() == []
        assert link.receive() is None


def test_a_grammar_overtakes_the_steps_before_it() -> None:
    """It is found behind messages that are whole, not in one that is not; the others keep their order."""
    ours, theirs = socket.socketpair()
    link = KernelLink(theirs)
    with ours, theirs:
        messages = [Step(1, (), ()), Compile(1, "x" * 1000), Forget(3), Compile(2, "y"), Step(2, (), ())]
        data = b"".join(map(encode_message, messages))
        ours.sendall(data[:1500])
        assert link.receive() == messages[0]
        found = link.take_compiles()
        assert found[0] == messages[1]
        ours.sendall(data[1500:])
        found += link.take_compiles()
        assert found == [messages[1], messages[3]]
        assert link.take_compiles() == []
        assert link.wait_message([])
        assert [link.receive(), link.receive()] == [messages[2], messages[4]]
        assert not link.wait_message([], 0.0)
        ours.sendall(b"\3\0\0\0abc")
        with pytest.raises(LinkError, match="undecodable message of 3 bytes"):
            link.take_compiles()
