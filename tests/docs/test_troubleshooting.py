"""docs/troubleshooting.md has an entry for every error that the code can raise, and for no other."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shell.gateway.errors import ApiError
from syscalls.errno import Errno
from syscalls.process import ExitStatus

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
PACKAGES = ("llmos", "drivers", "native", "shell", "syscalls")
CODE_AT = {"ApiError": 2, "invalid": 0, "unavailable": 0, "not_found": 0}  # where each is given its code


def trees(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The parsed source of some folders, without how the built-in model was made."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "training" not in path.parts:
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def exceptions() -> set[str]:
    """Names of all exceptions that the packages define."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for _, tree in trees(*PACKAGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    known = {n for n, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)}
    known |= {"BrokenResourceError"}  # Trio's
    found: set[str] = set()
    while more := {name for name, of in bases.items() if of & (known | found)} - found:
        found |= more
    return found


def codes(node: ast.expr) -> set[str]:
    """The words that an expression can be: a constant, or either end of a choice; of a name none."""
    match node:
        case ast.Constant(value=str(word)):
            return {word}
        case ast.IfExp(body=body, orelse=orelse):
            return codes(body) | codes(orelse)
        case ast.Name(id="code"):
            return set()  # a parameter, or assigned beside: found there
        case _:
            raise AssertionError(f"not a code that can be read: {ast.unparse(node)}")


def gateway_codes() -> set[str]:
    """The codes of all errors that the gateway can answer with."""
    found: set[str] = set()
    for _, tree in trees("shell/gateway"):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=arguments) if name in CODE_AT:
                    if len(arguments) > CODE_AT[name]:
                        found |= codes(arguments[CODE_AT[name]])
                case ast.Call(func=ast.Name(id="_complain"), args=[first, *_]):
                    found |= codes(first)
                case ast.Assign(targets=[ast.Name(id="code")], value=ast.IfExp() as choice):
                    found |= codes(choice)
                case ast.Dict(keys=keys, values=values):
                    for key, value in zip(keys, values, strict=True):
                        match key, value:
                            case ast.Constant(value="code"), ast.Constant(value=str(word)):
                                found.add(word)
                            case _:
                                pass
    return found


def rows() -> list[list[str]]:
    """The rows of the page's tables, cell by cell, without heads."""
    found: list[list[str]] = []
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        for line in table.splitlines()[2:]:
            found.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


def entries() -> set[str]:
    """Names that begin a row."""
    return {name for row in rows() for name in re.findall(r"`(\w+)`", row[0])}


def section(title: str) -> set[str]:
    """Names that begin a row of one section."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))


def test_every_error_has_its_entry() -> None:
    """Exceptions, codes of the gateway, errnos: all are there."""
    wanted = exceptions() | gateway_codes() | {errno.value for errno in Errno}
    assert {"LoadRefused", "CudaFault", "NoKernel", "model_loading", "invalid_grammar", "EDQUOT"} <= wanted
    assert not wanted - entries(), "these have no entry"


def test_no_entry_is_of_an_error_that_is_gone() -> None:
    """What a row begins with is raised somewhere, a reason of an end, or none of these by its form."""
    known = exceptions() | gateway_codes() | {errno.value for errno in Errno}
    known |= {"stop", "length", "killed", "error"}
    assert not entries() - known


def test_sections_have_what_they_promise() -> None:
    """Codes are in the table of codes, errnos in that of errnos, reasons of ends in that of reasons."""
    assert section("An HTTP error") == gateway_codes()
    assert {errno.value for errno in Errno} <= section("A call refused on the socket")
    assert {"stop", "length", "killed", "error"} <= section("A process ended")
    assert [ExitStatus(reason).code for reason in ("stop", "length", "killed", "error")] == [0, 0, 137, 1]


def test_rows_are_whole() -> None:
    """Each row has as many cells as its table's head, a cause, and nobody's name twice."""
    for table in re.findall(r"(?:^\|.*\|\n)+", PAGE, re.MULTILINE):
        widths = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    for row in rows():
        assert row[0]
        assert len(row) == 2 or any(row[1:]), row
    names = re.findall(r"^\| `([A-Za-z_0-9]+)` \|", PAGE, re.MULTILINE)
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_an_error_without_an_entry_would_be_seen() -> None:
    """The look-up finds classes at any depth of inheritance, and refuses codes that it cannot read."""
    assert {"PressureError", "OutOfFrames", "MailboxClosed", "CudaRefused"} <= exceptions()
    assert "Spawn" not in exceptions()
    with pytest.raises(AssertionError):
        codes(ast.parse("f(x)", mode="eval").body)
    assert ApiError(400, "t", "invalid_value", "m").body()["error"]["code"] in gateway_codes()
