"""What grammars let through obeys its schema: the official suite's schemas, those that can be enforced."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import referencing
import referencing.jsonschema
from llguidance import LLMatcher

from drivers.builtin import base_path
from drivers.model.grammar import Grammar, GrammarTokens
from syscalls.text.grammar import explain_bad_schema, json_grammar

SUITE = Path(__file__).parents[2] / "../shared/data/json-schema-suite"
STOPS = np.array([2, 6])
MAX_TOKENS = 120
# Leap seconds, days of February, the length of host names; what a string's content is.
LOOSE = {"date-time.json", "date.json", "time.json", "hostname.json", "content.json"}
UNSUPPORTED: dict[str, Any] = {
    "not": {"type": "string"}, "if": {"type": "string"}, "uniqueItems": True, "contains": {"type": "null"},
    "propertyNames": {"maxLength": 3}, "unevaluatedProperties": False, "unevaluatedItems": False,
    "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {}}, "$dynamicRef": "#a",
}  # fmt: skip
pytestmark = pytest.mark.skipif(not SUITE.exists(), reason="the suite is not beside the repository")


@cache
def tokens() -> GrammarTokens:
    """The built-in model's."""
    found = GrammarTokens.open(str(base_path()), 2560, (2, 6))
    assert found is not None
    return found


@cache
def groups() -> tuple[dict[str, Any], ...]:
    """Groups of tests whose schema can be enforced."""
    found = []
    for line in (SUITE / "groups_even.jsonl").read_text(encoding="utf-8").splitlines():
        group = json.loads(line)
        if "draft7" in group["file"] and isinstance(group["schema"], dict):
            group["schema"].setdefault("$schema", "http://json-schema.org/draft-07/schema#")
        if explain_bad_schema(group["schema"]) is None:
            found.append(group)
    return tuple(found)


@cache
def registry() -> Any:
    """The documents that schemas refer to."""
    remotes = json.loads((SUITE / "remotes.json").read_text(encoding="utf-8"))
    return referencing.Registry().with_resources(
        (address, referencing.Resource.from_contents(text, referencing.jsonschema.DRAFT202012))
        for address, text in remotes.items()
    )


def checker(group: dict[str, Any]) -> Any:
    """Another's opinion on what obeys a group's schema."""
    kind = jsonschema.Draft7Validator if "draft7" in group["file"] else jsonschema.Draft202012Validator
    return kind(group["schema"], registry=registry())


def name(group: dict[str, Any]) -> str:
    """Where a group is in the suite."""
    return f"{group['file']}: {group['description']}"


def walk(schema: Any, seed: int) -> str | None:
    """Take random allowed tokens to an end; None: none was reached. An end that is allowed is likely."""
    rng = np.random.default_rng(seed)
    grammar = Grammar(tokens().compile(json_grammar(schema)), STOPS)
    output: list[int] = []
    while len(output) < MAX_TOKENS:
        allowed = grammar.allowed_ids()
        if STOPS[0] in allowed and (len(allowed) == len(STOPS) or rng.random() < 0.5):
            return str(tokens().tokenizer.decode_str(output))
        choices = allowed[~np.isin(allowed, STOPS)]
        # Random text seldom closes what it opened: half the time, one of the few tokens of one character.
        short = choices[choices < 300]
        token = int(rng.choice(short if len(short) and rng.random() < 0.7 else choices))
        grammar.advance([token])
        output.append(token)
    return None


def accepts(schema: Any, text: str) -> bool:
    """True when a text is all that a schema's grammar asks for."""
    matcher = LLMatcher(tokens().tokenizer, json_grammar(schema), log_level=0)
    ids = tokens().tokenizer.tokenize_str(text)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


def find_wrong_walks(seeds: range) -> tuple[int, list[str]]:
    """How many walks reached an end, and what was wrong with any."""
    num_whole, wrong = 0, []
    for group in groups():
        for seed in seeds:
            if (text := walk(group["schema"], seed)) is None:
                continue
            try:
                is_valid = checker(group).is_valid(json.loads(text))
            except re.error:  # an expression that Python does not read
                continue
            except ValueError:
                is_valid = False
            num_whole += 1
            if not is_valid:
                wrong.append(f"{name(group)}: {text}")
    return num_whole, wrong


def test_walks_obey_their_schemas() -> None:
    """Random outputs that reach an end are instances, by another's opinion."""
    num_whole, wrong = find_wrong_walks(range(1))
    assert not wrong
    assert num_whole > 150


@pytest.mark.slow
def test_many_walks_obey_their_schemas() -> None:
    """Thirty outputs for each schema."""
    num_whole, wrong = find_wrong_walks(range(1, 31))
    assert not wrong
    assert num_whole > 5000


def test_instances_that_are_wrong_are_refused() -> None:
    """What the suite says is no instance cannot be written; of some formats only the shape is known."""
    wrong = []
    for group in groups():
        if Path(group["file"]).name in LOOSE:
            continue
        for test in group["tests"]:
            if not test["valid"] and accepts(group["schema"], json.dumps(test["data"], ensure_ascii=False)):
                wrong.append(f"{name(group)}: {test['data']!r}")
    assert not wrong


def test_what_cannot_be_enforced_is_refused_by_name() -> None:
    """Of keywords that need more than a grammar, each is named in the complaint."""
    for keyword, value in UNSUPPORTED.items():
        problem = explain_bad_schema({keyword: value})
        assert problem is not None
        assert keyword in problem
