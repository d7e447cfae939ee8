"""What the pages about the contract say is there, is there."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from syscalls.codec import client_frame_decoder, kernel_frame_decoder

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["glossary.md", "client.md", "abi.md"])
def test_links_lead_to_files(name: str) -> None:
    """Every relative link of a page names a file of the tree."""
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / name).read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (DOCS / link).is_file(), link


def test_glossary_names_exist_where_they_are_said_to_be() -> None:
    """An entry that points to a name in a file is right about it."""
    text = " ".join((DOCS / "glossary.md").read_text(encoding="utf-8").split())
    references = re.findall(r"((?:`\w+`(?: and )?)+) in \[([\w/.]+)\]", text)
    assert len(references) > 20
    for names, path in references:
        source = (DOCS.parent / path).read_text(encoding="utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{name}\b", source), (name, path)


def test_messages_in_the_client_page_are_real() -> None:
    """The messages that the page spells out decode as frames of the protocol."""
    page = (DOCS / "client.md").read_text(encoding="utf-8")
    shown = re.findall(r'`(\["(?:hello|call|reply)"[^`…]*\])`', page)
    assert len(shown) == 3
    for text in shown:
        decoder = kernel_frame_decoder if "reply" in text else client_frame_decoder
        decoder.decode(msgspec.msgpack.encode(msgspec.json.decode(text)))
