"""The official OpenAI client for Node: every door of the API, errors by their classes, aborts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Spawn
from syscalls.tenant import Exceeded
from tests.gateway.harness import Gateway, KernelThread, running_gateway, say_forever, say_nothing, says
from tests.gateway.node_client import Node, running_node
from tests.scripted_kernel import ScriptedProcess

CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
PLACE = {"city": "Oslo", "degrees": 7}


@pytest.fixture(scope="module")
def shared_node(shared_gateway: Gateway) -> Iterator[Node]:
    """One client for the module, as a program would have one."""
    with running_node(shared_gateway.base_url) as node:
        yield node


@pytest.fixture
def node(shared_node: Node, kernel: KernelThread) -> Node:
    """The shared client; `kernel` sees at the end that it has left no process behind."""
    return shared_node


def test_models(node: Node) -> None:
    """The list, and one entry."""
    assert node.tell("models") == {"listed": "scripted", "retrieved": "scripted"}


def test_chat_whole_and_streamed(node: Node, kernel: KernelThread) -> None:
    """The answer, its stream with usage, and the stream's helper say the same."""
    kernel.program = says("It ", "rains.")
    whole = node.tell("chat", fields={"n": 2})
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["It rains."] * 2
    streamed = node.tell("stream", fields={})
    assert (streamed["text"], streamed["finish"]) == ("It rains.", "stop")
    assert streamed["usage"]["completion_tokens"] == 10
    helped = node.tell("stream_helper")
    assert helped["text"] == helped["message"] == "".join(helped["deltas"]) == "It rains."
    assert (helped["finish_reason"], helped["usage"]["completion_tokens"]) == ("stop", 10)


def test_tools(node: Node, kernel: KernelThread) -> None:
    """Calls arrive whole and in a stream, and `runTools` carries them out and asks again."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        return await says("It rains." if "rain in Oslo" in process.prompt else CALL)(process)

    kernel.program = program
    told = node.tell("tools")
    for (call,) in told["calls"]:
        assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Oslo"})
    assert (told["asked"], told["runs"]) == (["Oslo"] * 2, ["It rains."] * 2)


def test_structured_output(node: Node, kernel: KernelThread) -> None:
    """A zod schema is sent as the process's grammar, and the answer is parsed by it."""
    kernel.program = says(json.dumps(PLACE))
    assert node.tell("structured") == [PLACE, PLACE]
    grammar = kernel.kernel.spawned[-1].spawn.sampling.grammar
    assert grammar is not None
    assert "degrees" in grammar


def test_completions(node: Node) -> None:
    """Several prompts, and one of token ids as a stream."""
    assert node.tell("completions") == {"texts": ["hello", "hello"], "streamed": "hello"}


def test_embeddings(node: Node) -> None:
    """Base64, which is the client's default, and plain numbers are the same to the bit of a float32."""
    packed, plain = node.tell("embeddings")
    assert packed == [pytest.approx(row, abs=1e-7) for row in plain]
    assert len(packed[0]) == len(packed[1]) > 1
    assert packed[0] != packed[1]


def test_responses(node: Node) -> None:
    """Whole, streamed, helped, continued, read again; deleted, they leave no process."""
    told = node.tell("responses")
    assert told["texts"] == ["hello"] * 4
    assert told["numbers"] == list(range(len(told["numbers"])))
    assert "".join(told["deltas"]) == "hello"
    assert told["inputs"] == 1
    assert (told["gone"]["class"], told["gone"]["status"]) == ("NotFoundError", 404)


def test_background_response(node: Node, kernel: KernelThread) -> None:
    """A stream that was left is taken up behind what was seen, and cancelled in the middle."""
    kernel.program = say_forever
    told = node.tell("background")
    assert told["numbers"] == list(range(len(told["numbers"])))
    assert (told["begun"], told["cancelled"], told["ended"]) == ("in_progress", "cancelled", "cancelled")


def test_aborts_leave_nothing_behind(node: Node, kernel: KernelThread) -> None:
    """Out of the loop, by the controller, by a signal: each time the process is killed."""
    kernel.program = say_forever
    told = node.tell("abort", fields={})
    assert told["chunks"] >= 3  # some more had arrived before the abort
    assert told["refused"]["class"] == "APIUserAbortError"
    kernel.wait_until(lambda: not kernel.kernel.processes)
    assert len(kernel.kernel.spawned) in (2, 3)  # the last may not have been sent before it was given up


def test_a_timeout(node: Node, kernel: KernelThread) -> None:
    """The client gives up a request that is not answered, and its process goes."""
    kernel.program = say_nothing
    assert node.tell("timeout")["class"] == "APIConnectionTimeoutError"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"model": "no-such"}, ("NotFoundError", 404, "model_not_found", "model")),
        ({"temperature": 3}, ("BadRequestError", 400, "invalid_value", "temperature")),
        ({"messages": "hi"}, ("BadRequestError", 400, "invalid_type", "messages")),
        ({"audio": {"voice": "x"}}, ("BadRequestError", 400, "unsupported_parameter", "audio")),
        ({"max_tokens": 10_000_000}, ("BadRequestError", 400, "context_length_exceeded", "messages")),
    ],
)
def test_refusals_of_the_request(node: Node, fields: dict[str, Any], told: tuple[str, int, str, str]) -> None:
    """Each has the client's own class, and is not tried again."""
    refused = node.tell("refused", fields=fields, retries=1)
    assert tuple(refused[key] for key in ("class", "status", "code", "param")) == told
    assert refused["attempts"] == 1


@pytest.mark.parametrize(
    ("refusal", "told", "attempts"),
    [
        (SyscallError(Errno.EPERM, "no"), ("PermissionDeniedError", 403, "permission_denied"), 1),
        (
            SyscallError(Errno.EDQUOT, "x", Exceeded("requests_per_minute", 1.0, 0.01)),
            ("RateLimitError", 429, "rate_limit_exceeded"),
            2,
        ),
        (SyscallError(Errno.EAGAIN, "full"), ("InternalServerError", 503, "overloaded"), 2),
    ],
)
def test_refusals_of_the_kernel(
    node: Node, kernel: KernelThread, refusal: SyscallError, told: tuple[str, int, str], attempts: int
) -> None:
    """What may pass is tried again; what cannot is not."""
    kernel.kernel.refusals[Spawn] = refusal
    refused = node.tell("refused", fields={}, retries=1)
    assert tuple(refused[key] for key in ("class", "status", "code")) == told
    assert refused["attempts"] == attempts


def test_wrong_key_large_body_and_nobody_there(node: Node, tmp_path: Path) -> None:
    """The classes of what happens before a request is looked at."""
    with (
        KernelThread(tmp_path / "kernel", {"good": "tester"}) as kernel,
        running_gateway(kernel, tmp_path / "g", "--max-body-bytes", "10000", wait=False) as gateway,
    ):
        kernel.wait_until(lambda: gateway.get("/health").status_code == 200)
        wrong = node.tell("refused", fields={}, apiKey="bad", baseURL=gateway.base_url)
        assert (wrong["class"], wrong["code"]) == ("AuthenticationError", "invalid_api_key")
        large = {"user": "x" * 20_000}
        refused = node.tell("refused", fields=large, apiKey="good", baseURL=gateway.base_url)
        assert (refused["class"], refused["code"]) == ("APIError", "payload_too_large")
    nobody = node.tell("refused", fields={}, baseURL=gateway.base_url)
    assert nobody["class"] == "APIConnectionError"
