"""Tools and thoughts through the gateway: what clients send, and what they get, whole and streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from syscalls.process import ExitStatus
from syscalls.sampling import TokenLogprobs
from tests.gateway.harness import Gateway, KernelThread, events_of, hello, running_gateway, says
from tests.gateway.test_gateway_errors import check_error
from tests.scripted_kernel import (
    CHAT_TEMPLATE,
    END,
    STOPPED_BY_MODEL,
    VOCAB_SIZE,
    ScriptedProcess,
    make_model,
    read_tokens,
    write_model_folder,
)

CHAT = "/v1/chat/completions"
TOOL_CALLS = VOCAB_SIZE  # a special token of the model "mistral"

# Small templates with what tells the formats apart.
QWEN = (
    "{% if tools %}<|system|>{{ tools | tojson }}<tool_call></tool_call><|end|>{% endif %}"
    "{% for m in messages %}<|{{ 'user' if m.role == 'tool' else m.role }}|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function.arguments | tojson }}</tool_call>"
    "{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if open %}<think>\n{% endif %}{% endif %}"
)
MISTRAL = (
    "{{ tools or '' }}"
    "{% for m in messages %}{% if m.tool_call_id and m.tool_call_id | length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    "<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[TOOL_CALLS]{{ call.id }}{% endfor %}"
    "{{ m.tool_call_id or '' }}<|end|>{% endfor %}"
    "<|assistant|>{{ documents or '' }}"
)
# Writes tools in a format that is not among ours.
OTHER = "{% for t in tools or [] %}<odd>{{ t }}</odd>{% endfor %}" + CHAT_TEMPLATE
LLAMA = "{{ tools }}<|python_tag|>{% for m in messages %}<|start_header_id|>{{ m.content }}{% endfor %}"
PLAIN = "plain"  # the kernel's own model, whose template knows no tools


@pytest.fixture(scope="module")
def model_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelThread]:
    """A scripted kernel with a model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    with KernelThread(tmp_path_factory.mktemp("kernel")) as kernel:
        for name, template in (("qwen", QWEN), ("mistral", MISTRAL), ("llama", LLAMA), ("other", OTHER)):
            special = ("[TOOL_CALLS]",) if name == "mistral" else ()
            path = write_model_folder(folder / name, template=template, more_special_tokens=special)
            model = msgspec.structs.replace(make_model(path, name), vocab_size=VOCAB_SIZE + len(special))
            kernel.kernel.models.append(model)
        own = msgspec.structs.replace(kernel.kernel.models[0], name=PLAIN)
        kernel.kernel.models[0] = own
        yield kernel


@pytest.fixture(scope="module")
def model_gateway(model_kernel: KernelThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway before it, as it comes."""
    with running_gateway(model_kernel, tmp_path_factory.mktemp("gateway")) as gateway:
        yield gateway


@pytest.fixture
def kernel(model_kernel: KernelThread) -> Iterator[KernelThread]:
    """The kernel, with no process left at the end."""
    model_kernel.reset()
    yield model_kernel
    model_kernel.wait_until(lambda: not model_kernel.kernel.processes)


@pytest.fixture
def gateway(kernel: KernelThread, model_gateway: Gateway) -> Gateway:
    """The gateway."""
    return model_gateway


def function(name: str = "get_weather", **more: Any) -> dict[str, Any]:
    """A tool."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "description": None, "parameters": schema, **more}}


def collect(events: list[Any]) -> dict[str, Any]:
    """Put a stream's one choice together, checking the order of the contract."""
    rows = [event["choices"][0] for event in events if event["choices"]]
    assert rows[0]["delta"] == {"role": "assistant", "content": ""}
    assert rows[-1]["delta"] == {}
    assert [row["finish_reason"] for row in rows[:-1]] == [None] * (len(rows) - 1)
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    calls: list[dict[str, Any]] = []
    for row in rows[1:-1]:
        delta = row["delta"]
        assert delta
        assert "role" not in delta
        for name in ("content", "reasoning", "reasoning_content"):
            if name in delta:
                assert delta[name]
                message[name] = message.get(name, "") + delta[name]
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                assert set(part) == {"index", "id", "type", "function"}
                assert part["function"]["arguments"] == ""
                calls.append({key: value for key, value in part.items() if key != "index"})
            else:
                assert set(part) == {"index", "function"}
                assert part["index"] == len(calls) - 1
                calls[-1]["function"]["arguments"] += part["function"]["arguments"]
    if calls:
        message["tool_calls"] = calls
        message["content"] = message["content"] or None
    return {"message": message, "finish_reason": rows[-1]["finish_reason"]}


def ask(gateway: Gateway, **fields: Any) -> dict[str, Any]:
    """Return the one choice of an answer, with which its stream must agree, ids aside."""
    response = gateway.post(CHAT, hello(**fields))
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    streamed = collect(events_of(gateway.post(CHAT, hello(**fields, stream=True))))
    ids = set()
    for message in (choice["message"], streamed["message"]):
        for call in message.get("tool_calls", ()):
            assert call["id"].startswith("call_")
            ids.add(call.pop("id"))
            json.loads(call["function"]["arguments"])
    assert len(ids) == 2 * len(choice["message"].get("tool_calls", ()))
    assert (streamed["message"], streamed["finish_reason"]) == (choice["message"], choice["finish_reason"])
    return dict(choice)


def call(name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    """A call as an answer has it."""
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def written(key: str = "arguments", name: str = "get_weather", **arguments: Any) -> str:
    """A call as a model writes it."""
    return json.dumps({"name": name, key: arguments})


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("qwen", ("<tool_call>\n", written(city="Oslo"), "\n</tool_call>")),
        ("llama", (written("parameters", city="Oslo"),)),
        ("mistral", (TOOL_CALLS, "[", written(city="Oslo"), "]")),
        ("mistral", (TOOL_CALLS, 'get_weather{"city": "Oslo"}')),
        (PLAIN, (written(city="Oslo"),)),
        ("other", (written(city="Oslo"),)),
    ],
)
def test_one_call(gateway: Gateway, kernel: KernelThread, model: str, parts: tuple[str | int, ...]) -> None:
    """A call in the model's own format, token by token, is a call for the client and no text."""
    kernel.program = says(*parts)
    choice = ask(gateway, model=model, tools=[function()])
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [call(city="Oslo")],
    }
    assert choice["finish_reason"] == "tool_calls"


def test_two_calls_after_text(gateway: Gateway, kernel: KernelThread) -> None:
    """Text before the calls stays; the calls are numbered."""
    oslo, rome = written(city="Oslo"), written(city="Rome")
    kernel.program = says(f"Looking.\n<tool_call>{oslo}</tool_call>\n<tool_call>{rome}</tool_call>")
    choice = ask(gateway, model="qwen", tools=[function()])
    assert choice["message"]["content"] == "Looking."
    assert choice["message"]["tool_calls"] == [call(city="Oslo"), call(city="Rome")]


def test_at_most_one_call(gateway: Gateway, kernel: KernelThread) -> None:
    """Without parallel calls the answer ends with the first, and so does the process."""

    async def program(process: ScriptedProcess) -> ExitStatus:
        while True:
            await process.say(f"<tool_call>{written(city='Oslo')}</tool_call>")

    kernel.program = program
    choice = ask(gateway, model="qwen", tools=[function()], parallel_tool_calls=False, max_tokens=1000)
    assert choice["message"]["tool_calls"] == [call(city="Oslo")]
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("text", ["<tool_call>{oops}</tool_call>", "no call", "<tool_call>" + written()[:-3]])
def test_what_is_no_call_is_content(gateway: Gateway, kernel: KernelThread, text: str) -> None:
    """Text that cannot be parsed comes back as it is, without an error."""
    kernel.program = says(text)
    choice = ask(gateway, model="qwen", tools=[function()])
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop"


def test_no_tools_no_parsing(gateway: Gateway, kernel: KernelThread) -> None:
    """Without tools, or with tool_choice none, the text is the client's, and the prompt has no tools."""
    text = f"<tool_call>{written()}</tool_call>"
    kernel.program = says(text)
    for fields in (
        {},
        {"tools": [function()], "tool_choice": "none"},
        {"tools": None, "tool_choice": "none"},
    ):
        assert ask(gateway, model="qwen", **fields)["message"]["content"] == text
        assert kernel.kernel.spawned[-1].prompt.startswith("<|user|>hi<|end|>")


def test_some_tools_are_allowed(gateway: Gateway, kernel: KernelThread) -> None:
    """The model is told of all, as before in the conversation; the answer's grammar has the allowed ones."""
    tools = [function(), function("get_time")]
    for mode in ("auto", "required"):
        kernel.program = says(f"<tool_call>{written(city='Oslo')}</tool_call>")
        allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "get_weather"}}]}
        choice = ask(
            gateway,
            model="qwen",
            tools=tools,
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        )
        assert choice["message"]["tool_calls"] == [call(city="Oslo")]
        assert "get_time" in kernel.kernel.spawned[-1].prompt
        grammar = kernel.kernel.spawned[-1].spawn.sampling.grammar or ""
        assert "get_weather" in grammar
        assert "get_time" not in grammar
    for wrong, code, param in (
        ({"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}, "invalid_value",
         "tool_choice.allowed_tools.tools[0].function.name"),
        ({"mode": "auto", "tools": []}, "invalid_value", "tool_choice.allowed_tools.tools"),
        ({"mode": "none", "tools": [{"type": "function", "function": {"name": "get_time"}}]}, "invalid_value",
         "tool_choice.allowed_tools.mode"),
        (None, "missing_required_parameter", "tool_choice.allowed_tools"),
    ):  # fmt: skip
        choice = {"type": "allowed_tools", "allowed_tools": wrong}
        response = gateway.post(CHAT, hello(model="qwen", tools=tools, tool_choice=choice))
        check_error(response, 400, code, param)


def test_tools_reach_the_model(gateway: Gateway, kernel: KernelThread) -> None:
    """The model's template gets the functions without what it does not know; plain models get words."""
    gateway.post(CHAT, hello(model="qwen", tools=[function(strict=False)]))
    prompt = kernel.kernel.spawned[-1].prompt
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    assert (
        f'[{{"type": "function", "function": {{"name": "get_weather", "parameters": {schema}}}}}]' in prompt
    )
    for model in (PLAIN, "other"):
        gateway.post(CHAT, hello(model=model, tools=[function()]))
        prompt = kernel.kernel.spawned[-1].prompt
        assert prompt.startswith("<|system|>These functions can be called.")
        assert schema in prompt


HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning": "They want weather.",
        "tool_calls": [
            {
                "id": "call_0123456789abcdef",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": [{"type": "text", "text": "rain"}]},
]


def test_history_of_calls(gateway: Gateway, kernel: KernelThread) -> None:
    """Calls and results of earlier turns reach every kind of template."""
    for model, expected in (
        (
            "qwen",
            '<think>They want weather.</think><tool_call>{"city": "Oslo"}</tool_call><|end|><|user|>rain',
        ),
        (
            PLAIN,
            '<|assistant|>{"name": "get_weather", "arguments": {"city": "Oslo"}}<|end|>'
            "<|user|>Result of call_0123456789abcdef: rain<|end|>",
        ),
    ):
        response = gateway.post(CHAT, {"model": model, "messages": HISTORY, "tools": [function()]})
        assert response.status_code == 200, response.text
        assert expected in kernel.kernel.spawned[-1].prompt
    response = gateway.post(CHAT, {"model": "mistral", "messages": HISTORY, "tools": [function()]})
    assert response.status_code == 200, response.text  # our ids are longer than this template allows
    tokens = kernel.kernel.spawned[-1].spawn.prompt
    text = read_tokens([token for token in tokens if token != TOOL_CALLS])
    ids = re.search(r"<\|assistant\|>(\w{9})<\|end\|><\|user\|>rain(\w{9})<", text)
    assert ids is not None
    assert ids[1] == ids[2]


def test_documents_reach_a_template_that_has_a_place(gateway: Gateway, kernel: KernelThread) -> None:
    """The template writes them; other models refuse (in the table of errors)."""
    gateway.post(CHAT, hello(model="mistral", documents=[{"title": "T", "text": "of rain"}]))
    assert "of rain" in kernel.kernel.spawned[-1].prompt


def test_thought_is_told_apart(gateway: Gateway, kernel: KernelThread) -> None:
    """The thought comes under both names, is not searched for stop strings, and is counted."""
    kernel.program = says("<think>\nstop? ", "no</think>\n\n", "Yes, stop now.")
    choice = ask(gateway, model="qwen", stop="stop")
    assert choice["message"] == {
        "role": "assistant",
        "content": "Yes, ",
        "reasoning": "stop? no",
        "reasoning_content": "stop? no",
    }
    assert choice["stop_reason"] == "stop"
    usage = gateway.post(CHAT, hello(model="qwen")).json()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("<think>\nstop? no</think>")}
    assert "completion_tokens_details" not in gateway.post(CHAT, hello(model=PLAIN)).json()["usage"]


def test_thought_that_the_prompt_has_opened(gateway: Gateway, kernel: KernelThread) -> None:
    """When the template opens the thought, the answer begins inside it; cut there, it has no content."""
    kernel.program = says("because</think>so")
    fields = {"model": "qwen", "chat_template_kwargs": {"open": True}}
    message = ask(gateway, **fields)["message"]
    assert (message["reasoning"], message["content"]) == ("because", "so")
    kernel.program = says("because", end=ExitStatus("length"))
    choice = ask(gateway, **fields)
    assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("because", "")
    assert choice["finish_reason"] == "length"


def test_thought_before_a_call(gateway: Gateway, kernel: KernelThread) -> None:
    """A call that is only thought of is none."""
    mark = f"<tool_call>{written(city='Rome')}</tool_call>"
    kernel.program = says(f"<think>maybe {mark}</think>\n{mark}")
    message = ask(gateway, model="qwen", tools=[function()])["message"]
    assert message["reasoning_content"] == f"maybe {mark}"
    assert message["tool_calls"] == [call(city="Rome")]


def test_thoughts_may_be_left_out(gateway: Gateway, kernel: KernelThread) -> None:
    """include_reasoning: false drops the thought, but it is no content either."""
    kernel.program = says("<think>hm</think>so")
    assert ask(gateway, model="qwen", include_reasoning=False)["message"] == {
        "role": "assistant",
        "content": "so",
    }


def test_every_token_has_its_logprobs_once(gateway: Gateway, kernel: KernelThread) -> None:
    """Of thoughts and calls too: the entries of all chunks are the tokens, in order."""
    text = f"<think>a</think>b<tool_call>{written()}</tool_call>"

    async def program(process: ScriptedProcess) -> ExitStatus:
        tokens = text.encode()
        await process.emit(*tokens, logprobs=tuple(TokenLogprobs(-1.0) for _ in tokens))
        await process.emit(END, logprobs=(TokenLogprobs(-2.0),))
        return STOPPED_BY_MODEL

    kernel.program = program
    body = hello(model="qwen", tools=[function()], logprobs=True, return_token_ids=True)
    whole = gateway.post(CHAT, body).json()["choices"][0]
    assert "".join(row["token"] for row in whole["logprobs"]["content"]) == text
    rows = [e["choices"][0] for e in events_of(gateway.post(CHAT, {**body, "stream": True}))]
    told = [entry["token"] for row in rows if row["logprobs"] for entry in row["logprobs"]["content"]]
    assert "".join(told) == text
    assert [token for row in rows for token in row.get("token_ids", ())] == whole["token_ids"]


def test_server_options(kernel: KernelThread, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Formats and field names can be set; templates of requests render in a process with limits."""
    options = ["--tool-parser", "hermes", "--reasoning-parser", "think", "--reasoning-field", "reasoning"]
    with running_gateway(
        kernel, tmp_path_factory.mktemp("gateway"), *options, "--allow-chat-template"
    ) as gateway:
        kernel.program = says(f"<think>hm</think><tool_call>{written(city='Oslo')}</tool_call>")
        message = ask(gateway, model=PLAIN, tools=[function()])["message"]
        assert message == {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [call(city="Oslo")],
        }
        own = "{% for m in messages %}{{ m.content }}!{% endfor %}"
        response = gateway.post(CHAT, hello(model=PLAIN, chat_template=own))
        assert response.status_code == 200, response.text
        assert kernel.kernel.spawned[-1].prompt.startswith("hi!<think>")
        refusals = {
            "{{ raise_exception('no') }}": "The chat template refused: no.",
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "2 seconds",
            "{{ 'x' * 9999999999 }}": "MiB",
            "x" * 70000: "the limit is 65536",
            "{{ ''.__class__.__mro__ }}": "refused",
        }
        for template, words in refusals.items():
            response = gateway.post(CHAT, hello(model=PLAIN, chat_template=template))
            assert response.status_code == 400
            assert words in response.json()["error"]["message"]
        assert gateway.get("/health").status_code == 200
