"""What text completions look like: the objects of an answer, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import attrs
import msgspec

from shell.gateway.answer import Collected, Json
from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.job import Job
from shell.gateway.logprobs import completion_logprobs, prompt_entries, prompt_logprobs
from shell.gateway.text_event import TextEvent


@attrs.define(eq=False)
class CompletionShape:
    """Writes `text_completion` objects. `echoes` has each prompt's text when it is to be repeated."""

    job: Job
    echoes: tuple[str, ...] = ()
    id: str = attrs.field(factory=lambda: f"cmpl-{secrets.token_hex(14)}")
    created: int = attrs.field(factory=lambda: int(time.time()))
    _begun: set[int] = attrs.field(factory=set)  # choices of which something was told
    _events: dict[int, TextEvent] = attrs.field(factory=dict)  # of choices, with which their text is told
    _untold: defaultdict[int, list[int]] = attrs.field(factory=lambda: defaultdict(list))  # token ids
    _untold_times: defaultdict[int, list[float]] = attrs.field(factory=lambda: defaultdict(list))

    def _envelope(self, choices: list[Json]) -> Json:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.job.model.name,
            "system_fingerprint": self.job.model.fingerprint,
            "choices": choices,
        }

    def _chunk(self, choice: Choice, text: str, **more: Any) -> Json:
        if self.job.return_token_ids and choice.index not in self._begun:
            more["prompt_token_ids"] = list(self.job.prompts[choice.prompt_index])
        self._begun.add(choice.index)
        return self._next_chunk(choice.index, text, **more)

    def _next_chunk(self, index: int, text: str, **more: Any) -> Json:
        row = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
        return self._envelope([row])

    def _echo(self, choice: Choice) -> str:
        return self.echoes[choice.prompt_index] if self.echoes else ""

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """The echo with the first text, then text, then the finish."""
        text = delta.text if choice.index in self._begun else self._echo(choice) + delta.text
        more: Json = {}
        entries = self._entries(choice, delta.entries, has_prompt=choice.index not in self._begun)
        if entries:
            more["logprobs"] = self._logprobs(entries)
        if self.job.return_token_ids:
            self._untold[choice.index] += delta.tokens
            if text or delta.finish_reason is not None:  # no chunk only for tokens without text
                more["token_ids"] = self._untold.pop(choice.index)
        if self.job.return_token_times:
            self._untold_times[choice.index] += delta.times
            if text or delta.finish_reason is not None:
                more["token_times"] = self._untold_times.pop(choice.index)
        found = []
        if text or (entries and delta.finish_reason is None):
            found.append(self._chunk(choice, text, **more))
            more = {}
        if delta.finish_reason is not None:
            reasons = {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}
            found.append(self._chunk(choice, "", **more, **reasons))
        return found

    def text_event(
        self, index: int, text: str, tokens: Sequence[int], times: Sequence[float]
    ) -> bytes | None:
        """See Shape."""
        if index not in self._begun or self.job.num_top_logprobs is not None:
            return None
        event = self._events.get(index)
        if event is None:
            details: Json = {"token_ids": []} if self.job.return_token_ids else {}
            if self.job.return_token_times:
                details["token_times"] = []
            chunk = self._next_chunk(index, "", **details)
            if self.job.include_usage:
                chunk["usage"] = None
            (row,) = chunk["choices"]
            event = self._events[index] = TextEvent.make(chunk, row, row, "text")
        if self._untold:
            tokens = [*self._untold.pop(index, ()), *tokens]
        if self._untold_times:
            times = [*self._untold_times.pop(index, ()), *times]
        return event.write(text, tokens, times)

    def bare_chunk(self, *, is_last: bool) -> Json:
        """See Shape."""
        return self._envelope([])

    def complete(self, collected: list[Collected]) -> Json:
        """The whole response."""
        choices = []
        for each in collected:
            row = {
                "index": each.choice.index,
                "text": self._echo(each.choice) + each.text,
                "logprobs": self._logprobs(self._entries(each.choice, each.entries, has_prompt=True)),
                "finish_reason": each.choice.finish_reason,
                "stop_reason": each.choice.stop_reason,
            }
            if self.job.num_prompt_logprobs is not None:
                row["prompt_logprobs"] = prompt_logprobs(
                    self.job.model.text,
                    self.job.prompts[each.choice.prompt_index],
                    each.choice.prompt_logprobs,
                    self.job.num_prompt_logprobs,
                )
            if self.job.return_token_ids:
                row["token_ids"] = each.tokens
                row["prompt_token_ids"] = list(self.job.prompts[each.choice.prompt_index])
            if self.job.return_token_times:
                row["token_times"] = each.times
            choices.append(row)
        return self._envelope(choices)

    def _entries(
        self, choice: Choice, generated: Sequence[TokenEntry], *, has_prompt: bool
    ) -> list[TokenEntry]:
        """Tokens of the text, that of the prompt before them when it is echoed, with their places in it."""
        if not self.echoes or self.job.num_top_logprobs is None:
            return list(generated)
        job, num_echoed = self.job, len(self._echo(choice))
        entries = []
        if has_prompt:
            prompt = job.prompts[choice.prompt_index]
            entries = prompt_entries(job.model.text, prompt, choice.prompt_logprobs, job.skip_special_tokens)
        return entries + [
            msgspec.structs.replace(entry, start=entry.start + num_echoed) for entry in generated
        ]

    def _logprobs(self, entries: Sequence[TokenEntry]) -> Json | None:
        if self.job.num_top_logprobs is None:
            return None
        job = self.job
        return completion_logprobs(job.model.text, entries, self.job.num_top_logprobs, job.tokens_as_ids)
