"""Grammars for `Sampling.grammar`, from what people write: a JSON schema, a regex, a choice, GBNF or Lark.

Each function returns a source that llguidance reads. `explain_bad_grammar` tells whether it can be followed;
the kernel asks, too, and refuses a spawn with that complaint.

    sampling = Sampling(grammar=json_grammar({"type": "object", "required": ["name"]}))

`join_grammars` puts one inside another, as `@name`: a thought before JSON, or calls of tools beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from syscalls.text.grammar_process import validate_apart

__all__ = [
    "ANY_OBJECT", "BadGrammar", "choice_grammar", "explain_bad_grammar", "explain_bad_schema",
    "join_grammars", "json_grammar", "read_grammar", "regex_grammar", "write_schema",
]  # fmt: skip

ANY_OBJECT: dict[str, Any] = {"type": "object"}

# How models write JSON, so that they are not led where they have never been; and blanks could go on for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
SAFE_CHARACTERS = (
    4096  # even as one chain of rules, six characters each, it takes no more than 3 MiB of stack
)
_PLACE = "at 1(8): failed to compile JSON schema: "  # in the grammar around it, not in the schema
_GBNF_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_GBNF_MARKS = frozenset('"\\[]^-')  # have a meaning in a text or a class


class BadGrammar(ValueError):
    """A text is no grammar; says where."""


def write_schema(schema: dict[str, Any] | bool) -> str:
    """Return a schema as `%json` takes it, with the blanks that models put into JSON."""
    if isinstance(schema, bool):
        return json.dumps(schema)
    return json.dumps({**schema, "x-guidance": {**_SPACING, **schema.get("x-guidance", {})}})


def json_grammar(schema: dict[str, Any] | bool) -> str:
    """Return the grammar of the JSON values that obey a schema."""
    return f"start: %json {write_schema(schema)}\n"


def regex_grammar(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression matches whole, in Rust's syntax."""
    written = re.sub(
        r"\\.|/|\n", lambda found: _REGEX_SPELLING.get(found[0], found[0]), pattern, flags=re.DOTALL
    )
    return f"start: /{written}/\n" if written else 'start: ""\n'


_REGEX_SPELLING = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}


def choice_grammar(choices: Sequence[str]) -> str:
    """Return the grammar of some texts. Raises BadGrammar: there are none."""
    if not choices:
        raise BadGrammar("there is nothing to choose from")
    return f"start: {' | '.join(map(json.dumps, choices))}\n"


def read_grammar(text: str) -> str:
    """Return a grammar in Lark, from Lark as llguidance reads it, or from GBNF (EBNF with `root ::=`).

    Raises:
        BadGrammar: a text in GBNF is broken; says where.
    """
    if "::=" not in text:
        return text
    try:
        return str(gbnf_to_lark(_GBNF_ESCAPE.sub(_respell, text)))
    except RecursionError:
        raise BadGrammar("the rules are nested too deeply") from None
    except Exception as error:  # the library raises nothing narrower for an unknown rule
        raise BadGrammar(str(error)) from None


def join_grammars(outer: str, **inner: str) -> str:
    """Return `outer`, in which `@name` stands for the inner grammar of that name."""
    parts = [{"lark_grammar": outer}, *({"name": name, "lark_grammar": text} for name, text in inner.items())]
    return json.dumps({"grammars": parts})


def explain_bad_grammar(source: str) -> str | None:
    """Say why a grammar cannot be followed, naming the place; None: it can be.

    Blocks: for a long one a process is started, and ended when it takes too much.
    """
    problem = _validate(source)
    return " ".join(problem.split()) if problem else None


def explain_bad_schema(schema: Mapping[str, Any] | bool) -> str | None:
    """Say why a schema cannot be enforced, naming the part at fault; None: it can be. Blocks, as above."""
    given = schema if isinstance(schema, bool) else dict(schema)
    problem = _validate(json_grammar(given))
    if not problem:
        return None
    # What follows the first line shows the grammar around the schema.
    lines = problem.strip().removeprefix(_PLACE).split("\n   1 | ")
    return " ".join(lines[0].split())


def _validate(source: str) -> str:
    """The library's complaint about a grammar, or an empty text."""
    if len(source) > SAFE_CHARACTERS:
        return validate_apart(source)
    problem: str = LLMatcher.validate_grammar(source)
    return problem


def _respell(found: re.Match[str]) -> str:
    """Write an escape of GBNF as the library reads it: it loses leading zeros of code points."""
    digits = found[1] or found[2] or found[3]
    if digits is None:
        return found[0]
    code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise BadGrammar(f"{found[0]} is no character")
    if code < 0x20 or chr(code) in _GBNF_MARKS:
        return f"\\x{code:02x}"
    return chr(code)
