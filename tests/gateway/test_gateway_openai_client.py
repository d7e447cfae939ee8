"""The official OpenAI client, sync and async, against whatever serves `base_url`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MESSAGES = [{"role": "user", "content": "Say something short."}]


@pytest.fixture
def client(base_url: str) -> Iterator[OpenAI]:
    """A client that does not retry."""
    with OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    """The default model's name."""
    return client.models.list().data[0].id


def test_models(client: OpenAI, model: str) -> None:
    """The list and one entry parse."""
    assert client.models.retrieve(model).id == model
    assert client.models.retrieve(model).created > 0


def test_chat(client: OpenAI, model: str) -> None:
    """A plain answer has text, a finish reason and usage that adds up."""
    answer = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=8, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert isinstance(choice.message.content, str)
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.model == model


def test_chat_stream_equals_the_whole(client: OpenAI, model: str) -> None:
    """Greedy: the streamed text, the stream helper's text and the plain answer agree."""
    fields = {"model": model, "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    choice = client.chat.completions.create(**fields).choices[0]
    whole = choice.message.content
    stream = client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[-1].usage is not None
    with client.chat.completions.stream(**fields) as helper:
        if choice.finish_reason == "length":  # the helper refuses to call that final
            with pytest.raises(openai.LengthFinishReasonError):
                helper.get_final_completion()
        else:
            assert helper.get_final_completion().choices[0].message.content == whole


def test_chat_with_logprobs_and_samples(client: OpenAI, model: str) -> None:
    """n, seed, logprobs, stop and penalties parse."""
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=4, n=3, seed=11, presence_penalty=0.5, stop=["\n\n\n"]
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_tools(client: OpenAI, model: str) -> None:
    """Functions are offered: whole and streamed, the answer is the same text or the same calls."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    fields = {"model": model, "messages": MESSAGES, "tools": [tool], "max_tokens": 12, "temperature": 0}
    (choice,) = client.chat.completions.create(**fields).choices
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == (choice.message.content or "")
    parts = [part for chunk in chunks for part in chunk.delta.tool_calls or ()]
    arguments = "".join(part.function.arguments for part in parts)
    calls = choice.message.tool_calls or ()
    assert arguments == "".join(call.function.arguments for call in calls)
    assert chunks[-1].finish_reason == choice.finish_reason


def test_completions(client: OpenAI, model: str) -> None:
    """Text completions of strings and token ids, whole and streamed."""
    answer = client.completions.create(model=model, prompt=["Once", "Twice"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    answer = client.completions.create(model=model, prompt=[1, 2, 3], max_tokens=4, temperature=0, echo=True)
    stream = client.completions.create(
        model=model, prompt=[1, 2, 3], max_tokens=4, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_closing_a_stream_early(client: OpenAI, model: str) -> None:
    """A client may leave in the middle, and go on with the next request."""
    for _ in range(3):
        with client.chat.completions.create(model=model, messages=MESSAGES, stream=True) as stream:
            next(iter(stream))
    assert client.models.list().data


def test_error_classes(client: OpenAI, model: str) -> None:
    """Each refusal raises the client's own class, with code and param."""
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="no-such-model", messages=MESSAGES)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=MESSAGES, temperature=3)
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=10_000_000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt="x", suffix="y")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "suffix")


def test_async_client(base_url: str) -> None:
    """The async client: models, chat, several streams at once."""

    async def main() -> None:
        async with AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
            model = (await client.models.list()).data[0].id
            fields = {"model": model, "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
            whole = await client.chat.completions.create(**fields)

            async def stream_one() -> str:
                stream = await client.chat.completions.create(**fields, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            texts = await asyncio.gather(*(stream_one() for _ in range(4)))
            assert set(texts) == {whole.choices[0].message.content}

    asyncio.run(main())


def test_embeddings(client: OpenAI, model: str) -> None:
    """Numbers as base64 (the client's default) and as floats, one for each text, at length 1."""
    texts = ["a short text", "another one", "a short text"]
    packed = client.embeddings.create(model=model, input=texts)
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    assert [row.index for row in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)
        assert sum(number * number for number in one.embedding) == pytest.approx(1, abs=1e-5)
    assert packed.data[0].embedding == packed.data[2].embedding != packed.data[1].embedding
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=model, input="")
