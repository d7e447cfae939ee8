"""What other programs were seen to send, to the letter: each is answered, and nothing in it is refused.

Recorded from LlamaIndex's OpenAILike 0.8, lm-eval 0.4 and guidellm 0.8 as they ran against this gateway;
those of aider (with options that a run seldom has), Continue, aiperf and Open WebUI are written after their
source; more of real runs are in test_gateway_captured.py. Where a real package is
installed, test_gateway_clients.py and test_gateway_node_clients.py run it; these run everywhere.
"""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.gateway.harness import PATIENCE_SECONDS, Gateway, KernelThread, events_of, say_scored, says

Json = dict[str, Any]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CITY = {
    "properties": {"city": {"title": "City", "type": "string"}},
    "required": ["city"],
    "type": "object",
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Tell the weather.", "parameters": CITY}

REQUESTS: dict[str, tuple[str, Json, set[str]]] = {  # path, body, and what is told to have been ignored
    "LlamaIndex, chat": (
        CHAT,
        {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Weather?"}],
            "model": "scripted", "stream": True, "temperature": 0.1,
        },
        set(),
    ),
    "LlamaIndex, tools": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Weather?"}], "model": "scripted",
            "parallel_tool_calls": False, "stream": False, "temperature": 0.1, "tool_choice": "auto",
            "tools": [{"type": "function", "function": {**WEATHER, "strict": False}}],
        },
        set(),
    ),
    "LlamaIndex, completion": (
        COMPLETIONS, {"model": "scripted", "prompt": "Once", "stream": False, "temperature": 0.1}, set(),
    ),
    "aider": (  # which asks through LiteLLM; cache marks on parts, as its --cache-prompts has them
        CHAT,
        {
            "messages": [
                {
                    "role": "system",
                    "content": [
                        {"type": "text", "text": "Act as an expert.", "cache_control": {"type": "ephemeral"}}
                    ],
                },
                {"role": "user", "content": "I have *added these files*\n\na.py\n```\nx = 1\n```"},
                {"role": "assistant", "content": "Ok, any changes I propose will be to those files."},
                {"role": "user", "content": "Make it 2."},
            ],
            "model": "scripted", "stream": True, "temperature": 0,
        },
        set(),
    ),
    "Continue, chat": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Explain."}], "model": "scripted", "max_tokens": 2048,
            "stream": True, "stop": ["<|im_end|>"],
        },
        set(),
    ),
    "Continue, tab": (
        COMPLETIONS,
        {
            "model": "scripted", "max_tokens": 256, "temperature": 0.01, "stream": True,
            "prompt": "<fim_prefix>def f(x):\n    <fim_suffix>\n<fim_middle>",
            "stop": [
                "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>",
                "</fim_middle>", "</code>", "/src/", "```", "\ndef", "\nclass", "\nif __name__",
            ],
        },
        set(),
    ),
    "Open WebUI, chat": (
        CHAT,
        {
            "stream": True, "model": "scripted", "messages": [{"role": "user", "content": "Hello"}],
            "params": {}, "features": {"web_search": False}, "session_id": "VpP4", "chat_id": "local:1",
            "id": "4b2e", "background_tasks": {"title_generation": True}, "tool_servers": [],
            "stream_options": {"include_usage": True},
        },
        {"params", "features", "session_id", "chat_id", "id", "background_tasks", "tool_servers"},
    ),
    "Open WebUI, title": (
        CHAT,
        {
            "model": "scripted", "stream": False, "max_completion_tokens": 1000,
            "messages": [{"role": "user", "content": "### Task:\nGenerate a title."}],
            "metadata": {"task": "title_generation", "chat_id": "1"},
        },
        set(),
    ),
    "lm-eval, loglikelihood": (
        COMPLETIONS,
        {
            "model": "scripted", "prompt": [[84, 104, 101, 32], [84, 104, 101]], "temperature": 0,
            "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True,
        },
        set(),
    ),
    "lm-eval, generation": (
        COMPLETIONS,
        {
            "prompt": [[81, 58, 32, 120]], "model": "scripted", "max_tokens": 30, "temperature": 0.0,
            "stop": ["more", "<|end|>"], "seed": 1234,
        },
        set(),
    ),
    "lm-eval, chat": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "Q", "type": "text"}], "model": "scripted",
            "max_tokens": 30, "temperature": 0, "stop": ["more"], "seed": 1234,
        },
        {"messages[0].type"},
    ),
    "guidellm, completion": (
        COMPLETIONS,
        {
            "model": "scripted", "stream": True, "max_tokens": 8, "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "prompt": "1 0 m0 Finish me",
        },
        set(),
    ),
    "guidellm, chat": (
        CHAT,
        {
            "model": "scripted", "stream": True, "max_completion_tokens": 8, "ignore_eos": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "messages": [{"role": "user", "content": [{"type": "text", "text": "1 0 m0 Finish me"}]}],
        },
        set(),
    ),
    "aiperf": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "lorem ipsum"}], "model": "scripted", "stream": True,
            "max_completion_tokens": 12, "ignore_eos": True, "min_tokens": 12,
            "stream_options": {"include_usage": True},
        },
        set(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_of_other_programs(gateway: Gateway, kernel: KernelThread, name: str) -> None:
    """Answered with text and a finish; ignored fields are told, and there are no others."""
    path, body, ignored = REQUESTS[name]
    kernel.program = say_scored("It rains.") if "logprobs" in body else says("It ", "rains.")
    headers = {"authorization": "Bearer none", "api-key": "none"}
    response = httpx.post(f"{gateway.url}{path}", json=body, headers=headers, timeout=PATIENCE_SECONDS)
    assert response.status_code == 200, response.text
    assert set(filter(None, response.headers.get("x-llmos-ignored-params", "").split(","))) == ignored
    if body.get("stream"):
        rows = [row for event in events_of(response) for row in event["choices"]]
    else:
        rows = response.json()["choices"]
    texts = [
        (row.get("delta") or row.get("message") or {}).get("content") or row.get("text") or "" for row in rows
    ]
    assert "It" in "".join(texts) or "echo" in body
    assert rows[-1]["finish_reason"] in ("stop", "length")
    if "echo" in body:  # scores: one for each token of the prompt but the first, and for the one after it
        assert [len(row["logprobs"]["token_logprobs"]) for row in rows] == [5, 4]
        assert all(row["logprobs"]["token_logprobs"][0] is None for row in rows)
        assert json.loads(response.text)["usage"]["prompt_tokens"] == 7
