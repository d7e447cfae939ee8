"""Output that follows a grammar: whatever the logits, and however often the space is bound anew."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from drivers.builtin import base_path
from drivers.model import grammar as grammar_module
from drivers.model.grammar import CompiledGrammar, Grammar, GrammarError, GrammarTokens
from drivers.model.randomness import uniform
from drivers.model.reference_sampler import choose_token
from drivers.model.sampler import Sampler
from llmos.device import Bind, Sampling
from native.sampling import Draw, sample

VOCAB, STOPS = 2560, (2, 6)
GRAMMARS = {
    "letters": "start: /[a-z]{0,6}/",
    "nested": 'start: item{1,4}\nitem: "(" item? ")" | /[a-z]/',
    "json": 'start: %json {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}',
    "one": 'start: "yes" | "no"',
}


@cache
def open_tokens() -> GrammarTokens:
    """The built-in model's tokens."""
    found = GrammarTokens.open(str(base_path()), VOCAB, STOPS)
    assert found is not None
    return found


def logits_of(seed: int, position: int) -> torch.Tensor:
    """Some logits for a position."""
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed * 1000 + position))


@cache
def compiled(source: str) -> CompiledGrammar:
    """A grammar, compiled for them."""
    return open_tokens().compile(source)


def bind_of(tokens: list[int], num_prompt: int, *, temperature: float, min_tokens: int) -> Bind:
    """A space that follows a grammar."""
    sampling = Sampling(temperature=temperature, seed=5)
    return Bind(0, sampling, tuple(tokens), num_prompt, stop_token_ids=STOPS, min_tokens=min_tokens)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(GRAMMARS)), prompt=st.lists(st.integers(0, VOCAB - 1), max_size=5),
    seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 1.0]), min_tokens=st.sampled_from([0, 3]),
    rebinds=st.sets(st.integers(0, 30)),
)  # fmt: skip
def test_output_follows_the_grammar(
    name: str, prompt: list[int], seed: int, temperature: float, min_tokens: int, rebinds: set[int]
) -> None:
    """A space bound anew in the middle samples the same; an end comes only where the grammar may end."""
    source = GRAMMARS[name]
    quiet, moved = (Sampler(VOCAB) for _ in range(2))
    tokens = list(prompt)
    options = {"temperature": temperature, "min_tokens": min_tokens}
    for sampler in (quiet, moved):
        sampler.bind(bind_of(tokens, len(prompt), **options), compiled(source))
    matcher = LLMatcher(open_tokens().tokenizer, source)
    for step in range(30):
        if step in rebinds:
            moved.bind(bind_of(tokens, len(prompt), **options), compiled(source))
        rows = [(0, len(tokens))]
        [outcome] = quiet.sample(logits_of(seed, step), rows)
        assert moved.sample(logits_of(seed, step), rows) == [outcome]
        assert outcome.token is not None
        tokens.append(outcome.token)
        if outcome.token in STOPS:
            assert matcher.is_accepting()
            break
        assert matcher.consume_token(outcome.token)


@settings(max_examples=30)
@given(
    name=st.sampled_from([*sorted(GRAMMARS), "text"]), seed=st.integers(0, 1000), may_stop=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_limits_are_the_mask(name: str, seed: int, may_stop: bool, temperature: float) -> None:
    """Allowed or banned, whichever are fewer: the same tokens; both samplers keep to them and agree."""
    source = GRAMMARS.get(name, "start: /(?s:.{0,9})/")
    grammar = Grammar(compiled(source), np.array(STOPS))
    for step in range(12):
        right = grammar.allowed_ids(may_stop=may_stop)
        allowed, banned = grammar.limits(may_stop=may_stop)
        assert not (len(allowed) and len(banned))
        assert len(allowed) + len(banned) <= VOCAB // 2
        found = allowed if len(allowed) else np.setdiff1d(np.arange(VOCAB), banned)
        assert np.array_equal(found, right)
        logits = logits_of(seed, step)[0].numpy()
        draw = Draw(temperature, uniform(seed, step), allowed_ids=allowed, banned_ids=banned)
        token = sample(logits, draw).token
        assert token == choose_token(logits, draw).token
        assert token == choose_token(logits, Draw(temperature, draw.uniform, allowed_ids=right)).token
        assert token in right
        grammar.advance([token])


def test_after_the_end_only_ends_follow() -> None:
    """A device may be a step ahead of the kernel: what is sampled past the end is an end, and no fault."""
    grammar = Grammar(compiled(GRAMMARS["one"]), np.array(STOPS))
    assert not grammar.is_over
    grammar.advance([2])  # not allowed here
    assert list(grammar.allowed_ids()) == list(STOPS)
    grammar.advance([2, 300])
    assert list(grammar.allowed_ids(may_stop=False)) == list(STOPS)


def test_spaces_with_one_grammar_are_where_they_are_themselves() -> None:
    """One that goes on, or breaks, does not move the other, nor the grammar itself."""
    grammar, stops = compiled('start: "a" "b" "c"'), np.array(STOPS)
    first = Grammar(grammar, stops)
    begin = first.allowed_ids().tolist()
    first.advance(begin[:1])
    second = Grammar(grammar, stops)
    assert second.allowed_ids().tolist() == begin != first.allowed_ids().tolist()
    second.advance([2])  # not allowed here
    assert second.is_over
    assert not first.is_over
    assert Grammar(grammar, stops).allowed_ids().tolist() == begin


def test_a_grammar_that_grows_beyond_the_librarys_limits_is_a_fault() -> None:
    """Not an output that stops where it must not; the row beside it goes on."""
    properties = {f"p{number}": {"enum": [number]} for number in range(1000)}
    source = f"start: %json {json.dumps({'type': 'object', 'properties': properties})}"
    sampler = Sampler(VOCAB)
    for asid in (0, 1):
        bind = msgspec.structs.replace(bind_of([1], 1, temperature=0.0, min_tokens=0), asid=asid)
        sampler.bind(bind, compiled(source) if asid == 0 else compiled(GRAMMARS["letters"]))
    first = sampler.sample(logits_of(0, 0).repeat(2, 1), [(0, 1), (1, 1)])
    assert [outcome.fault for outcome in first] == [None, None]
    broken, other = sampler.sample(logits_of(0, 1).repeat(2, 1), [(0, 2), (1, 2)])
    assert "cannot be followed from here: Parser Error: Current row has" in (broken.fault or "")
    assert broken.token is None
    assert other.token is not None


def test_without_stop_tokens_the_models_own_end_it() -> None:
    """With ignore_eos no token stops the process, and the grammar still has an end to sample."""
    grammar = Grammar(compiled('start: ""'), np.array([], dtype=np.int64))
    assert set(grammar.allowed_ids()) == set(STOPS)


def test_what_cannot_be_followed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar that is broken, or holds every step up, and a folder without a tokenizer."""
    with pytest.raises(GrammarError, match="nonsense"):
        open_tokens().compile("start: nonsense")
    monkeypatch.setattr(grammar_module, "MAX_MASK_SECONDS", 0.0)
    with pytest.raises(GrammarError, match="s for each token; the limit is 0 s"):
        open_tokens().compile(GRAMMARS["one"])
    assert GrammarTokens.open(str(tmp_path), VOCAB, STOPS) is None
