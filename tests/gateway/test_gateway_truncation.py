"""`truncation` "auto" of `/v1/responses`: the longest end of a conversation that fits is answered."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shell.gateway.errors import ApiError, context_length_exceeded
from shell.gateway.response_truncation import drop_before, list_starts, prepare_truncated
from tests.gateway.harness import PATIENCE_SECONDS, Gateway, KernelThread, says
from tests.gateway.test_gateway_errors import check_error
from tests.scripted_kernel import read_tokens

PATH = "/v1/responses"
MESSAGES = st.lists(
    st.builds(
        lambda role, length: {"role": role, "content": "x" * length},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        st.integers(0, 9),
    ),
    max_size=12,
)


def count(messages: list[dict[str, Any]]) -> int:
    """How long a conversation is."""
    return sum(1 + len(message["content"]) for message in messages)


@given(messages=MESSAGES, limit=st.integers(0, 60))
def test_the_longest_end_that_fits(messages: list[dict[str, Any]], limit: int) -> None:
    """As who tries one turn after another would find it, in fewer tries; nothing is dropped without need."""
    tries: list[list[dict[str, Any]]] = []

    async def prepare(kept: list[dict[str, Any]]) -> Any:
        await trio.lowlevel.checkpoint()
        tries.append(kept)
        if count(kept) > limit:
            raise context_length_exceeded(limit, count(kept), 0, "messages")
        return SimpleNamespace(kept=kept)

    starts = list_starts(messages)
    ends = [messages, *(drop_before(messages, start) for start in starts)]
    expected = next((end for end in ends if count(end) <= limit), None)
    if expected is None:
        with pytest.raises(ApiError) as caught:
            trio.run(prepare_truncated, prepare, messages)
        assert caught.value.code == "context_length_exceeded"
    else:
        found: Any = trio.run(prepare_truncated, prepare, messages)
        assert found.kept == expected
    assert len(tries) <= 1 + len(starts).bit_length()


@pytest.fixture
def limit(gateway: Gateway) -> int:
    """The model's context in tokens, each of which is a byte."""
    length: int = gateway.get("/v1/models").json()["data"][0]["max_model_len"]
    return length


@pytest.fixture
def stored(gateway: Gateway, kernel: KernelThread) -> Iterator[list[str]]:
    """Ids of what a test has stored; they are deleted."""
    ids: list[str] = []
    yield ids
    for each in ids:
        assert gateway.get(f"{PATH}/{each}").status_code == 200
        assert delete(gateway, each)["deleted"]


def delete(gateway: Gateway, response_id: str) -> Any:
    """Delete a response."""
    return httpx.delete(f"{gateway.url}{PATH}/{response_id}", timeout=PATIENCE_SECONDS).json()


def test_the_oldest_turns_are_left_out(
    gateway: Gateway, kernel: KernelThread, limit: int, stored: list[str]
) -> None:
    """Where the default refuses; instructions and the last turn stay, later turns continue what was kept."""
    turns = [
        {"role": role, "content": f"{number}{'x' * (limit // 8)}"}
        for number in range(8)
        for role in ("user", "assistant")
    ]
    body: dict[str, Any] = {"input": [*turns, {"role": "user", "content": "last"}], "max_output_tokens": 20}
    body["instructions"] = "Be short."
    check_error(gateway.post(PATH, body), 400, "context_length_exceeded", "input")
    kernel.program = says("yes")
    response = gateway.post(PATH, {**body, "truncation": "auto"}).json()
    stored.append(response["id"])
    assert (response["status"], response["truncation"]) == ("completed", "auto")
    tokens = kernel.kernel.spawned[-1].spawn.prompt
    assert read_tokens(tokens).startswith("<|system|>Be short.<|end|><|user|>")
    assert read_tokens(tokens).endswith("<|user|>last<|end|><|assistant|>")
    assert limit // 2 < len(tokens) <= limit - 20
    follow = {**body, "input": "more", "previous_response_id": response["id"], "truncation": "auto"}
    response = gateway.post(PATH, follow).json()
    stored.append(response["id"])
    assert response["status"] == "completed"
    check_error(gateway.post(PATH, {**follow, "input": "x" * limit}), 400, "context_length_exceeded", "input")
