"""Stored responses on a real server: what if the gateway is killed, and is the memory really kept?"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from llmos.bench.server import Server
from tests.system.leaks import count, counted_server
from tests.system.ports import find_free_port

PATIENCE_SECONDS = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server whose gateway comes back on the same port. Ends with the leak count."""
    options = ("--device", "cpu", "--threads", "1", "--pool-mib", "256")
    with counted_server(*options, "--listen", f"127.0.0.1:{find_free_port()}") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """A client that does not retry; what it stored is deleted at the end."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client
        for path in Path(f"{server.socket_path}.responses").glob("*.json"):
            client.responses.delete(path.stem)


def find_gateway(server: Server) -> int:
    """The pid of the kernel's child that is the gateway."""
    for child in Path(f"/proc/{server.os_pid}/task").glob("*/children"):
        for pid in map(int, child.read_text().split()):
            if b"shell.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise AssertionError("there is no gateway")


def wait_until_ready(url: str) -> None:
    """Wait for the gateway that takes the place of another, on its port."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("no gateway came back")


def test_a_continuation_finds_the_memory(client: OpenAI) -> None:
    """A fork says, greedy, what a new process with the same tokens says; two may continue one."""
    ask = {"temperature": 0, "max_output_tokens": 12, "model": client.models.list().data[0].id}
    first = client.responses.create(input="Tell a story of a river. " * 10, **ask)
    forked = client.responses.create(input="And then?", previous_response_id=first.id, **ask)
    branch = client.responses.create(input="And then?", previous_response_id=first.id, **ask)
    assert forked.usage.input_tokens_details.cached_tokens == first.usage.total_tokens - 1
    # A way of sampling that differs, and is the same when greedy: it gets a process of its own.
    alone = client.responses.create(input="And then?", previous_response_id=first.id, top_p=0.5, **ask)
    assert alone.output_text == forked.output_text
    assert alone.usage.input_tokens == forked.usage.input_tokens
    client.responses.delete(first.id)
    assert branch.output_text == forked.output_text
    last = client.responses.create(input="Why?", previous_response_id=forked.id, **ask)
    assert last.usage.input_tokens > forked.usage.total_tokens


def test_a_continuation_tells_its_log_probabilities(client: OpenAI, server: Server) -> None:
    """Those of a fork are those of a process of its own, and none of the turn before is among them."""
    ask = {"temperature": 0, "max_output_tokens": 12, "model": client.models.list().data[0].id}
    ask |= {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
    first = client.responses.create(input="Tell a story of a river. " * 10, **ask)
    forked = client.responses.create(input="And then?", previous_response_id=first.id, **ask)
    assert forked.usage.input_tokens_details.cached_tokens == first.usage.total_tokens - 1
    dropped = httpx.post(f"{server.url}/reset_prefix_cache", timeout=60).json()
    assert dropped.keys() == {"num_dropped_pages"}  # those that the two map stay
    alone = client.responses.create(input="And then?", previous_response_id=first.id, top_p=0.5, **ask)
    found = []
    for answer in (forked, alone):
        assert client.responses.retrieve(answer.id).to_dict() == answer.to_dict()
        (part,) = answer.output[0].content
        assert b"".join(bytes(row.bytes) for row in part.logprobs).decode() == part.text
        assert all(len(row.top_logprobs) == 3 for row in part.logprobs)
        assert all(row.logprob == row.top_logprobs[0].logprob for row in part.logprobs)  # it was greedy
        found.append(part.logprobs)
    assert [row.token for row in found[0]] == [row.token for row in found[1]]
    assert [row.logprob for row in found[0]] == pytest.approx([row.logprob for row in found[1]], abs=1e-3)


def test_a_dropped_cache_is_empty(client: OpenAI, server: Server) -> None:
    """The next prompt is computed from its first token, and the one after it finds that again."""
    model = client.models.list().data[0].id

    def count_cached() -> int:
        asked = {"model": model, "prompt": "The same beginning. " * 20, "max_tokens": 1}
        return client.completions.create(**asked).usage.prompt_tokens_details.cached_tokens

    count_cached()
    assert count_cached() > 0
    assert httpx.post(f"{server.url}/reset_prefix_cache", timeout=60).json()["num_dropped_pages"] > 0
    assert [count_cached() > 0 for _ in range(2)] == [False, True]


def test_what_if_the_gateway_is_killed(client: OpenAI, server: Server) -> None:
    """A background response goes on; the gateway that follows tells the rest of its events."""
    model = client.models.list().data[0].id
    options = {"extra_body": {"ignore_eos": True}, "temperature": 0, "max_output_tokens": 300}
    undisturbed = client.responses.create(model=model, input="Count.", **options)
    asked = {"model": model, "input": "Count.", "background": True, "stream": True, **options}
    with client.responses.create(**asked) as stream:
        seen = []
        for event in stream:
            seen.append(event.to_dict())
            if len(seen) > 10:
                break
        os.kill(find_gateway(server), signal.SIGKILL)
    response_id = seen[0]["response"]["id"]
    wait_until_ready(server.url)
    rest = client.responses.retrieve(response_id, stream=True, starting_after=seen[-1]["sequence_number"])
    events = [*seen, *(event.to_dict() for event in rest)]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    final = events[-1]["response"]
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert text == undisturbed.output_text
    assert final["usage"]["output_tokens"] == 300
    assert count(server).num_processes == 2  # both wait to be continued
