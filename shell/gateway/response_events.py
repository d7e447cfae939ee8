"""What a response looks like: its object and the events of its stream.

The events are a function of the record and of the tokens, which are fed one by one: whoever has both
can write the same stream again, with the same sequence numbers, after a restart as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import attrs

from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.parsers.events import CallArguments, CallBegun, CallEnded, Content, Event, Reasoning
from shell.gateway.reader import MessageReader
from shell.gateway.response_record import Record
from shell.gateway.text_entries import TextEntries

Json = dict[str, Any]


def make_response(record: Record, output: list[Json]) -> Json:
    """Return the response object as it stands. `usage` is null until it is over."""
    usage = None
    if record.is_over and record.error is None:
        details = {"cached_tokens": record.num_cached_tokens}
        usage = {
            "input_tokens": len(record.prompt),
            "input_tokens_details": details,
            "output_tokens": len(record.tokens),
            "output_tokens_details": {"reasoning_tokens": record.num_reasoning_tokens},
            "total_tokens": len(record.prompt) + len(record.tokens),
        }
    return {
        "id": record.id,
        "object": "response",
        "created_at": record.created_at,
        "status": record.status,
        "error": record.error,
        "incomplete_details": {"reason": "max_output_tokens"} if record.status == "incomplete" else None,
        **record.echo,
        "output": output,
        "usage": usage,
    }


def no_rows(entries: Sequence[TokenEntry]) -> list[Json]:
    """Log-probabilities were not asked for."""
    return []


def drop_bytes(rows: list[Json]) -> list[Json]:
    """Return rows of log-probabilities as events of text have them: tokens are told as text alone."""
    return [
        {name: drop_bytes(value) if isinstance(value, list) else value for name, value in row.items()
         if name != "bytes"}
        for row in rows
    ]  # fmt: skip


def drop_logprobs(output: list[Json]) -> list[Json]:
    """Return items without log-probabilities."""
    found = []
    for item in output:
        if item["type"] == "message":
            item = {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}
        found.append(item)
    return found


@attrs.define(eq=False)
class ResponseEvents:
    """Writes the events of one response."""

    record: Record
    make_rows: Callable[[Sequence[TokenEntry]], list[Json]] = no_rows  # of the log-probabilities of text
    events: list[Json] = attrs.field(factory=list)  # event i has sequence number i
    output: list[Json] = attrs.field(factory=list)  # items that are over
    _item: Json | None = None  # the one that is being written
    _rows: list[Json] = attrs.field(factory=list)  # of its text
    _entries: TextEntries = attrs.field(factory=TextEntries)

    @property
    def has_items(self) -> bool:
        """True once the first item has been begun."""
        return self._item is not None or bool(self.output)

    def begin(self) -> None:
        """The response is there and is worked on."""
        self._add("response.created", response=self._response("in_progress"))
        self._add("response.in_progress", response=self._response("in_progress"))

    def feed(self, delta: Delta, reader: MessageReader) -> None:
        """Write what a token added, which the reader of its choice has read."""
        self._entries.push(delta.entries, reader)
        for part in delta.parts:
            self._write(part)

    def finish(self) -> None:
        """Write the end; the record says which."""
        self._close()
        if self.record.status == "completed" and not self.output:  # the model had nothing to say
            self._write(Content(""))
            self._close()
        kind = "failed" if self.record.status == "cancelled" else self.record.status
        self._add(f"response.{kind}", response=make_response(self.record, self.output))

    def _response(self, status: str) -> Json:
        return {**make_response(self.record, []), "status": status, "error": None, "usage": None}

    def _add(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "sequence_number": len(self.events), **fields})

    def _write(self, part: Event) -> None:
        match part:
            case Content() | Reasoning():
                kind = "message" if isinstance(part, Content) else "reasoning"
                if self._item is None or self._item["type"] != kind:
                    self._close()
                    self._open_text(kind)
                assert self._item is not None
                self._item["content"][0]["text"] += part.text
                if part.text:
                    name = "output_text" if kind == "message" else "reasoning_text"
                    more: Json = {"logprobs": self._take_rows(len(part.text))} if kind == "message" else {}
                    self._add(f"response.{name}.delta", **self._place(), delta=part.text, **more)
            case CallBegun():
                self._entries.skip_call()
                self._close()
                index = len(self.output)
                self._open(
                    {
                        "id": f"fc_{self.record.id[5:]}_{index}",
                        "type": "function_call",
                        "status": "in_progress",
                        "call_id": f"call_{self.record.id[5:]}_{index}",
                        "name": part.name,
                        "arguments": "",
                    }
                )
            case CallArguments():
                assert self._item is not None
                self._entries.skip_call()
                self._item["arguments"] += part.text
                self._add("response.function_call_arguments.delta", **self._at(), delta=part.text)
            case CallEnded():
                self._entries.skip_call()
                self._close()
            case _:
                assert_never(part)

    def _take_rows(self, num_characters: int) -> list[Json]:
        """Return the log-probabilities of text that is told now, and keep them for its end."""
        if self.make_rows is no_rows:
            return []
        rows = self.make_rows(self._entries.take(num_characters))
        self._rows += rows
        return drop_bytes(rows)

    def _at(self) -> Json:
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.output)}

    def _place(self) -> Json:
        return {**self._at(), "content_index": 0}

    def _open(self, item: Json) -> None:
        self._item = item
        shown = {**item, "content": []} if "content" in item else dict(item)
        self._add("response.output_item.added", output_index=len(self.output), item=shown)

    def _open_text(self, kind: str) -> None:
        name = f"{self.record.id[5:]}_{len(self.output)}"
        if kind == "message":
            part: Json = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item: Json = {"id": f"msg_{name}", "type": kind, "status": "in_progress", "role": "assistant"}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": f"rs_{name}", "type": kind, "status": "in_progress", "summary": []}
        self._open({**item, "content": [part]})
        self._add("response.content_part.added", **self._place(), part=dict(part))

    def _close(self) -> None:
        item = self._item
        if item is None:
            return
        is_cut = self.record.is_over and self.record.status != "completed"
        item["status"] = "incomplete" if is_cut else "completed"
        if item["type"] == "function_call":
            fields = {"name": item["name"], "arguments": item["arguments"]}
            self._add("response.function_call_arguments.done", **self._at(), **fields)
        else:
            part = item["content"][0]
            is_message = item["type"] == "message"
            name = "output_text" if is_message else "reasoning_text"
            more: Json = {}
            if is_message:
                part["logprobs"], self._rows = self._rows, []
                more["logprobs"] = drop_bytes(part["logprobs"])
            self._add(f"response.{name}.done", **self._place(), text=part["text"], **more)
            self._add("response.content_part.done", **self._place(), part=dict(part))
        self._add("response.output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._item = None


def note_reasoning(record: Record, choice: Choice) -> None:
    """Keep the count of a thought's tokens for the usage."""
    record.num_reasoning_tokens = choice.num_reasoning_tokens
