"""The official client against a real server and model: the gateway's own tests again, and what needs both."""

from __future__ import annotations

import json
import socket
import time
import urllib.request
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest
from openai import OpenAI

from llmos.bench.server import Server
from syscalls.sampling import Sampling
from syscalls.sync import SyncClient
from tests.gateway.test_gateway_openai_client import *  # noqa: F403
from tests.gateway.test_gateway_openai_client import MESSAGES
from tests.system.leaks import count


@pytest.fixture
def base_url(server: Server) -> str:
    """Where an OpenAI client finds the API."""
    return f"{server.url}/v1"


LONG = 1900  # tokens: nearly a context


def extra(**fields: object) -> dict[str, object]:
    """Extensions, as the SDK sends them."""
    return {"extra_body": fields}


def test_the_three_doors_agree(client: OpenAI, model: str, server: Server) -> None:
    """The same token ids and seed through HTTP and through the socket: the same tokens."""
    prompt = [5, 300, 301, 302, 303]
    for temperature, seed in ((0.0, 1), (0.9, 42)):
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=20, temperature=temperature, seed=seed,
            **extra(return_token_ids=True, ignore_eos=True),
        )  # fmt: skip
        with SyncClient(server.socket_path) as direct:
            spawned = direct.spawn(
                prompt, max_tokens=20, ignore_eos=True, sampling=Sampling(temperature=temperature, seed=seed)
            )
            tokens = [token for output in direct.stream(spawned.pids[0]) for token in output.tokens]
            direct.wait(spawned.pids[0])
        assert answer.choices[0].model_extra["token_ids"] == tokens
        assert answer.usage.completion_tokens == 20


def test_samples_are_seed_plus_i(client: OpenAI, model: str) -> None:
    """n samples of one prefill: sample i is what a request with seed + i gets."""
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0}
    together = client.chat.completions.create(**fields, n=4, seed=100)
    for choice in together.choices:
        alone = client.chat.completions.create(**fields, seed=100 + choice.index)
        assert alone.choices[0].message.content == choice.message.content
    assert together.usage.prompt_tokens == alone.usage.prompt_tokens


def test_second_request_finds_the_prefix(client: OpenAI, model: str) -> None:
    """A long prompt served before is found in memory, and says so in usage."""
    prompt = [300 + i % 200 for i in range(400)]
    fields = {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    first = client.completions.create(**fields)
    second = client.completions.create(**fields)
    assert first.choices[0].text == second.choices[0].text
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    # One that a stop string ends is told by the gateway to stop, and says so all the same.
    stopped = client.completions.create(**fields, stop=first.choices[0].text[:1])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.prompt_tokens_details.cached_tokens > 0


def test_progress_of_a_prompt(server: Server, client: OpenAI, model: str) -> None:
    """It is told before the first token, never falls while nobody is in the way, and ends at the whole."""
    prompt = [300 + i * 7 % 500 for i in range(600)]
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "stream": True, "return_progress": True}
    response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert told
    assert all("prompt_progress" in event for event in events[: len(told)])
    assert all(each["total"] == 600 and each["cache"] <= each["processed"] <= 600 for each in told)
    computed = [each["processed"] for each in told]
    assert computed == sorted(computed)
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_context_length_message(client: OpenAI, model: str) -> None:
    """The message has the very words that clients parse."""
    context = client.models.retrieve(model).model_extra["max_model_len"]
    response = httpx.post(
        f"{client.base_url}completions", json={"prompt": [300] * 10, "max_tokens": context}, timeout=60
    )
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(
        f"This model's maximum context length is {context} tokens. "
        f"However, you requested {context + 10} tokens"
    )


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes true by itself."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_process(server: Server, stream: bool) -> None:
    """Closing the connection in mid-flight gives the memory back at once, streaming or not."""
    address = urlsplit(server.url)
    body = json.dumps(
        {"prompt": [300] * 50, "max_tokens": LONG, "ignore_eos": True, "stream": stream, "n": 3}
    ).encode()
    begun = count(server).num_output_tokens
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_until(lambda: count(server).num_running == 3)
    wait_until(lambda: count(server).num_processes == 0)
    assert count(server).num_output_tokens - begun < 3 * LONG


def test_metrics_of_both(server: Server) -> None:
    """/metrics has the gateway's and the kernel's numbers."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:
        text = response.read().decode()
    assert "llmos_output_tokens_total" in text
    assert "llmos_frames" in text
    assert "llmos_gateway_requests_total" in text


def test_echoed_scores_are_those_of_generation(client: OpenAI, model: str) -> None:
    """What a text was generated with is what scoring it says, to the last bit; in a batch too."""
    prompts = [[5, 300, 301, 302, 303], [310, 311], [300 + i % 150 for i in range(150)]]
    fields = {"model": model, "temperature": 0, "logprobs": 3}
    made = client.completions.create(
        prompt=prompts, max_tokens=8, **fields, **extra(return_token_ids=True, ignore_eos=True)
    )
    texts = [
        [*prompt, *choice.model_extra["token_ids"]]
        for prompt, choice in zip(prompts, made.choices, strict=True)
    ]
    for max_tokens in (0, 1):
        echoed = client.completions.create(prompt=texts, max_tokens=max_tokens, echo=True, **fields)
        for prompt, choice, scored in zip(prompts, made.choices, echoed.choices, strict=True):
            values = scored.logprobs.token_logprobs
            assert values[0] is None
            assert len(values) == len(prompt) + 8 + max_tokens
            end = len(prompt) + 8
            assert values[len(prompt) : end] == choice.logprobs.token_logprobs
            assert scored.logprobs.top_logprobs[len(prompt) : end] == choice.logprobs.top_logprobs
    assert echoed.usage.prompt_tokens == sum(map(len, texts))


def test_vectors_keep_their_bits_in_company(client: OpenAI, model: str, server: Server) -> None:
    """Alone through the socket, and in a crowd beside chats through HTTP: the same vectors."""
    inputs = [[300 + (7 * i + j) % 200 for j in range(10 + 37 * i)] for i in range(12)]
    fields = {"model": model, "input": inputs}
    for pooling in ("last", "mean"):
        with SyncClient(server.socket_path) as direct:
            alone = [direct.embed([tokens], pooling=pooling).vectors[0] for tokens in inputs]
            chats = [
                direct.spawn([5, 310 + i], max_tokens=60, ignore_eos=True, auto_reap=True).pids[0]
                for i in range(4)
            ]
            together = client.embeddings.create(**fields, **extra(pooling=pooling))
            for pid in chats:
                assert sum(len(output.tokens) for output in direct.stream(pid)) == 60
        assert [tuple(row.embedding) for row in together.data] == alone
    assert together.usage.prompt_tokens == sum(map(len, inputs))
