"""Programs for Node that are not OpenAI's: the AI SDK by each of its ways, and Continue's adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    running_gateway,
    say_forever,
    says,
)
from tests.gateway.node_client import Node, running_node
from tests.scripted_kernel import read_tokens

CALL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
PLACE = {"city": "Oslo", "degrees": 7}
CHATS = ["compatible", "chat", "responses"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelThread, Gateway]]:
    """A kernel and a gateway for this module: these clients store what they are answered."""
    folder = tmp_path_factory.mktemp("node")
    with KernelThread(folder / "kernel") as kernel:
        with running_gateway(kernel, folder / "gateway") as gateway:
            yield kernel, gateway


@pytest.fixture
def kernel(place: tuple[KernelThread, Gateway]) -> Iterator[KernelThread]:
    """The kernel, saying hello; when what was stored is deleted, it has no process left."""
    kernel, gateway = place
    kernel.reset()
    yield kernel
    for path in (kernel.folder / "llmos.sock.responses").glob("resp_*.json"):
        url = f"{gateway.base_url}/responses/{path.stem}"
        assert httpx.delete(url, timeout=PATIENCE_SECONDS).status_code == 200
    kernel.wait_until(lambda: not kernel.kernel.processes)


@pytest.fixture(scope="module")
def running_ai(place: tuple[KernelThread, Gateway]) -> Iterator[Node]:
    """The AI SDK."""
    with running_node(place[1].base_url, "ai.mjs", "ai") as node:
        yield node


@pytest.fixture
def ai(running_ai: Node, kernel: KernelThread) -> Node:
    """The AI SDK, before a kernel that sees what it leaves behind."""
    return running_ai


@pytest.fixture(scope="module")
def running_editor(place: tuple[KernelThread, Gateway]) -> Iterator[Node]:
    """Continue's adapter."""
    with running_node(place[1].base_url, "continue.mjs", "@continuedev/openai-adapters") as node:
        yield node


@pytest.fixture
def editor(running_editor: Node, kernel: KernelThread) -> Node:
    """Continue's adapter, before a kernel that sees what it leaves behind."""
    return running_editor


@pytest.mark.parametrize("way", [*CHATS, "compatible text", "text"])
def test_texts(ai: Node, kernel: KernelThread, way: str) -> None:
    """Whole and streamed, with the usage and the end in the SDK's words."""
    kernel.program = says("It ", "rains.")
    told = ai.tell("text", way=way)
    assert (told["texts"], told["ends"]) == (["It rains."] * 2, ["stop"] * 2)
    prompts = [len(process.spawn.prompt) for process in kernel.kernel.spawned]
    assert told["usages"] == [[length, 10] for length in prompts]


@pytest.mark.parametrize("way", CHATS)
def test_objects(ai: Node, kernel: KernelThread, way: str) -> None:
    """A zod schema is sent as the process's grammar, and the answer is parsed by it."""
    kernel.program = says(json.dumps(PLACE))
    assert ai.tell("object", way=way) == [PLACE, PLACE]
    for process in kernel.kernel.spawned:
        assert "degrees" in (process.spawn.sampling.grammar or "")


@pytest.mark.parametrize("way", CHATS)
def test_tools(ai: Node, kernel: KernelThread, way: str) -> None:
    """Required, and named in a stream, whose parts are those of a call."""
    kernel.program = says(CALL)
    told = ai.tell("tools", way=way)
    assert told["calls"] == [[["weather", {"city": "Oslo"}]]] * 2
    assert [
        kind for kind in told["kinds"] if kind in ("tool-input-start", "tool-input-end", "tool-call")
    ] == [
        "tool-input-start",
        "tool-input-end",
        "tool-call",
    ]


@pytest.mark.parametrize("way", CHATS)
def test_turns(ai: Node, kernel: KernelThread, way: str) -> None:
    """A second turn has the first: of a stored response it is sent by the id of its item."""
    assert ai.tell("turns", way=way)["texts"] == ["hello", "hello"]
    assert read_tokens(kernel.kernel.spawned[-1].spawn.prompt) == (
        "<|user|>Weather?<|end|><|assistant|>hello<|end|><|user|>And?<|end|><|assistant|>"
    )


def test_embeddings(ai: Node) -> None:
    """By both providers the same vectors, in order."""
    one, other = ai.tell("embeddings")
    assert one == other
    assert one[0] != one[1]


@pytest.mark.parametrize("way", CHATS)
def test_aborts_leave_nothing_behind(ai: Node, kernel: KernelThread, way: str) -> None:
    """A signal in the middle of a stream ends the process."""
    kernel.program = say_forever
    assert ai.tell("abort", way=way) >= 3  # what was on its way when it was given is still told
    kernel.wait_until(lambda: not kernel.kernel.processes)


@pytest.mark.parametrize("way", ["compatible", "responses"])
def test_refusals(ai: Node, way: str) -> None:
    """The SDK reads the error and its code."""
    assert ai.tell("refused", way=way, model="no-such") == ["AI_APICallError", 404, "model_not_found"]


def test_continue_chats_and_completes(editor: Node, kernel: KernelThread) -> None:
    """Whole and streamed, by each of the routes that an editor uses."""
    kernel.program = says("It ", "rains.")
    told = editor.tell("chat")
    assert told["texts"] == ["It rains."] * 2
    assert told["usage"]["completion_tokens"] == 10
    assert editor.tell("completions") == ["It rains."] * 2
    assert editor.tell("responses")["texts"] == ["It rains."] * 2


def test_continue_calls_tools(editor: Node, kernel: KernelThread) -> None:
    """The parts of a call add up."""
    kernel.program = says(CALL)
    told = editor.tell("tools")
    assert (told["name"], json.loads(told["arguments"])) == ("weather", {"city": "Oslo"})


def test_continue_lists_and_embeds(editor: Node) -> None:
    """Models by their ids, a vector for each text."""
    told = editor.tell("rest")
    assert told["models"] == ["scripted"]
    assert len(told["vectors"]) == 2
    assert told["vectors"][0] == told["vectors"][1] > 1
