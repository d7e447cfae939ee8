"""Answers of a given form from the built-in model, through the official client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

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


class Weather(BaseModel):
    """What clients that know Pydantic ask for."""

    unit: Literal["C", "F"]
    days: Annotated[int, Field(ge=1, le=9)]


def test_parse_helper(client: OpenAI) -> None:
    """The official client makes the schema of a class, and an object of each answer: whole and streamed."""
    model = client.models.list().data[0].id
    answer = client.beta.chat.completions.parse(
        model=model, messages=MESSAGES, response_format=Weather, max_tokens=100, n=2, temperature=1.0, seed=4
    )
    assert all(isinstance(choice.message.parsed, Weather) for choice in answer.choices)
    assert len(answer.choices) == 2
    with client.chat.completions.stream(
        model=model, messages=MESSAGES, response_format=Weather, max_tokens=100
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        whole = stream.get_final_completion().choices[0].message
    assert isinstance(whole.parsed, Weather)
    assert len(deltas) > 1
    assert "".join(deltas) == whole.content


def test_completions_have_their_form(client: OpenAI) -> None:
    """The older route takes the same fields, streamed too."""
    model = client.models.list().data[0].id
    fields: Any = {
        "model": model,
        "prompt": "Oslo",
        "temperature": 0,
        "max_tokens": 20,
        "extra_body": {"regex": "[0-9]{2}:[0-9]{2}"},
    }
    whole = client.completions.create(**fields)
    parts = "".join(chunk.choices[0].text for chunk in client.completions.create(**fields, stream=True))
    assert re.fullmatch("[0-9]{2}:[0-9]{2}", whole.choices[0].text)
    assert parts == whole.choices[0].text


def test_tools_or_an_answer(client: OpenAI) -> None:
    """Beside tools the answer is calls, or obeys the schema."""
    tool: Any = {"type": "function", "function": {"name": "now", "strict": True}}
    form: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": True}}
    model = client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=100, tools=[tool], response_format=form, n=4,
        temperature=1.5, seed=1,
    )  # fmt: skip
    for choice in answer.choices:
        if choice.finish_reason == "tool_calls":
            assert [call.function.name for call in choice.message.tool_calls or ()] != []
        elif choice.finish_reason == "stop":
            assert set(json.loads(choice.message.content or "")) == {"unit", "days"}
        else:
            assert choice.finish_reason == "length"


def test_langchain_structured_output(client: OpenAI, server: Server) -> None:
    """LangChain's own way to ask for a class."""
    langchain = pytest.importorskip(
        "langchain_openai", reason="langchain-openai comes with the extra [clients]"
    )
    chat = langchain.ChatOpenAI(
        model=client.models.list().data[0].id, base_url=f"{server.url}/v1", api_key="none", max_retries=0,
        max_tokens=99,
    )  # fmt: skip
    answer = chat.with_structured_output(Weather, method="json_schema").invoke("Weather?")
    assert isinstance(answer, Weather)
