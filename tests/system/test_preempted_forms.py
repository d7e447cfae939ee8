"""What if structured answers and forced calls lose their memory in the middle? No stream shows it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import jsonschema
import pytest

from llmos.bench.server import Server, running_server
from tests.gateway.harness import events_of
from tests.system.leaks import count, counted_server

Json = dict[str, Any]

# As in test_transparency: small frames, and a new order of who may run every few steps.
OPTIONS = ("--device", "cpu", "--threads", "1", "--frame-kib", "16", "--weights", "bf16", "--kv", "bf16")
PRESSURE = ("--pool-mib", "2", "--policy", "rerank", "--rerank-steps", "7", "--no-prefix-cache")
WAYS = {
    "swap": ("--preempt", "swap", "--swap-mib", "64"),
    "recompute": ("--preempt", "recompute", "--swap-mib", "0"),
}

ROW = {
    "type": "object",
    "properties": {
        "unit": {"enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string", "pattern": "^[a-z ]{1,12}$"}, {"type": "null"}]},
    },
    "required": ["unit", "days", "note"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"rows": {"type": "array", "items": {"$ref": "#/$defs/row"}, "minItems": 3, "maxItems": 3}},
    "required": ["rows"],
    "additionalProperties": False,
    "$defs": {"row": ROW},
}
TOOL = {"type": "function", "function": {"name": "tell", "parameters": SCHEMA, "strict": True}}
PENALTIES = {"temperature": 0.9, "repetition_penalty": 1.1, "frequency_penalty": 0.2}
FORMS: list[Json] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    {"regex": "([0-9]{2}:[0-9]{2}, ){12}end", "logprobs": True, "top_logprobs": 2},
    {"grammar": 'root ::= ("(" [a-c]{1,4} ")"){14}'},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "tell"}}, "n": 2},
]
BODIES = [
    {
        "messages": [{"role": "user", "content": f"{number}. " + "Weather in Oslo, please. " * (2 + number)}],
        "max_tokens": 260,
        "seed": number,
        **(PENALTIES if number % 2 else {"temperature": 0}),
        **form,
    }
    for number, form in enumerate(FORMS * 2)
]


def ask(server: Server, body: Json) -> tuple[Json, Json]:
    """Stream an answer. Returns what must be equal on any run, by choice, and the stream's last timings."""
    more = {"stream": True, "timings_per_token": True, "stream_options": {"include_usage": True}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json={**body, **more}, timeout=120)
    assert response.status_code == 200, response.text
    choices: Json = {}
    events = events_of(response)
    for event in events:
        assert "error" not in event, event
        for row in event["choices"]:
            told = choices.setdefault(
                row["index"], {"content": "", "calls": [], "logprobs": [], "finish_reason": None}
            )
            told["content"] += row["delta"].get("content") or ""
            for call in row["delta"].get("tool_calls", ()):
                if "id" in call:
                    told["calls"].append([call["function"]["name"], ""])
                told["calls"][call["index"]][1] += call["function"]["arguments"]
            told["logprobs"] += (row["logprobs"] or {}).get("content", [])
            told["finish_reason"] = row["finish_reason"] or told["finish_reason"]
    return {"choices": choices, "usage": events[-1]["usage"]["completion_tokens"]}, events[-1]["metrics"]


@pytest.fixture(scope="module")
def quiet() -> list[Json]:
    """Each alone, with memory for all: the truth."""
    with running_server(*OPTIONS, "--no-prefix-cache") as server:
        return [ask(server, body)[0] for body in BODIES]


def test_the_truth_has_its_form(quiet: list[Json]) -> None:
    """What is compared below is worth it: long, and as its schema or grammar says."""
    for body, answer in zip(BODIES, quiet, strict=True):
        for told in answer["choices"].values():
            assert told["finish_reason"] in ("stop", "tool_calls"), (body, told)
            if "tools" in body:
                ((name, arguments),) = told["calls"]
                assert name == "tell"
                jsonschema.validate(json.loads(arguments), SCHEMA)
            elif "response_format" in body:
                jsonschema.validate(json.loads(told["content"]), SCHEMA)
            else:
                assert len(told["content"]) > 40


@pytest.mark.parametrize("way", ["swap", pytest.param("recompute", marks=pytest.mark.slow)])
def test_preempted(quiet: list[Json], way: str) -> None:
    """All at once in memory for a few: the same text, calls and log-probabilities, whoever gave way."""
    with counted_server(*OPTIONS, *PRESSURE, *WAYS[way]) as server:
        name = "swap_ms" if way == "swap" else "preempted_ms"
        lost = [0.0] * len(BODIES)
        # Until of each form somebody was in the middle when it had to go: one round nearly always has that.
        while not all(any(lost[kind :: len(FORMS)]) for kind in range(len(FORMS))):
            with ThreadPoolExecutor(len(BODIES)) as pool:
                found = list(pool.map(lambda body: ask(server, body), BODIES))
            assert [answer for answer, _ in found] == quiet
            lost = [before + metrics[name] for before, (_, metrics) in zip(lost, found, strict=True)]
        assert count(server).num_preemptions >= len(FORMS)
