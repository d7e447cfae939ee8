"""Filling in: llama.cpp's `/infill` and the `suffix` of completions, by the tokenizer's own marks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from shell.gateway.replies.infill import InfillChunk, Infilled
from syscalls.process import ExitStatus
from tests.gateway.harness import Gateway, KernelThread, events_of, http_request, read_until, says
from tests.scripted_kernel import ScriptedProcess, make_model, write_model_folder

MARKS = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>")
PREFIX, MIDDLE, SUFFIX, PAD, REPOSITORY, FILE = range(260, 266)


@pytest.fixture
def coder(gateway: Gateway, kernel: KernelThread, tmp_path: Path) -> Iterator[str]:
    """A second model, which knows how to fill in."""
    before = kernel.kernel.models
    folder = write_model_folder(tmp_path / "coder", more_special_tokens=MARKS)
    model = msgspec.structs.replace(make_model(folder, "coder"), vocab_size=266, hash="cd" * 16)
    kernel.kernel.models = [*before, model]
    gateway.get("/v1/models")
    yield "coder"
    kernel.kernel.models = before
    gateway.get("/v1/models")


def prompt_of(kernel: KernelThread) -> list[int]:
    """Of the process spawned last."""
    return list(kernel.kernel.spawned[-1].spawn.prompt)


def test_what_is_missing(gateway: Gateway, kernel: KernelThread, coder: str) -> None:
    """The marks are where the model knows them from, and every field of the answer is there."""
    kernel.program = says("return x\n", PAD, end=ExitStatus("stop", stop_token=None))
    fields = {"model": coder, "input_prefix": "def f(x):\n", "prompt": "    ", "input_suffix": "\nf(1)\n"}
    response = gateway.post(
        "/infill", {**fields, "n_predict": 40, "cache_prompt": True, "t_max_predict_ms": 500}
    )
    assert response.status_code == 200, response.text
    assert prompt_of(kernel) == [PREFIX, *b"def f(x):\n    ", SUFFIX, *b"\nf(1)\n", MIDDLE]
    body = response.json()
    assert (body["content"], body["stop"], body["stop_type"], body["model"]) == (
        "return x\n",
        True,
        "eos",
        coder,
    )
    assert (body["tokens_predicted"], body["tokens_evaluated"]) == (10, len(prompt_of(kernel)))
    assert body["timings"]["predicted_n"] == 10
    assert (body["has_new_line"], body["truncated"], body["stopping_word"]) == (True, False, "")
    spawn = kernel.kernel.spawned[-1].spawn
    assert (spawn.max_tokens, spawn.stop_token_ids) == (40, (PAD, REPOSITORY, FILE))


def test_other_files_come_first(gateway: Gateway, kernel: KernelThread, coder: str) -> None:
    """Named, behind the marks of a project; a name that is missing is made up."""
    extra = [{"filename": "a.py", "text": "A"}, {"text": "B"}]
    fields = {"model": coder, "input_prefix": "x", "input_suffix": "y", "input_extra": extra}
    assert gateway.post("/infill", fields).status_code == 200
    assert prompt_of(kernel) == [
        REPOSITORY, *b"myproject\n", FILE, *b"a.py\nA", FILE, *b"tmp\nB", FILE, *b"filename\n",
        PREFIX, *b"x", SUFFIX, *b"y", MIDDLE,
    ]  # fmt: skip
    assert kernel.kernel.spawned[-1].spawn.max_tokens is None


@pytest.mark.parametrize(
    ("program", "more", "kind", "word", "content"),
    [
        (says("hello"), {"stop": ["ll"]}, "word", "ll", "he"),
        (says("hello"), {"n_predict": 3}, "limit", "", "hel"),
        (says("hello"), {}, "eos", "", "hello"),
    ],
)
def test_how_it_ended(
    gateway: Gateway, kernel: KernelThread, coder: str, program: Any, more: dict[str, Any], kind: str,
    word: str, content: str,
) -> None:  # fmt: skip
    """In llama.cpp's words, whole and streamed."""
    kernel.program = program
    fields = {"model": coder, "input_prefix": "a", "input_suffix": "b", **more}
    body = gateway.post("/infill", fields).json()
    msgspec.convert(body, Infilled)
    assert (body["stop_type"], body["stopping_word"], body["content"]) == (kind, word, content)
    chunks = events_of(gateway.post("/infill", {**fields, "stream": True}))
    msgspec.convert(chunks, list[InfillChunk])
    assert "".join(chunk["content"] for chunk in chunks) == content
    assert [chunk["stop"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert (chunks[-1]["stop_type"], chunks[-1]["stopping_word"]) == (kind, word)


@given(
    text=st.text(alphabet="aé語🙂\n", max_size=8),
    cuts=st.lists(st.integers(1, 3), min_size=1, max_size=40),
    stop=st.sampled_from([None, "a", "語🙂"]),
)
@settings(
    max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # the fixtures hold nothing that an example leaves behind
def test_chunks_have_every_token(
    gateway: Gateway, kernel: KernelThread, coder: str, text: str, cuts: list[int], stop: str | None
) -> None:
    """The ids of a stream's chunks are those of the whole answer, however the bytes of characters are cut."""
    data, pieces = text.encode(), []
    for size in itertools.cycle(cuts):
        pieces.append(data[:size])
        data = data[size:]
        if not data:
            break
    kernel.program = says(*pieces)
    fields = {"model": coder, "input_prefix": "a", "input_suffix": "b", "stop": stop}
    whole = gateway.post("/infill", fields).json()
    chunks = events_of(gateway.post("/infill", {**fields, "stream": True}))
    assert [token for chunk in chunks for token in chunk["tokens"]] == whole["tokens"]
    assert whole["tokens_predicted"] == chunks[-1]["tokens_predicted"] == len(whole["tokens"])


def test_progress_is_told(gateway: Gateway, kernel: KernelThread, coder: str) -> None:
    """Of the prompt with its marks, in parts that are no end."""
    seen = kernel.make_event()

    async def program(process: ScriptedProcess) -> ExitStatus:
        await seen.wait()
        return await says("x")(process)

    kernel.program = program
    fields = {
        "model": coder,
        "input_prefix": "a",
        "input_suffix": "b",
        "stream": True,
        "return_progress": True,
    }
    with gateway.connect() as raw:
        raw.sendall(http_request("/infill", fields))
        received = read_until(raw, b'"prompt_progress"')
        kernel.call(seen.set)
        received += read_until(raw, b"[DONE]\n\n")
    lines = [line for line in received.split(b"\n") if line.startswith(b"data: {")]
    chunks = [msgspec.json.decode(line[6:], type=InfillChunk) for line in lines]
    assert [chunk.stop for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[0].prompt_progress.total == len(prompt_of(kernel))


def test_completions_take_a_suffix(gateway: Gateway, kernel: KernelThread, coder: str) -> None:
    """By the official client; each prompt has it, and tokens are taken as they are."""
    with OpenAI(base_url=gateway.base_url, api_key="any", max_retries=0) as client:
        answer = client.completions.create(model=coder, prompt="before", suffix="after")
        assert answer.choices[0].text == "hello"
        assert prompt_of(kernel) == [PREFIX, *b"before", SUFFIX, *b"after", MIDDLE]
        client.completions.create(model=coder, prompt=[[1, 2], [3]], suffix="after")
    prompts = [process.spawn.prompt for process in kernel.kernel.spawned[-2:]]
    assert prompts == [(PREFIX, *before, SUFFIX, *b"after", MIDDLE) for before in ((1, 2), (3,))]


COMPLETIONS = "/v1/completions"
UNSUPPORTED, INVALID = "unsupported_parameter", "invalid_value"
BOTH = {"prompt": "a", "suffix": "b"}


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/infill", {"model": "scripted", "input_prefix": "a"}, UNSUPPORTED, "input_prefix"),
        (COMPLETIONS, {"model": "scripted", **BOTH}, UNSUPPORTED, "suffix"),
        (COMPLETIONS, {**BOTH, "echo": True}, UNSUPPORTED, "suffix"),
        (COMPLETIONS, {**BOTH, "truncate_prompt_tokens": 1}, UNSUPPORTED, "suffix"),
        ("/infill", {"n_predict": 0}, INVALID, "n_predict"),
        ("/infill", {"n": 2}, INVALID, "n"),
        ("/infill", {"n_probs": 3}, UNSUPPORTED, "n_probs"),
        ("/infill", {"prompt_logprobs": 0}, UNSUPPORTED, "prompt_logprobs"),
        ("/infill", {"return_token_times": True}, UNSUPPORTED, "return_token_times"),
        ("/infill", {"truncate_prompt_tokens": 3}, UNSUPPORTED, "truncate_prompt_tokens"),
        (
            "/infill",
            {"input_extra": [{"filename": "x"}]},
            "missing_required_parameter",
            "input_extra[0].text",
        ),
        ("/infill", {"input_prefix": "x" * 4096}, "context_length_exceeded", "input_prefix"),
    ],
)
def test_what_cannot_be_is_refused(
    gateway: Gateway, kernel: KernelThread, coder: str, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    """By name: a model without marks above all."""
    response = gateway.post(path, {"model": coder, **body})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert not kernel.kernel.spawned
