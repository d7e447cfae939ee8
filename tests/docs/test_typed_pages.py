"""Pages whose commands are typed by a test: what they print has the shape that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syscalls.client import Client
from syscalls.process import Follow, Grant, Unfollow
from syscalls.session import REPLY_TYPES
from syscalls.sync import SyncClient
from tests.docs.typed_page import Page, Typed, read_page, shape, type_page, typing_server, write_outputs
from tests.system.leaks import assert_no_leak, count

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["quickstart.md", "client.md", "metrics.md", "operators.md"])
def test_what_a_page_shows_is_what_is_printed(name: str) -> None:
    """Each command of a page, typed in order beside a server of its own, prints what stands under it."""
    page = read_page(DOCS / name)
    assert page.commands
    with typing_server() as server:
        before = count(server)
        type_page(page, server)
        if name != "quickstart.md":  # it stores responses, which are processes that wait
            assert_no_leak(server, before)
    for typed in page.commands:
        same = shape(typed.printed) == shape(typed.shown)
        assert same, f"{typed.command}\nprinted\n{typed.printed}\nwhere the page shows\n{typed.shown}"


def test_each_call_has_an_example() -> None:
    """Both clients' methods are all used by programs of the page; to stop the kernel is told in words.

    Three calls are made by a feed, which only the client has that can do several things at once.
    """
    programs = "\n".join(read_page(DOCS / "client.md").files.values())
    assert "client.open_feed(" in programs
    for call in set(REPLY_TYPES) - {Follow, Grant, Unfollow}:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", call.__name__).lower()
        assert f"client.{name}(" in programs, name
        assert hasattr(Client, name)
        assert hasattr(SyncClient, name)


def test_a_page_that_is_wrong_would_be_seen() -> None:
    """Another key, another column, an error in the place of a text, nothing: each is another shape."""
    assert shape('{"a": 1, "b": [1, 2]}') == shape('{"b": [7], "a": "x"}')
    assert shape('{"a": 1}') != shape('{"b": 1}')
    assert shape('{"a": {"b": 1}}') != shape('{"a": {"c": 1}}')
    assert shape("PID  STATE  NI\n1 RUNNING 0\n2 ZOMBIE 0") == shape("PID STATE NI\n7 STOPPED 1")
    assert shape("PID  STATE  NI") != shape("PID  STATE  TENANT")
    assert shape('data: {"a": 1}\n\ndata: {"a": 2}\n\ndata: [DONE]') == shape('data: {"a": 3}\ndata: [DONE]')
    assert shape("data: [DONE]") != shape("")
    assert shape("True") != shape("False")
    assert shape("ENOSYS") != shape("EINVAL")
    assert shape("Rome.") == shape("Oslo, I think.") != shape("")


WORDS = st.text("ab 1", min_size=1, max_size=8).map(lambda text: f"x{text}".rstrip())


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, max_size=3)), min_size=1, max_size=5))
def test_what_is_written_into_a_page_is_read_again(sessions: list[tuple[str, list[str]]]) -> None:
    """A page with new outputs has the same commands, and shows what they printed."""
    block = "".join(f"$ {command}\nold\n" for command, _ in sessions)
    text = f"# Page\n\n```console\n{block}```\n\nThe end.\n"
    commands = [
        Typed(command, "old\n", "".join(f"{line}\n" for line in lines)) for command, lines in sessions
    ]
    written = write_outputs(Page(text, {}, commands))
    assert written.startswith("# Page\n\n```console\n$ ")
    assert written.endswith("```\n\nThe end.\n")
    shown = "".join(f"$ {each.command}\n{each.printed}" for each in commands)
    assert shown in written


def test_commands_of_several_lines_are_whole(tmp_path: Path) -> None:
    """An open quote and a backslash go on in the next line; lines of llmsh are commands of their own."""
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ curl -d '{\n  \"a\": 1}'\n{}\n$ ls \\\n  -l\n$ llmsh\nllmsh> ps\nPID\n```\n"
        "```python\n# ask.py\nprint(1)\n```\n```\n$ make up\n```\n"
    )
    found = read_page(page)
    assert [(each.command, each.shown) for each in found.commands] == [
        ("curl -d '{\n  \"a\": 1}'", "{}\n"),
        ("ls \\\n  -l", ""),
        ("llmsh", ""),
        ("llmsh> ps", "PID\n"),
    ]
    assert found.files == {"ask.py": "# ask.py\nprint(1)\n"}
