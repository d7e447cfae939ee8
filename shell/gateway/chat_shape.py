"""What chat completions look like: the objects of an answer, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, assert_never

import attrs

from shell.gateway.answer import Collected, Json
from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.job import Job
from shell.gateway.logprobs import chat_logprobs, prompt_logprobs
from shell.gateway.parsers.events import CallArguments, CallBegun, CallEnded, Content, Event, Reasoning
from shell.gateway.text_event import TextEvent


def make_call_id() -> str:
    """Return an id for a call that no other has."""
    return f"call_{secrets.token_hex(12)}"


def list_calls(parts: Sequence[Event]) -> list[Json]:
    """Return the `tool_calls` of a message. A call that was cut is among them, with the arguments it has."""
    calls: list[Json] = []
    for part in parts:
        if isinstance(part, CallBegun):
            function = {"name": part.name, "arguments": ""}
            calls.append({"id": make_call_id(), "type": "function", "function": function})
        elif isinstance(part, CallArguments):
            calls[-1]["function"]["arguments"] += part.text
    return calls


@attrs.define(eq=False, kw_only=True)
class _Told:
    """What a stream's client has been told of a choice, and what it has yet to be told."""

    num_calls: int = 0
    has_role: bool = False
    tokens: list[int] = attrs.field(factory=list)  # to be told with the next chunk
    times: list[float] = attrs.field(factory=list)  # likewise
    entries: list[TokenEntry] = attrs.field(factory=list)  # likewise
    event: TextEvent | None = None  # with which it is told of text


@attrs.define(eq=False, kw_only=True)
class ChatShape:
    """Writes `chat.completion` and `chat.completion.chunk` objects."""

    job: Job
    is_named: bool = False  # the request named the function: its call is no reason to finish
    reasoning_fields: tuple[str, ...] = ()  # where thoughts are told; none: nowhere
    id: str = attrs.field(factory=lambda: f"chatcmpl-{secrets.token_hex(14)}")
    created: int = attrs.field(factory=lambda: int(time.time()))
    _told: defaultdict[int, _Told] = attrs.field(factory=lambda: defaultdict(_Told))
    _has_begun: bool = False  # a chunk was written
    _head: Json = attrs.field(init=False)

    @_head.default
    def _make_head(self) -> Json:
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.job.model.name,
            "system_fingerprint": self.job.model.fingerprint,
        }

    def _envelope(self, choices: list[Json]) -> Json:
        envelope = {**self._head, "choices": choices}
        if self.job.return_token_ids and not self._has_begun:
            envelope["prompt_token_ids"] = list(self.job.prompts[0])
        return envelope

    def _chunk(self, choice: Choice, delta: Json, **more: Any) -> Json:
        row = {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        envelope = self._envelope([row])
        self._has_begun = True
        return envelope

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """Role with the first token, then the parts, then the finish."""
        told = self._told[choice.index]
        told.tokens += delta.tokens
        told.times += delta.times
        told.entries += delta.entries
        deltas = [written for part in delta.parts if (written := self._write_part(told, part))]
        found: list[Json] = []
        if not told.has_role:
            found.append(self._chunk(choice, {"role": "assistant", "content": ""}))
            told.has_role = True
        for each in deltas:
            found.append(self._chunk(choice, each, **self._take_details(told)))
        if delta.finish_reason is not None:
            more = self._take_details(told) if told.tokens else {}
            more["finish_reason"] = self._finish_reason(delta.finish_reason, told.num_calls)
            more["stop_reason"] = delta.stop_reason
            found.append(self._chunk(choice, {}, **more))
        return found

    def text_event(
        self, index: int, text: str, tokens: Sequence[int], times: Sequence[float]
    ) -> bytes | None:
        """See Shape."""
        told = self._told[index]
        if told.entries or not told.has_role:
            return None
        if told.event is None:
            content: Json = {"content": ""}
            row: Json = {"index": index, "delta": content, "logprobs": None, "finish_reason": None}
            row |= self._take_details(_Told())
            chunk = self._envelope([row])
            if self.job.include_usage:
                chunk["usage"] = None
            told.event = TextEvent.make(chunk, row, content, "content")
        if told.tokens:
            tokens, told.tokens = [*told.tokens, *tokens], []
        if told.times:
            times, told.times = [*told.times, *times], []
        return told.event.write(text, tokens, times)

    def _write_part(self, told: _Told, part: Event) -> Json:
        """Return the delta for a part of the message; {}: there is nothing to tell."""
        match part:
            case Content():
                return {"content": part.text}
            case Reasoning():
                return dict.fromkeys(self.reasoning_fields, part.text)
            case CallBegun():
                told.num_calls += 1
                function = {"name": part.name, "arguments": ""}
                call = {"index": told.num_calls - 1, "id": make_call_id(), "type": "function"}
                return {"tool_calls": [{**call, "function": function}]}
            case CallArguments():
                call = {"index": told.num_calls - 1, "function": {"arguments": part.text}}
                return {"tool_calls": [call]}
            case CallEnded():
                return {}
            case _:
                assert_never(part)

    def _take_details(self, told: _Told) -> Json:
        """Return what goes with the next chunk beside its delta."""
        more: Json = {}
        if told.entries:
            more["logprobs"] = self._logprobs(told.entries)
            told.entries = []
        if self.job.return_token_ids:
            more["token_ids"] = told.tokens
        told.tokens = []
        if self.job.return_token_times:
            more["token_times"], told.times = told.times, []
        return more

    def _finish_reason(self, reason: str | None, num_calls: int) -> str | None:
        return "tool_calls" if reason == "stop" and num_calls and not self.is_named else reason

    def bare_chunk(self, *, is_last: bool) -> Json:
        """See Shape."""
        return self._envelope([])

    def complete(self, collected: list[Collected]) -> Json:
        """The whole response."""
        choices = []
        for each in collected:
            calls = list_calls(each.parts)
            thought = "".join(part.text for part in each.parts if isinstance(part, Reasoning))
            message: Json = {"role": "assistant", "content": each.text or (None if calls else "")}
            if thought:
                message.update(dict.fromkeys(self.reasoning_fields, thought))
            if calls:
                message["tool_calls"] = calls
            row = {
                "index": each.choice.index,
                "message": message,
                "logprobs": self._logprobs(each.entries),
                "finish_reason": self._finish_reason(each.choice.finish_reason, len(calls)),
                "stop_reason": each.choice.stop_reason,
            }
            if self.job.return_token_ids:
                row["token_ids"] = each.tokens
            if self.job.return_token_times:
                row["token_times"] = each.times
            choices.append(row)
        response = {**self._envelope(choices), "object": "chat.completion"}
        job = self.job
        if job.num_prompt_logprobs is not None:
            response["prompt_logprobs"] = prompt_logprobs(
                job.model.text, job.prompts[0], collected[0].choice.prompt_logprobs, job.num_prompt_logprobs
            )
        return response

    def _logprobs(self, entries: Sequence[TokenEntry]) -> Json | None:
        if self.job.num_top_logprobs is None:
            return None
        job = self.job
        return chat_logprobs(job.model.text, entries, self.job.num_top_logprobs, job.tokens_as_ids)
