"""The prompt: a person's line, with history and completion.

It owns the main thread (prompt_toolkit runs an event loop of its own there), Trio a second one. Trio's side
posts a request and waits; the main thread answers it through Trio's token. Only a shell at a terminal imports
this: it takes as long as a short script.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import attrs
import trio
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.patch_stdout import patch_stdout

from shell.llmsh.completion import Lookup, complete
from shell.llmsh.parser import Incomplete, ParseError, parse, quote
from shell.llmsh.table import CommandTable
from shell.llmsh.terminal import CHAT_PROMPT, MAIN_PROMPT, EndOfInput, LineAborted, repair


@attrs.define(eq=False)
class _Request:
    prompt: str
    answered: trio.Event = attrs.field(factory=trio.Event)
    line: str = ""
    error: Exception | None = None


class PromptTerminal:
    """A prompt with history and completion. Made in the Trio thread; `serve` runs on the main thread."""

    is_interactive = True

    def __init__(self, token: trio.lowlevel.TrioToken, completer: Completer, history_path: str) -> None:
        self._token = token
        self._requests: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._sessions = {
            MAIN_PROMPT: _make_session(
                completer, FileHistory(history_path) if history_path else InMemoryHistory()
            ),
            CHAT_PROMPT: _make_session(None, InMemoryHistory()),
        }

    async def read_line(self, prompt: str) -> str:
        """See Terminal."""
        request = _Request(prompt)
        self._requests.put(request)
        await request.answered.wait()
        if request.error is not None:
            raise request.error
        return request.line

    def past_lines(self) -> list[str]:
        """See Terminal."""
        return list(self._sessions[MAIN_PROMPT].history.get_strings())

    def close(self) -> None:
        """Let `serve` return."""
        self._requests.put(None)

    def serve(self) -> None:
        """Answer requests for lines until `close`. Blocks; for the main thread only."""
        while (request := self._requests.get()) is not None:
            try:
                with patch_stdout(raw=True):
                    request.line = repair(self._sessions[request.prompt].prompt(request.prompt))
            except KeyboardInterrupt:
                request.error = LineAborted()
            except EOFError:
                request.error = EndOfInput()
            except Exception as error:
                request.error = error  # a fault of the prompt is the shell's to report
            try:
                self._token.run_sync_soon(request.answered.set)
            except trio.RunFinishedError:
                return  # the shell broke while the prompt waited


class ShellCompleter(Completer):
    """Completion for the prompt. Runs in a thread of prompt_toolkit, and asks the shell in its own."""

    def __init__(self, table: CommandTable[Any], look_up: Lookup) -> None:
        self._table = table
        self._look_up = look_up

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """See Completer."""
        text = document.text_before_cursor
        start, found = complete(text, self._table, self._look_up)
        for candidate in found:
            yield Completion(
                quote(candidate.text), start_position=start - len(text), display_meta=candidate.meaning
            )


def is_unfinished(text: str) -> bool:
    """True when Enter should continue the line instead of ending it: a quotation is open."""
    try:
        parse(text)
    except Incomplete:
        return True
    except ParseError:
        return False
    return False


def _make_session(completer: Completer | None, history: History) -> PromptSession[str]:
    keys = KeyBindings()

    @keys.add("c-z")
    def _(event: object) -> None:
        """Nothing runs in the foreground: there is nothing to suspend."""

    is_shell = completer is not None
    return PromptSession(
        completer=completer,
        complete_while_typing=False,
        complete_in_thread=True,  # it asks the kernel
        history=history,
        enable_history_search=True,
        key_bindings=keys,
        multiline=Condition(lambda: is_shell and is_unfinished(get_app().current_buffer.text)),
    )
