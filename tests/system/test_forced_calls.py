"""Calls that a grammar forces the built-in model to make, through the official client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, LengthFinishReasonError, OpenAI

from llmos.bench.server import Server
from syscalls.errno import Errno, SyscallError
from syscalls.sampling import Sampling
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel

MESSAGES = [{"role": "user", "content": "Weather in Oslo?"}]
UNIT = {
    "type": "object",
    "properties": {"unit": {"enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["unit", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": UNIT, "strict": True}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """A client that does not retry."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    """The served model's name."""
    return client.models.list().data[0].id


def check_call(call: Any) -> None:
    """A call of one of the functions, with arguments that obey its schema."""
    arguments = json.loads(call.function.arguments)
    if call.function.name == "now":
        assert arguments == {}
    else:
        assert call.function.name == "get_weather"
        assert set(arguments) == {"unit", "days"}
        assert arguments["unit"] in "CF"
        assert 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_call(client: OpenAI, model: str, choice: Any) -> None:
    """Whole and streamed, greedy and sampled: calls that obey their schema, and no text."""
    for fields in ({"temperature": 0}, {"temperature": 1.2, "seed": 7, "n": 3}):
        body = {"model": model, "messages": MESSAGES, "tools": [TOOL, NOW], "max_tokens": 200, **fields}
        answer = client.chat.completions.create(**body, tool_choice=choice, parallel_tool_calls=False)
        streamed: dict[int, list[Any]] = {each.index: [] for each in answer.choices}
        for chunk in client.chat.completions.create(
            **body, tool_choice=choice, parallel_tool_calls=False, stream=True
        ):
            for each in chunk.choices:
                assert not each.delta.content
                streamed[each.index] += each.delta.tool_calls or []
        for each in answer.choices:
            assert each.finish_reason == ("tool_calls" if choice == "required" else "stop")
            assert each.message.content is None
            (call,) = each.message.tool_calls
            check_call(call)
            first, *rest = streamed[each.index]
            assert (first.id[:5], first.type, first.function.name) == (
                "call_",
                "function",
                call.function.name,
            )
            assert rest
            assert "".join(part.function.arguments for part in rest) == call.function.arguments


def test_strict_function_that_is_not_forced(client: OpenAI, model: str) -> None:
    """Whether the model calls or talks is its own matter; a call obeys its schema."""
    body = {"model": model, "messages": MESSAGES, "tools": [TOOL, NOW], "max_tokens": 60}
    for seed in range(3):
        with client.chat.completions.stream(
            **body, seed=seed, temperature=1.0, parallel_tool_calls=False
        ) as stream:
            try:
                message = stream.get_final_completion().choices[0].message
            except LengthFinishReasonError:  # it does not call that final
                continue
        for call in message.tool_calls or ():
            check_call(call)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_langchain_structured_output(server: Server, model: str) -> None:
    """LangChain asks for structured output by a function that must be called."""
    langchain = pytest.importorskip(
        "langchain_openai", reason="langchain-openai comes with the extra [clients]"
    )
    chat = langchain.ChatOpenAI(
        model=model, base_url=f"{server.url}/v1", api_key="none", max_retries=0, max_tokens=99
    )
    schema = {"title": "weather", "description": "The weather.", **UNIT}
    answer = chat.with_structured_output(schema, method="function_calling").invoke("Weather?")
    assert set(answer) == {"unit", "days"}
    forced = chat.bind_tools([{"title": "weather", "description": "The weather.", **UNIT}], tool_choice="any")
    assert forced.invoke("Weather?").tool_calls[0]["name"] == "weather"


def test_forced_calls_together(server: Server, model: str) -> None:
    """Many at once, each with its own grammar state, give what each gives alone."""

    async def main() -> list[list[str]]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:

            async def ask(seed: int) -> str:
                answer = await client.chat.completions.create(
                    model=model, messages=MESSAGES, tools=[TOOL], tool_choice=NAMED, max_tokens=60,
                    temperature=1.5, seed=seed,
                )  # fmt: skip
                (call,) = answer.choices[0].message.tool_calls or ()
                check_call(call)
                return call.function.arguments

            alone = [await ask(seed) for seed in range(6)]
            return [alone, list(await asyncio.gather(*(ask(seed) for seed in range(6))))]

    alone, together = asyncio.run(main())
    assert alone == together
    assert len(set(alone)) > 1


def test_broken_grammar_is_refused_or_ends_its_process_alone(server: Server) -> None:
    """No grammar: no process. Tokens that the model lacks: its error, by name; the device goes on."""
    with SyncClient(server.socket_path) as client:
        for _ in range(2):  # the second answer is remembered
            with pytest.raises(SyscallError, match="nonsense") as refused:
                client.spawn([5, 300], sampling=Sampling(grammar="start: nonsense"), max_tokens=9)
            assert refused.value.errno is Errno.EINVAL
        ends = []
        for grammar in ("start: <[999999]>", 'start: "yes"'):
            (pid,) = client.spawn([5, 300], sampling=Sampling(grammar=grammar), max_tokens=9).pids
            tokens = [token for output in client.stream(pid) for token in output.tokens]
            ends.append((client.wait(pid).status, tokens))
        (broken, _), (good, tokens) = ends
        assert broken.reason == "error"
        assert "999999" in broken.message
        assert good.reason == "stop"
        assert TextModel.open(client.models()[0].path).decode(tokens[:-1], continues=True) == "yes"
