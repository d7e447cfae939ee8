"""What other people's clients send and expect: LangChain and LiteLLM, where they are installed."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest

from tests.gateway.harness import Gateway, KernelThread, says

CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
MESSAGES = [{"role": "user", "content": "Weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Tell the weather.", "parameters": SCHEMA},
}

# What these libraries do when imported is theirs.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning"
)


@pytest.fixture
def langchain(gateway: Gateway) -> Any:
    """LangChain's chat model before the gateway."""
    module = pytest.importorskip("langchain_openai", reason="langchain-openai comes with the extra [clients]")
    return module.ChatOpenAI(model="scripted", base_url=gateway.base_url, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def litellm() -> Any:
    """LiteLLM, kept from fetching its price list."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    return pytest.importorskip("litellm", reason="litellm comes with the extra [clients]")


def test_langchain_chat(langchain: Any, kernel: KernelThread) -> None:
    """Plain, streamed and async: the same text, and usage where it is asked for."""
    kernel.program = says("It ", "rains.")
    answer = langchain.invoke("Weather?")
    assert answer.content == "It rains."
    assert answer.usage_metadata["output_tokens"] == 10
    chunks = list(langchain.stream("Weather?"))
    assert "".join(chunk.content for chunk in chunks) == "It rains."
    assert asyncio.run(langchain.ainvoke("Weather?")).content == "It rains."


def test_langchain_tools(langchain: Any, kernel: KernelThread) -> None:
    """A bound tool is called, and its result goes back: the loop of an agent."""
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    @tool
    def get_weather(city: str) -> str:
        """Tell the weather."""
        return f"rain in {city}"

    bound = langchain.bind_tools([get_weather])
    kernel.program = says(CALL)
    answer = bound.invoke("Weather?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    whole = None
    for chunk in bound.stream("Weather?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [(call["name"], call["args"])]
    kernel.program = says("It rains.")
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert bound.invoke([HumanMessage("Weather?"), answer, result]).content == "It rains."
    assert "rain in Oslo" in kernel.kernel.spawned[-1].prompt


def ask_litellm(litellm: Any, gateway: Gateway, **fields: Any) -> Any:
    """Complete a chat."""
    return litellm.completion(
        model="openai/scripted", api_base=gateway.base_url, api_key="none", messages=MESSAGES, **fields
    )


def test_litellm_chat(litellm: Any, gateway: Gateway, kernel: KernelThread) -> None:
    """Plain and streamed, with the parameters that it adds."""
    kernel.program = says("It ", "rains.")
    answer = ask_litellm(litellm, gateway, temperature=0.5, max_tokens=50)
    assert answer.choices[0].message.content == "It rains."
    assert answer.usage.completion_tokens == 10
    chunks = list(ask_litellm(litellm, gateway, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It rains."


def test_litellm_tools(litellm: Any, gateway: Gateway, kernel: KernelThread) -> None:
    """A call comes through, whole and streamed."""
    kernel.program = says(CALL)
    answer = ask_litellm(litellm, gateway, tools=[TOOL], tool_choice="auto")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = list(ask_litellm(litellm, gateway, tools=[TOOL], stream=True))
    whole = litellm.stream_chunk_builder(chunks).choices[0].message
    assert [(each.function.name, json.loads(each.function.arguments)) for each in whole.tool_calls] == [
        ("get_weather", {"city": "Oslo"})
    ]


def test_litellm_errors(litellm: Any, gateway: Gateway) -> None:
    """Refusals become its own exceptions."""
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        ask_litellm(litellm, gateway, temperature=3.0)
