"""The official client for Node against a real server and model: what the scripted kernel cannot show."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmos.bench.server import Server
from tests.gateway.node_client import Node, running_node
from tests.system.leaks import assert_no_leak, count

ENDLESS = {"max_tokens": 1500, "ignore_eos": True}


@pytest.fixture(scope="module")
def node(server: Server) -> Iterator[Node]:
    """One client for the module."""
    with running_node(f"{server.url}/v1") as node:
        yield node


def test_whole_streamed_and_helped_agree(node: Node) -> None:
    """Greedy: one text, three ways."""
    whole = node.tell("chat", fields={})["choices"][0]["message"]["content"]
    assert whole == node.tell("stream", fields={})["text"] == node.tell("stream_helper")["text"] != ""


def test_an_answer_is_what_its_schema_says(node: Node) -> None:
    """The built-in model knows nothing of JSON; the mask does, and zod reads it."""
    for place in node.tell("structured"):
        assert set(place) == {"city", "degrees"}
        assert 0 <= place["degrees"] <= 9


def test_aborts_leave_nothing_behind(node: Node, server: Server) -> None:
    """Frames, processes and descriptors are back, each time the client has left in its own way."""
    node.tell("models")  # its connection is there before the count
    before = count(server)
    told = node.tell("abort", fields=ENDLESS)
    assert told["chunks"] >= 3  # some more had arrived before the abort
    assert told["refused"]["class"] == "APIUserAbortError"
    assert_no_leak(server, before)
