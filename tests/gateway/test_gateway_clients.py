"""What other people's clients expect: LangChain, LiteLLM, LlamaIndex and lm-eval, where installed."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.gateway.harness import Gateway, KernelThread, say_scored, says

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


@pytest.fixture
def llamaindex(gateway: Gateway) -> Iterator[Any]:
    """Makes LlamaIndex's models of servers like OpenAI's."""
    module = pytest.importorskip(
        "llama_index.llms.openai_like", reason="llama-index-llms-openai-like comes with the extra [clients]"
    )
    with httpx.Client() as http:  # its own would never be closed

        def make(*, is_chat: bool) -> Any:
            return module.OpenAILike(
                model="scripted", api_base=gateway.base_url, api_key="none", max_retries=0, http_client=http,
                context_window=4096, is_chat_model=is_chat, is_function_calling_model=is_chat,
            )  # fmt: skip

        yield make


def test_llamaindex_text(llamaindex: Any, kernel: KernelThread) -> None:
    """Chats and completions, whole and streamed."""
    from llama_index.core.llms import ChatMessage

    kernel.program = says("It ", "rains.")
    chat, completion = llamaindex(is_chat=True), llamaindex(is_chat=False)
    messages = [ChatMessage(role="system", content="s"), ChatMessage(role="user", content="Weather?")]
    assert chat.chat(messages).message.content == "It rains."
    assert "".join(part.delta or "" for part in chat.stream_chat(messages)) == "It rains."
    assert completion.complete("Weather?").text == "It rains."
    assert "".join(part.delta for part in completion.stream_complete("Weather?")) == "It rains."


def test_llamaindex_tools(llamaindex: Any, kernel: KernelThread) -> None:
    """A call is read, whole and streamed."""
    from llama_index.core.tools import FunctionTool

    def get_weather(city: str) -> str:
        """Tell the weather."""
        return f"rain in {city}"

    kernel.program = says(CALL)
    model, tools = llamaindex(is_chat=True), [FunctionTool.from_defaults(get_weather)]
    streamed = list(model.stream_chat_with_tools(tools, user_msg="Weather?"))
    for answer in (model.chat_with_tools(tools, user_msg="Weather?"), streamed[-1]):
        (call,) = model.get_tool_calls_from_response(answer)
        assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Oslo"})


def test_lm_eval(gateway: Gateway, kernel: KernelThread) -> None:
    """`local-completions` scores continuations and generates; `local-chat-completions` chats."""
    models = pytest.importorskip(
        "lm_eval.models.openai_completions", reason="lm-eval is half a GB, and in no extra"
    )
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    until = {"until": ["more"], "max_gen_toks": 30}
    completions = models.LocalCompletionsAPI(
        base_url=f"{gateway.base_url}/completions", model="scripted", tokenizer_backend="huggingface",
        tokenizer=str(kernel.folder / "model"), batch_size=2, max_length=2048,
    )  # fmt: skip
    kernel.program = say_scored("x")
    asked = [Instance("loglikelihood", {}, ("The sky is", " blue"), index) for index in range(2)]
    assert completions.loglikelihood(asked) == [(-2.5, True)] * 2  # five tokens of -0.5 each
    kernel.program = says("done. more")
    assert completions.generate_until([Instance("generate_until", {}, ("Q: x", until), 0)]) == ["done. "]
    chat = models.LocalChatCompletion(base_url=f"{gateway.base_url}/chat/completions", model="scripted")
    question = JsonChatStr(json.dumps([{"role": "user", "content": "Q", "type": "text"}]))
    assert chat.generate_until([Instance("generate_until", {}, (question, until), 0)]) == ["done. "]
