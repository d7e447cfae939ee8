"""Bodies as real clients sent them to a real server: each is answered, with nothing refused or ignored.

Captured in November 2026 between the clients and a server with the built-in model: langchain-openai 1.7,
litellm 1.108 (library and proxy), llama-index-llms-openai-like, aider 0.86, aiperf 0.13, guidellm 0.8 and
lm-eval. Only the model's name was changed, and token ids are brought into a smaller vocabulary. Here they are
sent again without the clients, which are large.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from tests.gateway.harness import PATIENCE_SECONDS, Gateway, KernelThread, events_of, say_scored, says

Json = dict[str, Any]
CAPTURED: dict[str, Json] = msgspec.json.decode(
    (Path(__file__).parent / "data" / "recorded.json").read_bytes()
)
NUM_BYTES = 256  # the ids that every vocabulary of these tests has
IGNORED = {"include[0]"}  # encrypted thoughts, which ours need not be


def check_choices(response: httpx.Response, body: Json) -> None:
    """Every choice has something in it, and ends."""
    rows = (
        [row for event in events_of(response) for row in event["choices"]]
        if body.get("stream")
        else response.json()["choices"]
    )
    num_asked = body.get("n", 1) * (len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1)
    assert {row["index"] for row in rows} == set(range(num_asked))
    for index in range(num_asked):
        mine = [row for row in rows if row["index"] == index]
        assert mine[-1]["finish_reason"] in ("stop", "length", "tool_calls")
        parts = [row.get("message") or row.get("delta") or row for row in mine]
        assert any(part.get("content") or part.get("text") or part.get("tool_calls") for part in parts)


def finished_response(response: httpx.Response) -> Json:
    """What the last event of a response's stream holds."""
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    last = msgspec.json.decode(lines[-1].removeprefix("data: "))
    assert last["type"] == f"response.{last['response']['status']}"
    return last["response"]


@pytest.mark.parametrize("name", CAPTURED)
def test_a_captured_body(gateway: Gateway, kernel: KernelThread, name: str) -> None:
    """It is answered as its route answers."""
    path, body = CAPTURED[name]["path"], CAPTURED[name]["body"]
    if body.get("prompt") and isinstance(body["prompt"][0], list):
        body = {**body, "prompt": [[token % NUM_BYTES for token in ids] for ids in body["prompt"]]}
    kernel.program = (
        say_scored("It rains.") if body.get("logprobs") else says('{"name": "w", ', '"arguments": {}}')
    )
    response = httpx.post(f"{gateway.url}{path}", json=body, timeout=PATIENCE_SECONDS)
    assert response.status_code == 200, response.text
    assert set(filter(None, response.headers.get("x-llmos-ignored-params", "").split(","))) <= IGNORED
    match path.rpartition("/")[2]:
        case "embeddings":
            asked = body["input"] if isinstance(body["input"], list) else [body["input"]]
            assert [row["index"] for row in response.json()["data"]] == list(range(len(asked)))
        case "rerank":
            assert len(response.json()["results"]) == body["top_n"]
        case "responses":
            answer = finished_response(response) if body.get("stream") else response.json()
            gone = httpx.delete(f"{gateway.url}{path}/{answer['id']}", timeout=PATIENCE_SECONDS)
            assert gone.status_code == 200  # with the process that was kept for what might follow
            assert answer["status"] in ("completed", "incomplete")  # there are limits among what was captured
            assert answer["output"]
        case _:
            check_choices(response, body)
