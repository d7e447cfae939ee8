"""The ABI reference is current, complete, and says which errors each call has."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import msgspec
import pytest

from syscalls.codec import LENGTH, Answer, Request, client_frame_decoder
from syscalls.document import read_fields, write_page
from syscalls.errno import Errno

PAGE = Path(__file__).parents[2] / "docs" / "abi.md"


def test_page_in_docs_is_current() -> None:
    """docs/abi.md is what the generator writes; run `python -m syscalls.document > docs/abi.md` when not."""
    assert PAGE.read_text(encoding="utf-8") == write_page()


def test_every_call_answer_and_code_is_there() -> None:
    """Each call, reply and error code has its place on the page, and links lead to headings."""
    page = write_page()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert len(headings) == len(set(headings))
    for kind in (*typing.get_args(Request), *typing.get_args(Answer)):
        assert kind.__name__ in headings
    for code in Errno:
        assert re.search(rf"^\| {code.value} \| \S", page, re.MULTILINE)
    for target in re.findall(r"\]\(#(\w+)\)", page):
        assert target in {heading.lower() for heading in headings}


@pytest.mark.parametrize("kind", typing.get_args(Request))
def test_every_call_tells_its_errors(kind: type) -> None:
    """A call's docstring names its errors, all of which exist, or says that there are none."""
    text = kind.__doc__ or ""
    assert "Errors: " in text or "No errors" in text or "no errors" in text.lower()
    for code in re.findall(r"\bE[A-Z0-9]{3,}\b", text):
        assert code in Errno.__members__


@pytest.mark.parametrize("kind", typing.get_args(Request))
def test_fields_are_read_as_declared(kind: type[msgspec.Struct]) -> None:
    """Names come in wire order, and exactly the fields without a default are required."""
    fields = read_fields(kind)
    assert tuple(field.name for field in fields) == kind.__struct_fields__
    required = [info.name for info in msgspec.structs.fields(kind) if info.required]
    assert [field.name for field in fields if not field.default] == required


def test_example_bytes_decode() -> None:
    """The bytes that the page shows are frames that the kernel would accept."""
    shown = re.findall(r"\| `((?:[0-9a-f]{2} )+[0-9a-f]{2})` \|", write_page())
    assert len(shown) == 2
    for text in shown:
        frame = bytes.fromhex(text)
        assert LENGTH.unpack_from(frame)[0] == len(frame) - LENGTH.size
        client_frame_decoder.decode(frame[LENGTH.size :])
