"""From the options that ask for a form to a grammar."""

from __future__ import annotations

import json

from syscalls.text.grammar import (
    BadGrammar,
    choice_grammar,
    explain_bad_grammar,
    explain_bad_schema,
    json_grammar,
    read_grammar,
    regex_grammar,
)


def compile_form(flag: str, value: str | tuple[str, ...]) -> str:
    """Make a grammar of an option's value. Raises BadGrammar."""
    if flag == "--schema":
        return _compile_schema(str(value))
    if flag == "--choice":
        grammar = choice_grammar(value)
    elif flag == "--regex":
        grammar = regex_grammar(str(value))
    else:
        grammar = read_grammar(str(value))
    if (problem := explain_bad_grammar(grammar)) is not None:
        raise BadGrammar(problem)
    return grammar


def _compile_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadGrammar(f"the file is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise BadGrammar("a schema is an object")
    if (problem := explain_bad_schema(schema)) is not None:
        raise BadGrammar(problem)
    return json_grammar(schema)
