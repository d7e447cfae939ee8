"""/v1/responses with the official client: whole, streamed, in the background, continued, after a kill -9."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, OpenAI

from shell.gateway.choice import Delta
from shell.gateway.errors import ApiError
from shell.gateway.parsers.events import CallArguments, CallBegun, CallEnded, Content, Event, Reasoning
from shell.gateway.reader import PLAIN_TEXT
from shell.gateway.response_events import ResponseEvents
from shell.gateway.response_input import LOGPROBS
from shell.gateway.response_record import Record, ResponseStore
from syscalls.process import ExitStatus, Fork, Spawn, Write
from tests.gateway.harness import (
    PATIENCE_SECONDS,
    Gateway,
    KernelThread,
    http_request,
    running_gateway,
    say_forever,
    says,
)
from tests.gateway.test_gateway_errors import check_error
from tests.scripted_kernel import END, STOPPED_BY_MODEL, ScriptedProcess, read_tokens

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[KernelThread, Gateway]]:
    """A kernel and a gateway for this module: stored responses keep processes."""
    folder = tmp_path_factory.mktemp("responses")
    with KernelThread(folder / "kernel") as kernel:
        with running_gateway(kernel, folder / "gateway") as gateway:
            yield kernel, gateway


@pytest.fixture
def kernel(place: tuple[KernelThread, Gateway]) -> KernelThread:
    """The module's kernel, saying hello."""
    place[0].reset()
    return place[0]


@pytest.fixture
def client(place: tuple[KernelThread, Gateway], kernel: KernelThread) -> Iterator[OpenAI]:
    """A client that does not retry; when it is done, deleting what it stored leaves no process."""
    with OpenAI(base_url=place[1].base_url, api_key="any", max_retries=0) as client:
        yield client
        for path in (kernel.folder / "llmos.sock.responses").glob("*.json"):
            client.responses.delete(path.stem)
    kernel.wait_until_empty()


def check_events(events: list[Any]) -> None:
    """Numbers rise by one, items and parts open before they close, and texts add up."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    final = events[-1]["response"]
    assert events[-1]["type"] == f"response.{final['status']}"
    open_item, text = None, ""
    done = []
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert open_item is None
            open_item, text = event["item"]["id"], ""
            assert event["output_index"] == len(done)
        elif kind == "output_item.done":
            assert event["item"]["id"] == open_item
            open_item = None
            done.append(event["item"])
        else:
            assert event["item_id"] == open_item
            text += event.get("delta", "")
            if kind.endswith("_text.done"):
                assert event["text"] == text
            if kind.endswith("arguments.done"):
                assert event["arguments"] == text
    assert open_item is None
    assert done == final["output"]


def make_record(**fields: Any) -> Record:
    """A record to write events of."""
    return Record(
        id=f"resp_{'0' * 32}", tenant="t", created_at=1, body={}, messages=[], echo={}, model="m",
        input_items=[], prompt_text="", prompt=[1], **fields,
    )  # fmt: skip


PARTS = st.one_of(
    st.builds(Content, st.text(min_size=1, max_size=4)),
    st.builds(Reasoning, st.text(min_size=1, max_size=4)),
)
CALLS = st.lists(st.text(max_size=3), max_size=3).map(
    lambda pieces: [CallBegun("f"), *map(CallArguments, pieces), CallEnded()]
)


@given(groups=st.lists(st.one_of(PARTS.map(lambda part: [part]), CALLS), max_size=8), data=st.data())
def test_events_of_any_parts(groups: list[list[Event]], data: st.DataObject) -> None:
    """Whatever the model writes and wherever it ends, the stream is well formed however it was cut."""
    parts = [part for group in groups for part in group]
    parts = parts[: data.draw(st.integers(0, len(parts)))]
    status = data.draw(st.sampled_from(["completed", "incomplete", "failed"]))
    found = []
    for cuts in (parts and [[part] for part in parts], [parts]):
        record = make_record()
        writer = ResponseEvents(record)
        writer.begin()
        for cut in cuts:
            writer.feed(Delta(parts=tuple(cut), entries=(), tokens=()), PLAIN_TEXT.open((), False))
        record.status = status
        writer.finish()
        events = json.loads(json.dumps(writer.events))
        check_events(events)
        found.append(events)
    assert found[0] == found[1]
    texts = "".join(part.text for part in parts if isinstance(part, Content))
    shown = [item for item in found[0][-1]["response"]["output"] if item["type"] == "message"]
    assert "".join(item["content"][0]["text"] for item in shown) == texts


def test_whole_and_streamed(client: OpenAI, kernel: KernelThread) -> None:
    """The answer, its usage, and the stream that ends in the same object."""
    whole = client.responses.create(model="scripted", input="hi", instructions="Be short.")
    assert whole.status == "completed"
    assert whole.output_text == "hello"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 6
    assert whole.usage.total_tokens == whole.usage.input_tokens + 6
    prompt = read_tokens(kernel.kernel.spawned[-1].spawn.prompt)
    assert prompt == "<|system|>Be short.<|end|><|user|>hi<|end|><|assistant|>"
    stream = client.responses.create(model="scripted", input="hi", stream=True)
    events = [event.to_dict() for event in stream]
    check_events(events)
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "hello"
    again = client.responses.retrieve(events[-1]["response"]["id"])
    assert again.to_dict() == events[-1]["response"]
    items = client.responses.input_items.list(again.id).data
    assert items[0].content[0].text == "hi"
    with client.responses.stream(model="scripted", input="hi") as helper:
        assert helper.get_final_response().output_text == "hello"


def test_items_come_in_pages(client: OpenAI, place: tuple[KernelThread, Gateway]) -> None:
    """Twenty unless said otherwise; the client asks for the rest. What cannot be is refused by name."""
    given = [{"role": "user", "content": f"number {number}"} for number in range(45)]
    made = client.responses.create(model="scripted", input=given)
    for order, expected in (("asc", given), ("desc", given[::-1])):
        for options in ({}, {"limit": 7}, {"limit": 100}):
            items = list(client.responses.input_items.list(made.id, order=order, **options))
            assert [item.content[0].text for item in items] == [each["content"] for each in expected]
    _, gateway = place
    page = gateway.get(f"{PATH}/{made.id}/input_items?limit=3&x=1")
    assert page.headers["x-llmos-ignored-params"] == "x"
    assert (len(page.json()["data"]), page.json()["has_more"]) == (3, True)
    for query, code, param in (
        ("limit=0", "invalid_value", "limit"),
        ("limit=101", "invalid_value", "limit"),
        ("limit=many", "invalid_type", "limit"),
        ("order=odd", "invalid_value", "order"),
        ("after=nobody", "invalid_value", "after"),
        ("before=nobody", "unsupported_parameter", "before"),
    ):
        check_error(gateway.get(f"{PATH}/{made.id}/input_items?{query}"), 400, code, param)


def test_async_client(client: OpenAI) -> None:
    """The async client streams, too."""

    async def main() -> str:
        async with AsyncOpenAI(base_url=client.base_url, api_key="any", max_retries=0) as other:
            text = ""
            async for event in await other.responses.create(model="scripted", input="hi", stream=True):
                if event.type == "response.output_text.delta":
                    text += event.delta
            return text

    assert asyncio.run(main()) == "hello"


def test_a_limit_is_told(client: OpenAI) -> None:
    """`incomplete`, with the reason."""
    cut = client.responses.create(model="scripted", input="hi", max_output_tokens=3)
    assert (cut.status, cut.output_text) == ("incomplete", "hel")
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_two_responses_continue_one(client: OpenAI, kernel: KernelThread) -> None:
    """Each in a fork of the first one's process, which is given only what is new."""
    first = client.responses.create(model="scripted", input="hi")
    for question in ("why", "how"):
        kernel.kernel.calls.clear()
        kernel.program = says(f"because {question}")
        answer = client.responses.create(
            model="scripted", input=question, previous_response_id=first.id, max_output_tokens=50
        )
        assert answer.output_text == f"because {question}"
        kinds = [type(call) for call in kernel.kernel.calls]
        assert Fork in kinds
        assert Spawn not in kinds
        (written,) = [call for call in kernel.kernel.calls if isinstance(call, Write)]
        assert read_tokens(written.tokens) == f"<|user|>{question}<|end|><|assistant|>"
        assert answer.usage is not None
        assert answer.usage.input_tokens_details.cached_tokens == first.usage.total_tokens - 1
        assert client.responses.retrieve(answer.id).output_text == f"because {question}"
    assert client.responses.retrieve(first.id).output_text == "hello"


@pytest.mark.parametrize("way", ["sampling", "gone"])
def test_without_the_process_the_conversation_is_the_same(
    client: OpenAI, kernel: KernelThread, way: str
) -> None:
    """Another temperature, or a process that is gone: a new one gets the same tokens."""
    first = client.responses.create(model="scripted", input="hi")
    if way == "gone":
        pid = kernel.kernel.spawned[-1].pid
        kernel.call(lambda: kernel.kernel.processes.pop(pid))
    kernel.kernel.calls.clear()
    more: dict[str, Any] = {"temperature": 0.5} if way == "sampling" else {}
    client.responses.create(model="scripted", input="why", previous_response_id=first.id, **more)
    (spawn,) = [call for call in kernel.kernel.calls if isinstance(call, Spawn)]
    assert read_tokens(spawn.prompt) == (
        "<|user|>hi<|end|><|assistant|>hello<|end|><|user|>why<|end|><|assistant|>"
    )


def test_function_calls(client: OpenAI, kernel: KernelThread) -> None:
    """A call is an item of its own, and its result goes back as one."""
    tool = {
        "type": "function", "name": "weather", "strict": False, "description": "x",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    }  # fmt: skip
    kernel.program = says('{"name": "weather", "parameters": {"city": "Bern"}}')
    events = [
        event.to_dict()
        for event in client.responses.create(model="scripted", input="?", tools=[tool], stream=True)
    ]
    check_events(events)
    (call,) = events[-1]["response"]["output"]
    assert (call["type"], call["name"]) == ("function_call", "weather")
    assert json.loads(call["arguments"]) == {"city": "Bern"}
    kernel.program = says("sunny")
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "sun"}
    answer = client.responses.create(
        model="scripted", input=[result], tools=[tool], previous_response_id=events[-1]["response"]["id"]
    )
    assert answer.output_text == "sunny"
    assert "sun" in read_tokens(kernel.kernel.spawned[-1].tokens)


def test_items_are_named(client: OpenAI, kernel: KernelThread) -> None:
    """An item of a stored response may be sent by its id, as the AI SDK does it; a call and a text alike."""
    tool = {"type": "function", "name": "weather", "strict": False, "parameters": {"type": "object"}}
    kernel.program = says('{"name": "weather", "parameters": {"city": "Bern"}}')
    first = client.responses.create(model="scripted", input="Weather?", tools=[tool])
    (made,) = first.output
    kernel.program = says("sunny")
    turn: list[Any] = [
        {"role": "user", "content": "Weather?"},
        {"type": "item_reference", "id": made.id},
        {"type": "function_call_output", "call_id": made.call_id, "output": "sun"},
    ]
    second = client.responses.create(model="scripted", input=turn, tools=[tool])
    said = kernel.kernel.spawned[-1].prompt
    assert said.index("Weather?") < said.index("Bern") < said.index("sun<|end|>")
    (text,) = second.output
    client.responses.create(model="scripted", input=[{"id": text.id}, {"role": "user", "content": "And?"}])
    prompt = read_tokens(kernel.kernel.spawned[-1].spawn.prompt)
    assert prompt == "<|assistant|>sunny<|end|><|user|>And?<|end|><|assistant|>"
    client.responses.delete(second.id)
    with pytest.raises(openai.BadRequestError, match=text.id):
        client.responses.create(model="scripted", input=[{"type": "item_reference", "id": text.id}])


def test_some_tools_are_allowed(client: OpenAI, kernel: KernelThread) -> None:
    """In the words of this API, and refused by the names that its fields have."""
    tools = [
        {"type": "function", "name": name, "strict": False, "parameters": {"type": "object"}}
        for name in ("weather", "clock")
    ]
    choice: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]}
    kernel.program = says('{"name": "clock", "parameters": {}}')
    answer = client.responses.create(model="scripted", input="?", tools=tools, tool_choice=choice)
    assert [item.name for item in answer.output] == ["clock"]
    assert answer.tool_choice.to_dict() == choice
    grammar = kernel.kernel.spawned[-1].spawn.sampling.grammar or ""
    assert "clock" in grammar
    assert "weather" not in grammar
    choice["tools"][0]["name"] = "sun"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="scripted", input="?", tools=tools, tool_choice=choice)
    assert caught.value.param == "tool_choice.tools[0].name"


def test_not_stored_leaves_nothing(client: OpenAI, kernel: KernelThread) -> None:
    """Neither a process nor a record."""
    answer = client.responses.create(model="scripted", input="hi", store=False)
    assert answer.output_text == "hello"
    kernel.wait_until(lambda: not kernel.kernel.processes)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_background_is_cancelled(client: OpenAI, kernel: KernelThread) -> None:
    """It goes on alone until it is cancelled; then its process is gone and its text stays."""
    kernel.program = say_forever
    begun = client.responses.create(model="scripted", input="hi", background=True)
    assert begun.status == "in_progress"
    kernel.wait_until(lambda: client.responses.retrieve(begun.id).output_text or kernel.kernel.processes)
    ended = client.responses.cancel(begun.id)
    assert ended.status == "cancelled"
    kernel.wait_until(lambda: not kernel.kernel.processes)
    assert client.responses.retrieve(begun.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.responses.create(model="scripted", input="on", previous_response_id=begun.id)


def test_a_client_that_hangs_up_ends_a_foreground_response(client: OpenAI, kernel: KernelThread) -> None:
    """Its process does not go on for nobody."""
    kernel.program = say_forever
    stream = client.responses.create(model="scripted", input="hi", stream=True)
    next(iter(stream))
    stream.close()
    kernel.wait_until(lambda: not kernel.kernel.processes)


def test_refusals(place: tuple[KernelThread, Gateway], kernel: KernelThread) -> None:
    """Wrong fields are named."""
    _, gateway = place
    for body, code, param in (
        ({}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"input": "x", "background": True, "store": False}, "invalid_value", "background"),
        ({"input": "x", "conversation": "c"}, "unsupported_parameter", "conversation"),
        ({"input": "x", "top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"input": "x", "include": [LOGPROBS], "top_logprobs": 21}, "invalid_value", "top_logprobs"),
        ({"input": "x", "include": ["weather"]}, "invalid_value", "include[0]"),
        ({"input": [{"type": "file"}]}, "unsupported_parameter", "input[0].type"),
        ({"input": [{"type": "item_reference"}]}, "invalid_value", "input[0].id"),
        ({"input": [{"id": f"msg_{'0' * 32}_0"}]}, "invalid_value", "input[0].id"),
        ({"input": "x", "truncation": "some"}, "invalid_value", "truncation"),
        ({"input": "x", "max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"input": [{"role": "user"}]}, "missing_required_parameter", "input[0].content"),
        (  # the index is the item's, whatever comes before it
            {"instructions": "x", "input": [{"type": "reasoning"}, {"role": "pope", "content": "x"}]},
            "invalid_value",
            "input[1].role",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c"}]},
            "missing_required_parameter",
            "input[0].name",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": 3}]},
            "invalid_type",
            "input[0].output",
        ),
    ):
        check_error(gateway.post(PATH, body), 400, code, param)
    wrong = gateway.post(PATH, {"input": "x", "text": {"format": {"type": "poem"}}})
    assert wrong.status_code == 400
    assert wrong.json()["error"]["param"].startswith("text.format")
    check_error(
        gateway.post(PATH, {"input": "x", "previous_response_id": "resp_1"}),
        400,
        "previous_response_not_found",
        "previous_response_id",
    )
    check_error(gateway.get(f"{PATH}/resp_1"), 404, "response_not_found")
    assert not kernel.kernel.processes


def open_client(gateway: Gateway) -> OpenAI:
    """A client of its own, which keeps no connection."""
    alone = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0), timeout=PATIENCE_SECONDS)
    return OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0, http_client=alone)


def test_kill_9(own_kernel: KernelThread, tmp_path: Path) -> None:
    """A background response goes on without its gateway; the next one streams the same events."""
    middle = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("first half, ")
        await middle.wait()
        await process.say("second half")
        await process.emit(END)
        return STOPPED_BY_MODEL

    own_kernel.program = program
    with running_gateway(own_kernel, tmp_path / "one") as gateway:
        with (
            open_client(gateway) as client,
            client.responses.create(model="scripted", input="hi", background=True, stream=True) as stream,
        ):
            seen: list[Any] = []
            for event in stream:
                seen.append(event.to_dict())
                if len([e for e in seen if e["type"].endswith("text.delta")]) == 12:
                    break
            gateway.process.kill()
            gateway.process.wait()
    wanted = seen[0]["response"]["id"]
    with running_gateway(own_kernel, tmp_path / "two") as gateway, open_client(gateway) as client:
        assert client.responses.retrieve(wanted).status == "in_progress"
        own_kernel.call(middle.set)
        rest = client.responses.retrieve(wanted, stream=True, starting_after=seen[-1]["sequence_number"])
        events = [*seen, *(event.to_dict() for event in rest)]
        check_events(events)
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "first half, second half"
        whole = client.responses.retrieve(wanted, stream=True)
        assert [event.to_dict() for event in whole] == events
        gateway.process.kill()
        gateway.process.wait()
    with running_gateway(own_kernel, tmp_path / "three") as gateway, open_client(gateway) as client:
        assert [event.to_dict() for event in client.responses.retrieve(wanted, stream=True)] == events
        assert client.responses.retrieve(wanted).output_text == "first half, second half"
        client.responses.delete(wanted)
        own_kernel.wait_until(lambda: not own_kernel.kernel.processes)


def read_record(kernel: KernelThread, wanted: str) -> dict[str, Any]:
    """A stored response as it lies on the disk."""
    found: dict[str, Any] = json.loads(
        (kernel.folder / "llmos.sock.responses" / f"{wanted}.json").read_text()
    )
    return found


@pytest.mark.parametrize("call", [Spawn, Fork, Write])
def test_kill_9_before_the_kernel_has_answered(own_kernel: KernelThread, tmp_path: Path, call: type) -> None:
    """The process that nobody was told of is taken up, or ended where it has no turn; none is left over."""
    kernel, first = own_kernel.kernel, None
    with running_gateway(own_kernel, tmp_path / "one") as gateway:
        if call is not Spawn:
            with open_client(gateway) as client:
                first = client.responses.create(model="scripted", input="hi").id
        own_kernel.program = says("to be continued")
        kernel.unanswered.add(call)
        with gateway.connect() as raw:
            body = {"input": "on", "background": True, "previous_response_id": first}
            raw.sendall(http_request(PATH, body))
            own_kernel.wait_until(lambda: any(isinstance(done, call) for done in kernel.calls))
            own_kernel.wait_until(lambda: len(kernel.processes) == (1 if call is Spawn else 2))
            gateway.process.kill()
            gateway.process.wait()
    kernel.unanswered.clear()
    (begun,) = [
        path.stem for path in (own_kernel.folder / "llmos.sock.responses").iterdir() if path.stem != first
    ]
    with running_gateway(own_kernel, tmp_path / "two") as gateway, open_client(gateway) as client:
        record = own_kernel.wait_until(
            lambda: (now := read_record(own_kernel, begun))["status"] != "in_progress" and now
        )
        found = client.responses.retrieve(begun)
        if call is Fork:
            assert record["status"] == found.status == "failed"
            own_kernel.wait_until(lambda: len(kernel.processes) == 1)
        else:
            assert record["status"] == found.status == "completed"
            assert found.output_text == "to be continued"
            assert record["pid"] in kernel.processes
        for wanted in filter(None, (first, begun)):
            client.responses.delete(wanted)
        own_kernel.wait_until(lambda: not kernel.processes)


@pytest.mark.parametrize("is_in_time", [True, False])
def test_drain_waits_for_the_background(own_kernel: KernelThread, tmp_path: Path, is_in_time: bool) -> None:
    """Until the shutdown timeout; what is not over then goes on, and the next gateway takes it up."""
    rest = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await process.say("first half, ")
        await rest.wait()
        await process.say("second half")
        await process.emit(END)
        return STOPPED_BY_MODEL

    own_kernel.program = program
    timeout = str(PATIENCE_SECONDS if is_in_time else 0.2)
    with running_gateway(own_kernel, tmp_path / "one", "--shutdown-timeout", timeout) as gateway:
        with open_client(gateway) as client:
            begun = client.responses.create(model="scripted", input="hi", background=True).id
        gateway.process.send_signal(signal.SIGTERM)
        if is_in_time:
            own_kernel.wait_until(lambda: gateway.post(PATH, {"input": "hi"}).status_code == 503)
            assert gateway.process.poll() is None
            own_kernel.call(rest.set)
        assert gateway.process.wait(PATIENCE_SECONDS) == 0
    expected = "completed" if is_in_time else "in_progress"
    assert read_record(own_kernel, begun)["status"] == expected
    own_kernel.call(rest.set)
    with running_gateway(own_kernel, tmp_path / "two") as gateway, open_client(gateway) as client:
        own_kernel.wait_until(lambda: read_record(own_kernel, begun)["status"] == "completed")
        assert client.responses.retrieve(begun).output_text == "first half, second half"
        client.responses.delete(begun)
        own_kernel.wait_until(lambda: not own_kernel.kernel.processes)


def test_the_store_is_bounded(own_kernel: KernelThread, tmp_path: Path) -> None:
    """The oldest that is over goes, with its process; when none is over, the newest is refused."""
    with (
        running_gateway(own_kernel, tmp_path / "one", "--max-responses", "2") as gateway,
        open_client(gateway) as client,
    ):
        made = [client.responses.create(model="scripted", input="hi").id for _ in range(3)]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(made[0])
        assert client.responses.retrieve(made[2]).output_text == "hello"
        assert len(own_kernel.kernel.processes) == 2
        own_kernel.program = say_forever
        for _ in range(2):
            client.responses.create(model="scripted", input="hi", background=True)
        response = gateway.post(PATH, {"input": "hi"})
        check_error(response, 429, "too_many_responses")
        assert len(own_kernel.kernel.processes) == 2


def test_what_if_the_disk_is_full(own_kernel: KernelThread, tmp_path: Path) -> None:
    """New ones are refused by name; one that is in the making goes on, is told, and stays readable."""
    folder = own_kernel.folder / "llmos.sock.responses"
    may_end = own_kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await may_end.wait()
        await process.say("hello")
        await process.emit(END)
        return STOPPED_BY_MODEL

    with running_gateway(own_kernel, tmp_path / "gateway") as gateway:
        with open_client(gateway) as client:
            own_kernel.program = program
            with client.responses.create(model="scripted", input="hi", stream=True) as stream:
                created = next(stream)
                shutil.rmtree(folder)  # a disk that takes nothing, without one
                own_kernel.call(may_end.set)
                *_, completed = stream
            assert completed.type == "response.completed"
            assert (
                client.responses.retrieve(created.response.id).output_text == completed.response.output_text
            )
            own_kernel.reset()
            num_processes = len(own_kernel.kernel.processes)
            for how in ({}, {"background": True}, {"extra_body": {"stream": True}}):
                with pytest.raises(
                    openai.InternalServerError, match="cannot be stored: No such file"
                ) as refused:
                    client.responses.create(model="scripted", input="hi", **how)
                assert refused.value.status_code == 507
                assert refused.value.code == "insufficient_storage"
            assert len(own_kernel.kernel.processes) == num_processes
            assert client.responses.create(model="scripted", input="hi", store=False).output_text == "hello"
            folder.mkdir()
            assert client.responses.create(model="scripted", input="hi").status == "completed"
        assert "record_not_written" in gateway.log_path.read_text()
        assert "internal_error" not in gateway.log_path.read_text()


def test_a_write_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written of a record before the disk was full is removed; an older version stays."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ResponseStore(tmp_path, 10, 100.0)
    record = make_record(status="completed")
    record.id = f"resp_{1:032x}"
    trio.run(store.enter, record)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", refuse)
    trio.run(store.save, record)
    with pytest.raises(ApiError, match="No space left"):
        trio.run(store.enter, record)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_store_after_a_crash(tmp_path: Path) -> None:
    """Drafts go, damaged files are left out, the rest is there; what is over and too old is told."""
    store = ResponseStore(tmp_path, 10, 100.0)
    store.load()
    for number in range(4):
        record = make_record(status="in_progress" if number == 1 else "completed")
        record.id, record.created_at = f"resp_{number:032x}", number * 100
        trio.run(store.save, record)
    (tmp_path / f"resp_{9:032x}.json").write_text('{"id": "resp_')
    (tmp_path / f".resp_{8:032x}").write_text("{")
    again = ResponseStore(tmp_path, 10, 100.0)
    again.load()
    assert not list(tmp_path.glob(".*"))
    assert again.get(f"resp_{3:032x}", "t").created_at == 300
    for wanted, tenant in ((f"resp_{3:032x}", "u"), (f"resp_{9:032x}", "t")):
        with pytest.raises(ApiError, match="not found"):
            again.get(wanted, tenant)
    assert [record.created_at for record in again.list_expired(350.0)] == [0, 200]


def test_what_is_given_up_while_it_is_written_stays_given_up(tmp_path: Path) -> None:
    """Its file does not come back when the disk is done."""
    record = make_record(status="completed")
    record.id = f"resp_{1:032x}"

    class SlowStore(ResponseStore):
        def _write(self, name: str, data: bytes) -> None:
            trio.from_thread.run_sync(self.remove, record)
            super()._write(name, data)

    store = SlowStore(tmp_path, 10, 100.0)
    store.load()
    trio.run(store.save, record)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ApiError, match="not found"):
        store.get(record.id, record.tenant)
