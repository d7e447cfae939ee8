"""Answers of a given form from the built-in model, through the official client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from llmos.bench.server import Server

MESSAGES: list[Any] = [{"role": "user", "content": "Weather in Oslo?"}]
SCHEMA = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["unit", "days"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """A client that does not retry."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(client: OpenAI, **fields: Any) -> list[str]:
    """The texts of an answer's choices."""
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=100, **fields)
    assert all(choice.finish_reason == "stop" for choice in answer.choices)
    return [choice.message.content or "" for choice in answer.choices]


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 3}])
def test_answers_have_their_form(client: OpenAI, fields: dict[str, Any]) -> None:
    """Greedy and sampled, in several choices: a schema, an expression, a choice, a grammar."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    for text in ask(client, response_format=form, **fields):
        value = json.loads(text)
        assert set(value) == {"unit", "days"}
        assert value["unit"] in ("C", "F")
        assert 1 <= value["days"] <= 9
    for text in ask(client, extra_body={"regex": "[0-9]{2}:[0-9]{2}"}, **fields):
        assert re.fullmatch("[0-9]{2}:[0-9]{2}", text)
    for text in ask(client, extra_body={"structured_outputs": {"choice": ["rain", "sun"]}}, **fields):
        assert text in ("rain", "sun")
    for text in ask(client, extra_body={"grammar": 'root ::= "(" [a-c]{1,4} ")"'}, **fields):
        assert re.fullmatch(r"\([a-c]{1,4}\)", text)


def test_what_cannot_be_enforced_is_refused(client: OpenAI) -> None:
    """Before anything runs, with the keyword."""
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(BadRequestError, match="not") as raised:
        ask(client, response_format=form)
    assert raised.value.code == "invalid_json_schema"
