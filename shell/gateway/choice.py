"""One choice of a response: the tokens of its process to parts of a message, log-probabilities and an end.

Plain and sync. Text is held back while it could still turn out otherwise: inside a character, a mark, a call,
or what may become a stop string. A token's log-probabilities come out together with the first of its text
(of a call: perhaps earlier), and never when a stop string swallowed it, so tokens and text stay aligned.
"""

from __future__ import annotations

import math
from collections import deque

import attrs
import msgspec

from shell.gateway.parsers.events import Content, Event, join_events
from shell.gateway.reader import MessageReader
from syscalls.process import ExitStatus, Output, Usage
from syscalls.sampling import TokenLogprobs
from syscalls.text.detokenizer import IncrementalDecoder


class TokenEntry(msgspec.Struct, frozen=True):
    """A token of the decoded text with its log-probabilities; `start` counts characters of that text."""

    token: int
    start: int
    logprobs: TokenLogprobs | None


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """What one read added to a choice."""

    parts: tuple[Event, ...]
    entries: tuple[
        TokenEntry, ...
    ]  # where log-probabilities were asked for: of tokens whose text no stop string can swallow any more
    tokens: tuple[int, ...]  # everything sampled since the last delta, an end token included
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    times: tuple[float, ...] = ()  # of tokens, where they were asked for: Unix time when the device had each

    @property
    def text(self) -> str:
        """The text for the user."""
        return "".join(part.text for part in self.parts if isinstance(part, Content))

    @classmethod
    def of_text(cls, text: str, output: Output) -> Delta:
        """What an output added that `Choice.take_text` has taken."""
        parts = (Content(text),) if text else ()
        return cls(parts=parts, entries=(), tokens=output.tokens, times=output.times)


@attrs.define(eq=False, kw_only=True)
class Choice:
    """The state of one choice. Feed it what was read until it has finished.

    Invariant: 0 <= num_shown <= num_decoded, both in characters.
    """

    index: int
    pid: int
    prompt_index: int = 0
    decoder: IncrementalDecoder
    reader: MessageReader
    include_stop: bool = False  # text of an end token asked for by id is shown too
    min_tokens: int = 0  # of which no stop string ends it
    end_tokens: frozenset[int] = frozenset()  # the process ends with the first of them
    extra_end_tokens: frozenset[int] = frozenset()  # those of them that the request named

    num_tokens: int = 0  # sampled, as far as this choice goes
    num_thinking: int = 0  # of those, before it was seen that the text is no thought, or no longer
    num_shown: int = 0
    num_decoded: int = 0
    has_newline: bool = False
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    has_exited: bool = False  # the process ended by itself
    failure: ExitStatus | None = None  # "killed" or "error": the choice has no good end
    usage: Usage = attrs.field(factory=Usage)
    sum_logprobs: float = 0.0  # of the sampled tokens, where they were asked for
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()  # of the prompt but its first token
    _pending: deque[TokenEntry] = attrs.field(factory=deque)
    _untold: list[int] = attrs.field(factory=list)
    _untold_times: list[float] = attrs.field(factory=list)

    @property
    def is_finished(self) -> bool:
        """True when nothing follows."""
        return self.finish_reason is not None or self.failure is not None

    @property
    def mean_logprob(self) -> float:
        """Of its tokens; of none: the least."""
        return self.sum_logprobs / self.num_tokens if self.num_tokens else -math.inf

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens of the thought, its marks included."""
        return self.num_thinking if self.reader.has_thought else 0

    def feed(self, output: Output) -> Delta:
        """Take what was read. Tokens past a stop string are not counted; they should not have been made."""
        text = self.take_text(output)
        if text is not None:
            return Delta.of_text(text, output)
        self.usage = output.usage
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self._untold_times += output.times
        end = output.end
        parts: list[Event] = []
        for position, token in enumerate(output.tokens):
            logprobs = output.logprobs[position] if output.logprobs else None
            self.num_tokens += 1
            self.sum_logprobs += logprobs.logprob if logprobs is not None else 0.0
            self._untold.append(token)
            if token in self.end_tokens and not (self.include_stop and token in self.extra_end_tokens):
                continue  # an end token is not text; the exit that it causes may come with a later read
            if logprobs is not None:
                self._pending.append(TokenEntry(token, self.num_decoded, logprobs))
            self.num_thinking += self.reader.is_thinking
            piece = self.decoder.push_one(token)
            self.num_decoded += len(piece)
            if piece:
                if self.num_tokens > self.min_tokens:
                    self.reader.arm()
                self.has_newline = self.has_newline or "\n" in piece
                parts += self.reader.push(piece)
                if self.reader.is_complete:
                    self.has_exited = end is not None
                    return self._finish(parts, "stop", self.reader.matched)
        if end is None:
            return self._make_delta(parts)
        self.has_exited = True
        if end.reason not in ("stop", "length"):
            self.failure = end
            return self._make_delta(parts)
        self.num_tokens = max(self.num_tokens, output.usage.num_output_tokens)
        return self._end(parts, end)

    def take_text(self, output: Output) -> str | None:
        """Take the ordinary output: one more token, and nothing to look for in its text.

        Returns:
            The text that is complete now, "" inside a character. None: it was not taken, and is for `feed`.
        """
        tokens = output.tokens
        if len(tokens) != 1 or output.end is not None or output.logprobs or output.prompt_logprobs:
            return None
        token, reader = tokens[0], self.reader
        if not reader.is_plain or token in self.end_tokens or self._pending:
            return None
        self.num_tokens += 1
        self.usage = output.usage
        text = self.decoder.push_one(token)
        if text:
            num_characters = len(text)
            self.num_decoded += num_characters
            reader.pass_on(num_characters)
            self.num_shown = reader.num_released
            if "\n" in text:
                self.has_newline = True
        return text

    def cut_short(self) -> Delta:
        """End here, as if the process had come to its limit; it has not, and must be killed."""
        return self._end([], ExitStatus("length"))

    def _end(self, parts: list[Event], end: ExitStatus) -> Delta:
        """Let out what was held back."""
        rest = self.decoder.flush()
        self.num_decoded += len(rest)
        parts += self.reader.push(rest) if rest else []
        if self.reader.matched is not None:
            return self._finish(parts, "stop", self.reader.matched)
        parts += self.reader.flush()
        if self.reader.matched is not None:  # a mark that was none, let out at the end, was a stop string
            return self._finish(parts, "stop", self.reader.matched)
        stop_token = end.stop_token if end.stop_token in self.extra_end_tokens else None
        return self._finish(parts, end.reason, stop_token)

    def _finish(self, parts: list[Event], reason: str, stop_reason: str | int | None) -> Delta:
        self.finish_reason, self.stop_reason = reason, stop_reason
        delta = self._make_delta(parts)
        self._pending.clear()
        return delta

    def _make_delta(self, parts: list[Event]) -> Delta:
        self.num_shown = self.reader.num_released
        entries: list[TokenEntry] = []
        while self._pending and self._pending[0].start < self.num_shown:
            entries.append(self._pending.popleft())
        if self.finish_reason is not None and self.reader.matched is None:  # tokens without text of their own
            entries += self._pending
            self._pending.clear()
        tokens, self._untold = tuple(self._untold), []
        times: tuple[float, ...] = ()
        if self._untold_times:
            times, self._untold_times = tuple(self._untold_times[: len(tokens)]), []
        return Delta(
            parts=tuple(join_events(parts)),
            entries=tuple(entries),
            tokens=tokens,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            times=times,
        )
