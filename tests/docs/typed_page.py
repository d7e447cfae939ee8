"""Type what a page shows, and tell what it printed: fenced blocks of a page become one session of a shell.

In a block of language `console`, `$ ` begins a command, and what follows is what it printed. Lines that begin
with `llmsh> ` behind the command `llmsh` are what is typed there. A block whose first line is a comment with
the name of a file, like `# ask.py`, is that file. Blocks without a language are shown, not typed.

`python -m tests.docs.typed_page docs/quickstart.md` types a page again, and writes what was printed into it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import msgspec

from llmos.bench.server import Server, running_server

ROOT = Path(__file__).parents[2]
SHOWN_ADDRESS = "127.0.0.1:8000"
SHOWN_SOCKET = "/tmp/llmos-1000/llmos.sock"
OPTIONS = ("--device", "cpu", "--threads", "1", "--pool-mib", "64")
SESSION_SECONDS = 500
SHIMS = {"llmos": "-m llmos.cli", "llmsh": "-m shell.llmsh.main", "python": ""}
BEGIN, END = "\x1e", "\x1d"  # around what a command prints


@attrs.define(eq=False)
class Typed:
    """A command of a page, what the page says it prints, and what it printed."""

    command: str
    shown: str
    printed: str = ""
    code: int = 0


@attrs.define(eq=False)
class Page:
    """A page's files and commands, in the order of the page."""

    text: str
    files: dict[str, str]
    commands: list[Typed]


def read_page(path: Path) -> Page:
    """Find what is typed in a page, and the files that it needs."""
    text = path.read_text(encoding="utf-8")
    files, commands = {}, []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language == "console":
            commands += _read_console(block)
        elif name := re.match(r"# ([\w-]+\.\w+)\n", block):
            files[name[1]] = block
    return Page(text, files, commands)


def _read_console(block: str) -> list[Typed]:
    found: list[Typed] = []
    is_open = False  # the command goes on in the next line
    for line in block.splitlines(keepends=True):
        if is_open:
            found[-1].command += line
        elif line.startswith("$ "):
            found.append(Typed(line[2:], ""))
        elif line.startswith("llmsh> "):
            found.append(Typed(line, ""))
            continue
        else:
            found[-1].shown += line
            continue
        is_open = _goes_on(found[-1].command)
    for each in found:
        each.command = each.command.rstrip("\n")
    return found


def _goes_on(command: str) -> bool:
    """Whether a quote is open, or the line ends with a backslash."""
    if command.endswith("\\\n"):
        return True
    try:
        shlex.split(command)
    except ValueError:
        return True
    return False


@contextlib.contextmanager
def typing_server(*options: str) -> Iterator[Server]:
    """A server as a new user has it, but for its address, its size and where its files lie."""
    with tempfile.TemporaryDirectory(prefix="llmos-images-") as folder:
        with running_server(*OPTIONS, "--image-folder", folder, *options) as server:
            yield server


def type_page(page: Page, server: Server) -> None:
    """Type all commands of a page in one shell beside a server, and keep what each printed. Blocks."""
    address = server.url.removeprefix("http://")
    with tempfile.TemporaryDirectory(prefix="llmos-page-") as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        for program, arguments in SHIMS.items():
            shim = folder / "bin" / program
            shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
            shim.chmod(0o755)
        home = folder / "home"
        home.mkdir()
        (home / "docs").symlink_to(ROOT / "docs")
        for file, content in page.files.items():
            (home / file).write_text(_here(content, address), encoding="utf-8")
        environment = {
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LLMOS_SOCKET": server.socket_path,
            "COLUMNS": "110",
        }
        process = subprocess.Popen(
            ["bash"], cwd=home, env=environment, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            script = _here(_script(page.commands), address)
            printed, _ = process.communicate(script, timeout=SESSION_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left in the background
            process.wait()
    printed = printed.replace(address, SHOWN_ADDRESS).replace(server.socket_path, SHOWN_SOCKET)
    for each, (text, code) in zip(page.commands, _outputs(printed), strict=True):
        each.printed, each.code = text, code


def _here(text: str, address: str) -> str:
    return text.replace(SHOWN_ADDRESS, address).replace(
        SHOWN_ADDRESS.replace("127.0.0.1", "localhost"), address
    )


def _script(commands: list[Typed]) -> str:
    """One bash script; lines for llmsh are its input, with marks that its own `echo` prints."""
    lines: list[str] = []
    i = 0
    while i < len(commands):
        typed: list[str] = []
        while i + 1 + len(typed) < len(commands) and commands[i + 1 + len(typed)].command.startswith(
            "llmsh> "
        ):
            typed.append(commands[i + 1 + len(typed)].command.removeprefix("llmsh> "))
        lines.append(f"printf '{BEGIN}'")
        if typed:
            marked = [f"echo {END}0{BEGIN}\n{line}" for line in typed]
            lines.append(f"{commands[i].command} <<'llmsh-ends'\n" + "\n".join(marked) + "\nllmsh-ends")
        else:
            lines.append(f"{{ {commands[i].command}\n}} </dev/null")
        lines.append(f"printf '{END}%d\\n' $?")
        i += 1 + len(typed)
    return "\n".join(lines) + "\n"


def _outputs(printed: str) -> list[tuple[str, int]]:
    found = re.findall(f"{BEGIN}\n?(.*?){END}(\\d+)", printed, re.DOTALL)
    return [(text, int(code)) for text, code in found]


def shape(output: str) -> list[object]:
    """What of an output is the same each time: keys of JSON, heads of tables, and that there is text.

    Neighbours of one shape count once: texts and streams differ in length from machine to machine.
    """
    found: list[object] = []
    for line in filter(None, map(str.strip, output.splitlines())):
        each = _shape_of_line(line)
        if not found or found[-1] != each:
            found.append(each)
    return found


def _shape_of_line(line: str) -> object:
    is_event = line.startswith("data: ")
    try:
        return (is_event, _structure(msgspec.json.decode(line.removeprefix("data: "))))
    except msgspec.DecodeError:
        pass
    if re.fullmatch(r"(True|False|[A-Z]{3,})( \d+)?", line):  # what a program has found out
        return line
    words = line.split()
    return tuple(words) if len(words) > 2 and re.fullmatch(r"[A-Z ]+", line) else "text"


def _structure(value: object) -> object:
    if isinstance(value, dict):
        return tuple((key, _structure(value[key])) for key in sorted(value))
    if isinstance(value, list):
        return ("list", *dict.fromkeys(map(_structure, value)))
    return "."


def write_outputs(page: Page) -> str:
    """The page with what was printed in the place of what was shown."""
    blocks: list[str] = []
    text, at = page.text, 0
    for each in page.commands:
        head = each.command if each.command.startswith("llmsh> ") else f"$ {each.command}"
        begin = text.index(f"{head}\n", at)
        assert text[begin:].startswith(f"{head}\n{each.shown}"), head
        printed = each.printed if not each.printed or each.printed.endswith("\n") else f"{each.printed}\n"
        blocks += [text[at:begin], f"{head}\n", printed]
        at = begin + len(head) + 1 + len(each.shown)
    return "".join([*blocks, text[at:]])


def main() -> None:
    """Type the pages that are named again."""
    for name in sys.argv[1:]:
        path = Path(name)
        page = read_page(path)
        with typing_server() as server:
            type_page(page, server)
        path.write_text(write_outputs(page), encoding="utf-8")


if __name__ == "__main__":
    main()
