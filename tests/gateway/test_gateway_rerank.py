"""Reranking and scores, against a kernel whose vectors count tokens."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from shell.gateway.embedding_job import cosine
from shell.gateway.replies.rerank import Ranking, Scores
from syscalls.embedding import Embed, EmbeddingInfo
from tests.gateway.harness import Gateway, KernelThread
from tests.scripted_kernel import CONTEXT, VECTOR_SIZE, count_tokens

DOCUMENTS = ["zebra", "a cat sat", "cats", "boat", "a cat sat"]
QUERY = "cat sat"


def nearness(one: str, other: str) -> float:
    """What the scripted kernel's vectors say."""
    first, second = (
        struct.unpack(f"<{VECTOR_SIZE}f", count_tokens(text.encode(), normalise=True))
        for text in (one, other)
    )
    return cosine(first, second)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_come_sorted(gateway: Gateway, path: str) -> None:
    """By score, the first of equals first; with their texts when asked for; so many as asked for."""
    body = gateway.post(path, {"query": QUERY, "documents": DOCUMENTS}).json()
    expected = sorted(range(5), key=lambda index: (-nearness(QUERY, DOCUMENTS[index]), index))
    assert [row["index"] for row in body["results"]] == expected
    assert expected[:2] == [1, 4]
    for row in body["results"]:
        assert row.keys() == {"index", "relevance_score"}
        assert row["relevance_score"] == pytest.approx(nearness(QUERY, DOCUMENTS[row["index"]]))
    assert body["usage"]["prompt_tokens"] == len(QUERY) + sum(map(len, DOCUMENTS))
    assert (body["model"], body["id"][:7]) == ("scripted", "rerank-")
    msgspec.convert(body, Ranking)
    objects = [{"text": text, "title": "x"} for text in DOCUMENTS]
    fields = {"query": QUERY, "documents": objects, "top_n": 3, "return_documents": True}
    rows = gateway.post(path, fields).json()["results"]
    assert [row["index"] for row in rows] == expected[:3]
    assert [row["document"] for row in rows] == [{"text": DOCUMENTS[index]} for index in expected[:3]]
    assert len(gateway.post(path, {**fields, "top_n": 99}).json()["results"]) == 5
    for more in ({"top_n": None, "top_k": 2}, {"top_n": 2, "top_k": 2}):
        rows = gateway.post(path, {**fields, **more}).json()["results"]
        assert [row["index"] for row in rows] == expected[:2]


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
def test_pairs_are_scored_in_order(gateway: Gateway, path: str) -> None:
    """One with each, or each with its own."""
    for first, second, pairs in (
        ("cat", "cats", [("cat", "cats")]),
        ("cat", ["cats", "boat"], [("cat", "cats"), ("cat", "boat")]),
        (["cat"], ["cats", "boat"], [("cat", "cats"), ("cat", "boat")]),
        (["cat", "boats"], ["cats", "boat"], [("cat", "cats"), ("boats", "boat")]),
    ):
        body = gateway.post(path, {"text_1": first, "text_2": second}).json()
        msgspec.convert(body, Scores)
        assert [row["index"] for row in body["data"]] == list(range(len(pairs)))
        for row, pair in zip(body["data"], pairs, strict=True):
            assert (row["object"], row["score"]) == ("score", pytest.approx(nearness(*pair)))
        assert (body["object"], body["model"]) == ("list", "scripted")


def test_long_documents_may_be_cut(gateway: Gateway, kernel: KernelThread) -> None:
    """Only they, by their own limit; or every text, by the request's."""
    fields = {"query": "x" * 30, "documents": ["y" * 50, "z" * 5]}
    for limit, lengths in (
        ({"max_tokens_per_doc": 10}, [30, 10, 5]),
        ({"truncate_prompt_tokens": 20}, [20, 20, 5]),
        ({"truncate_prompt_tokens": 20, "max_tokens_per_doc": 10}, [20, 10, 5]),
    ):
        kernel.kernel.calls.clear()
        assert gateway.post("/rerank", {**fields, **limit}).status_code == 200
        (call,) = [call for call in kernel.kernel.calls if isinstance(call, Embed)]
        assert [len(tokens) for tokens in call.inputs] == lengths


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/rerank", {"documents": ["x"]}, "missing_required_parameter", "query"),
        ("/rerank", {"query": "x"}, "missing_required_parameter", "documents"),
        ("/rerank", {"query": "x", "documents": []}, "invalid_value", "documents"),
        ("/rerank", {"query": "", "documents": ["x"]}, "invalid_value", "query"),
        ("/rerank", {"query": "x", "documents": ["x", ""]}, "invalid_value", "documents[1]"),
        ("/rerank", {"query": "x", "documents": [1]}, "invalid_type", "documents[0]"),
        (
            "/rerank", {"query": "x", "documents": [{"title": "x"}]}, "missing_required_parameter",
            "documents[0].text",
        ),
        ("/rerank", {"query": "x", "documents": ["x"] * 2049}, "invalid_value", "documents"),
        ("/rerank", {"query": "x", "documents": ["x" * 5000]}, "context_length_exceeded", "documents"),
        ("/rerank", {"query": "x", "documents": ["x"], "top_n": 0}, "invalid_value", "top_n"),
        ("/rerank", {"query": "x", "documents": ["x"], "top_k": 0}, "invalid_value", "top_k"),
        ("/rerank", {"query": "x", "documents": ["x"], "top_n": 1, "top_k": 2}, "invalid_value", "top_k"),
        (
            "/rerank", {"query": "x", "documents": ["x"], "rank_fields": ["a"]}, "unsupported_parameter",
            "rank_fields",
        ),
        ("/score", {"text_1": "x"}, "missing_required_parameter", "text_2"),
        ("/score", {"text_1": [], "text_2": "x"}, "invalid_value", "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "invalid_value", "text_1"),
        ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "invalid_value", "text_1"),
        ("/score", {"text_1": "a", "text_2": ["c", ""]}, "invalid_value", "text_2[1]"),
        ("/score", {"text_1": "a", "text_2": ["c"] * 2049}, "invalid_value", "text_2"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    gateway: Gateway, kernel: KernelThread, path: str, body: dict[str, Any], code: str, param: str
) -> None:
    """By name, before any process is made."""
    response = gateway.post(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param), error
    assert not kernel.kernel.spawned
    assert CONTEXT < 5000


def test_a_reranker_sees_both_texts_at_once(gateway: Gateway, kernel: KernelThread) -> None:
    """Each pair is one input, its score all that comes back; it makes no vectors."""
    before = kernel.kernel.models
    info = EmbeddingInfo(1, ("score",))
    reranker = msgspec.structs.replace(before[0], name="judge", generates=False, embedding=info)
    kernel.kernel.models = [*before, reranker]
    try:
        assert len(gateway.get("/v1/models").json()["data"]) == 2
        fields = {"query": "aaa", "documents": ["x", "yyyy" * 5], "max_tokens_per_doc": 9}
        body = gateway.post("/rerank", fields).json()
        assert (body["model"], body["usage"]["prompt_tokens"]) == ("judge", 4 + 9)
        (call,) = [call for call in kernel.kernel.calls if isinstance(call, Embed)]
        assert call.inputs == (tuple(b"aaax"), tuple(b"aaayyyyyy"))
        scores = gateway.post("/score", {"text_1": ["a", "b"], "text_2": ["c", "d"]}).json()
        assert [row["index"] for row in scores["data"]] == [0, 1]
        error = gateway.post("/score", {"text_1": "a", "text_2": ["c", ""]}).json()["error"]
        assert (error["code"], error["param"]) == ("invalid_value", "text_2[1]")
        many = {"model": "judge", "query": "a" * (100 << 10), "documents": ["b"] * 200}
        refused = gateway.post("/rerank", many).json()["error"]
        assert (refused["code"], refused["param"]) == ("invalid_value", "documents")
        assert "20480200 characters in all, pairs counted whole; at most 16777216" in refused["message"]
        refused = gateway.post("/v1/embeddings", {"input": "x", "model": "judge"}).json()["error"]
        assert (refused["code"], refused["param"]) == ("unsupported_parameter", "model")
        assert gateway.post("/v1/embeddings", {"input": "x"}).json()["model"] == "scripted"
    finally:
        kernel.kernel.models = before
        assert gateway.get("/v1/models").status_code == 200
