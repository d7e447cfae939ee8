"""Log-probabilities of responses: those of the text, whole, streamed, stored and written again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai import OpenAI
from openai.types.responses import ResponseTextDeltaEvent, ResponseTextDoneEvent

from shell.gateway.choice import Choice
from shell.gateway.logprobs import chat_logprobs
from shell.gateway.parsers.hermes import HermesParser
from shell.gateway.reader import Reading
from shell.gateway.response_events import ResponseEvents
from syscalls.process import ExitStatus, Output
from syscalls.sampling import TokenLogprobs
from syscalls.text.tokenizer import TextModel
from tests.gateway.harness import Gateway, KernelThread, running_gateway, say_scored
from tests.gateway.test_gateway_responses import check_events, make_record
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess, write_model_folder

INCLUDE: list[Any] = ["message.output_text.logprobs"]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """A tokenizer whose tokens are bytes."""
    return TextModel.open(write_model_folder(tmp_path_factory.mktemp("model")))


texts = st.text(alphabet='ab <{"n🙂é', max_size=8)


@settings(max_examples=150)
@example(thought=None, pieces=[CALL, "<<"], has_tools=True, num_read=1)
@given(
    thought=st.none() | texts,
    pieces=st.lists(texts | st.just(CALL), max_size=5),
    has_tools=st.booleans(),
    num_read=st.integers(1, 90),
)
def test_they_spell_the_text(
    text_model: TextModel, thought: str | None, pieces: list[str], has_tools: bool, num_read: int
) -> None:
    """Tokens are bytes: those told are the bytes of the text, in events, items and ends, read as you like."""
    said = ("" if thought is None else f"<think>{thought}</think>") + "".join(pieces)
    reading = Reading(
        reasoning_marks=("<think>", "</think>"),
        tool_parser=HermesParser if has_tools else None,
        function_names=frozenset({"f"}),
    )
    choice = Choice(
        index=0, pid=1, decoder=text_model.decoder(continues=True), reader=reading.open((), False)
    )
    record = make_record()
    writer = ResponseEvents(record, lambda entries: list(chat_logprobs(text_model, entries, 0)["content"]))
    writer.begin()
    tokens = said.encode()
    reads = [tuple(tokens[at : at + num_read]) for at in range(0, len(tokens), num_read)]
    outputs = [Output(0, read, (TokenLogprobs(-1.0),) * len(read)) for read in reads]
    for output in (*outputs, Output(0, (), end=ExitStatus("stop"))):
        writer.feed(choice.feed(output), choice.reader)
    record.status = "completed"
    writer.finish()
    events = json.loads(json.dumps(writer.events))
    check_events(events)
    streamed: list[Any] = []
    for event in events:
        kind = event["type"].removeprefix("response.output_text.")
        if kind == "delta":
            streamed += event["logprobs"]
        elif kind == "done":
            assert event["logprobs"] == streamed
            streamed = []
    for item in events[-1]["response"]["output"]:
        if item["type"] == "message":
            (part,) = item["content"]
            assert bytes(byte for row in part["logprobs"] for byte in row["bytes"]) == part["text"].encode()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[KernelThread]:
    """A kernel whose model says héllo, with scores."""
    with KernelThread(tmp_path / "kernel") as kernel:
        kernel.program = say_scored("héllo")
        yield kernel


def open_client(gateway: Gateway) -> OpenAI:
    """A client that does not retry."""
    return OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0)


def test_whole_streamed_and_stored(kernel: KernelThread, tmp_path: Path) -> None:
    """The official client's types hold them; the next gateway writes the same events from what is stored."""
    asked: dict[str, Any] = {"model": "scripted", "input": "hi", "include": INCLUDE, "top_logprobs": 1}
    with running_gateway(kernel, tmp_path / "one") as gateway, open_client(gateway) as client:
        whole = client.responses.create(**asked)
        assert kernel.kernel.spawned[-1].spawn.sampling.logprobs == 1
        assert whole.top_logprobs == 1
        (part,) = whole.output[0].content
        assert bytes(byte for row in part.logprobs for byte in row.bytes) == "héllo".encode()
        first = part.logprobs[0]
        assert (first.token, first.logprob, first.bytes) == ("h", -0.5, [104])
        assert [top.to_dict() for top in first.top_logprobs] == [
            {"token": "h", "bytes": [104], "logprob": -0.5}
        ]
        events = list(client.responses.create(**asked, stream=True))
        check_events([event.to_dict() for event in events])
        deltas = [event for event in events if isinstance(event, ResponseTextDeltaEvent)]
        (done,) = [event for event in events if isinstance(event, ResponseTextDoneEvent)]
        rows = [row.to_dict() for delta in deltas for row in delta.logprobs]
        assert [row.to_dict() for row in done.logprobs] == rows
        assert len(deltas[1].logprobs) == 2  # the bytes of é
        assert rows[0] == {
            "token": "h", "logprob": -0.5, "top_logprobs": [{"token": "h", "logprob": -0.5}]
        }  # fmt: skip
        final = events[-1].response
        assert client.responses.retrieve(final.id).to_dict() == final.to_dict()
        plain = client.responses.create(model="scripted", input="hi")
        assert plain.output[0].content[0].logprobs == []
        assert kernel.kernel.spawned[-1].spawn.sampling.logprobs is None
        none_but_itself = client.responses.create(**{**asked, "top_logprobs": 0, "store": False})
        assert none_but_itself.output[0].content[0].logprobs[0].top_logprobs == []
    with running_gateway(kernel, tmp_path / "two") as gateway, open_client(gateway) as client:
        again = client.responses.retrieve(final.id, stream=True)
        assert [event.to_dict() for event in again] == [event.to_dict() for event in events]
        assert client.responses.retrieve(whole.id).to_dict() == whole.to_dict()
        for wanted in (whole.id, final.id, plain.id):
            client.responses.delete(wanted)
        kernel.wait_until(lambda: not kernel.kernel.processes)


def test_one_in_the_making_is_followed_again(kernel: KernelThread, tmp_path: Path) -> None:
    """What the kernel keeps of the tokens before is told to the next gateway, too."""
    middle = kernel.make_event()
    score = TokenLogprobs(-0.25, (97,), (-0.25,))

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.emit(*b"ab", logprobs=(score, score))
        await middle.wait()
        await process.emit(*b"cd", END, logprobs=(score,) * 3)
        return STOPPED_BY_MODEL

    kernel.program = program
    asked: dict[str, Any] = {"model": "scripted", "input": "hi", "include": INCLUDE, "background": True}
    with running_gateway(kernel, tmp_path / "one") as gateway:
        with open_client(gateway) as client:
            wanted = client.responses.create(**asked).id
        kernel.wait_until(lambda: kernel.kernel.spawned and len(kernel.kernel.spawned[-1].logprobs) == 2)
        gateway.process.kill()
        gateway.process.wait()
    with running_gateway(kernel, tmp_path / "two") as gateway, open_client(gateway) as client:
        kernel.call(middle.set)
        events = list(client.responses.retrieve(wanted, stream=True))
        told = [row.token for e in events if isinstance(e, ResponseTextDeltaEvent) for row in e.logprobs]
        assert told == ["a", "b", "c", "d"]
        (part,) = client.responses.retrieve(wanted).output[0].content
        assert [row.token for row in part.logprobs] == told
        client.responses.delete(wanted)
        kernel.wait_until(lambda: not kernel.kernel.processes)
