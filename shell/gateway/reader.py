"""From a choice's text to the parts of its message: thought, stop strings, calls, in this order.

Plain and sync. Stop strings are searched in what follows the thought, as the model writes it, before calls
are read.
"""

from __future__ import annotations

import attrs

from shell.gateway.parsers.events import CallEnded, Content, Event
from shell.gateway.parsers.reasoning import ReasoningParser
from shell.gateway.parsers.tool_parser import ToolParser
from syscalls.text.stop import StopMatcher


@attrs.frozen(kw_only=True)
class Reading:
    """How the text of a job's choices is to be read."""

    reasoning_marks: tuple[str, str] | None = None  # around a thought; None: the model has none
    is_thinking: bool = False  # the prompt has opened a thought
    tool_parser: type[ToolParser] | None = None  # None: calls are not looked for
    function_names: frozenset[str] = frozenset()
    is_certain: bool = False  # calls follow a grammar
    is_forced: bool = False  # there is nothing but calls
    has_one_call: bool = False  # the choice ends with its first call

    @property
    def markup(self) -> tuple[str, ...]:
        """Texts that must reach the reader, also where they are special tokens."""
        of_calls = self.tool_parser.MARKUP if self.tool_parser is not None else ()
        return (*of_calls, *(self.reasoning_marks or ()))

    def open(self, stops: tuple[str, ...], include_stop: bool, *, is_armed: bool = True) -> MessageReader:
        """Start reading one choice. Stop strings are passed over before it is armed."""
        reasoning = None
        if self.reasoning_marks is not None:
            reasoning = ReasoningParser(*self.reasoning_marks, is_inside=self.is_thinking)
        tools = None
        if self.tool_parser is not None:
            tools = self.tool_parser(self.function_names, is_certain=self.is_certain)
        # In forced calls nothing is the model's own text: a stop string would only break their grammar.
        matcher = StopMatcher(() if self.is_forced else stops, include_stop, is_armed=is_armed)
        return MessageReader(
            matcher, reasoning, tools, is_forced=self.is_forced, has_one_call=self.has_one_call
        )


PLAIN_TEXT = Reading()


class MessageReader:
    """Reads one choice.

    Args:
        matcher: looks for stop strings.
        reasoning: splits off a thought; None: there is none.
        tools: reads calls; None: there are none.
        is_forced: content is not told: it is what is left of a call that was cut.
        has_one_call: the text ends with the first call.
    """

    def __init__(
        self,
        matcher: StopMatcher,
        reasoning: ReasoningParser | None = None,
        tools: ToolParser | None = None,
        *,
        is_forced: bool = False,
        has_one_call: bool = False,
    ) -> None:
        self.num_released = 0  # characters of the text that no stop string can swallow any more
        self.is_complete = False  # a stop string, or the one call: the text is over
        self._matcher = matcher
        self._reasoning = reasoning
        self._tools = tools
        self._is_forced = is_forced
        self._has_one_call = has_one_call
        # Text is told as it comes: there is nothing to look for in it.
        self.is_plain = reasoning is None and tools is None and not matcher.has_stops
        self._num_read = 0
        self._answer_start: int | None = None  # in characters of the text

    @property
    def answer_start(self) -> int | None:
        """Where the answer begins, behind the thought and its marks, in characters; None: not yet."""
        return self._answer_start

    def text_start(self, run: int) -> int | None:
        """Where a run of text begins, in characters; a call ends one. None: it has not been told yet."""
        if self._answer_start is None:
            return None
        starts = self._tools.text_starts if self._tools is not None else [0]
        return self._answer_start + starts[run] if run < len(starts) else None

    @property
    def matched(self) -> str | None:
        """The stop string that was found."""
        return self._matcher.matched

    @property
    def is_thinking(self) -> bool:
        """True while what comes next may be a thought."""
        return self._reasoning is not None and self._reasoning.is_open

    @property
    def has_thought(self) -> bool:
        """True once a thought was seen."""
        return self._reasoning is not None and self._reasoning.has_reasoned

    def arm(self) -> None:
        """From now on a stop string that is complete ends the text."""
        self._matcher.is_armed = True

    def push(self, text: str) -> list[Event]:
        """Take more text. Returns what it decides."""
        self._num_read += len(text)
        if self._reasoning is None:
            return self._read_answer(text)
        parts = self._split(self._reasoning.feed(text))
        if self._answer_start is None:
            self.num_released = self._num_read - self._reasoning.num_held
        return parts

    def pass_on(self, num_characters: int) -> None:
        """Take note of more text that is told as it is, which a plain reader's `push` would return whole."""
        if self._answer_start is None:
            self._answer_start = self._num_read
        self._num_read += num_characters
        self.num_released = self._num_read

    def flush(self) -> list[Event]:
        """End the text. Returns what was held back."""
        parts = self._split(self._reasoning.finish()) if self._reasoning is not None else []
        if not self.is_complete:
            parts += self._read_calls(self._matcher.flush(), is_over=True)
            self.num_released = self._num_read
        return parts

    def _split(self, events: list[Event]) -> list[Event]:
        parts: list[Event] = []
        for event in events:
            if isinstance(event, Content):
                parts += self._read_answer(event.text)
            else:
                parts.append(event)
        return parts

    def _read_answer(self, text: str) -> list[Event]:
        if self._answer_start is None:
            self.num_released = self._answer_start = self._num_read - len(text)
        shown, matched = self._matcher.push(text)
        self.num_released += len(shown)
        self.is_complete = matched is not None
        return self._read_calls(shown, is_over=self.is_complete)

    def _read_calls(self, text: str, *, is_over: bool) -> list[Event]:
        if self._tools is None:
            return [Content(text)] if text else []
        parts = self._tools.feed(text)
        if is_over:
            parts += self._tools.finish()
        if self._has_one_call and self._tools.num_ended:
            self.is_complete = True
            parts = parts[: parts.index(CallEnded()) + 1]
        return [part for part in parts if not (self._is_forced and isinstance(part, Content))]
