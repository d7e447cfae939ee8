"""`POST /v1/completions`: text completions, also of prompts given as token ids."""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from shell.gateway.answer import Collected, Json, Shape, answer
from shell.gateway.body import parse_body
from shell.gateway.choice import Choice, Delta, TokenEntry
from shell.gateway.constraints import compile_constraint, read_constraint
from shell.gateway.errors import invalid, invalid_value, unsupported
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, convert, implemented, refused, take_fields
from shell.gateway.infill import require_fill_in
from shell.gateway.logprobs import completion_logprobs, prompt_entries, prompt_logprobs
from shell.gateway.parameters import (
    CUT,
    SHARED_FIELDS,
    STREAM_OPTIONS_FIELDS,
    Job,
    SharedFields,
    TokenId,
    check_encoded,
    check_length,
    choose_id,
    make_job,
    read_stream_options,
)
from shell.gateway.parsers.events import Content
from shell.gateway.replies.completions import TextChunk, TextCompletion
from shell.gateway.sampler_fields import list_replaced
from shell.gateway.service import Endpoint, Service
from shell.gateway.text_event import TextEvent
from syscalls.process import MAX_SAMPLES
from syscalls.sampling import MAX_LOGPROBS

COMPLETION_FIELDS: FieldTable = {
    **SHARED_FIELDS,
    **implemented("prompt", "suffix", "echo", "best_of"),
    **refused(tools=([],), chat_template_kwargs=({},)),
}
DEFAULT_MAX_TOKENS = 16


class CompletionFields(SharedFields, kw_only=True):
    """The body of a text completion."""

    prompt: str | list[str | TokenId | list[TokenId]]
    suffix: str = ""  # what follows: the text is filled in between
    max_tokens: Annotated[int, Meta(ge=0)] = DEFAULT_MAX_TOKENS
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool = False
    best_of: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] | None = None


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
        row = {"index": choice.index, "text": text, "logprobs": None, "finish_reason": None, **more}
        if self.job.return_token_ids and choice.index not in self._begun:
            row["prompt_token_ids"] = list(self.job.prompts[choice.prompt_index])
        self._begun.add(choice.index)
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

    def text_event(self, choice: Choice, delta: Delta) -> bytes | None:
        """See Shape."""
        index, parts = choice.index, delta.parts
        if delta.finish_reason is not None or delta.entries or index not in self._begun:
            return None
        if len(parts) != 1 or type(part := parts[0]) is not Content or self.job.num_top_logprobs is not None:
            return None
        event = self._events.get(index)
        if event is None:
            details: Json = {"token_ids": []} if self.job.return_token_ids else {}
            if self.job.return_token_times:
                details["token_times"] = []
            chunk = self._chunk(choice, "", **details)
            if self.job.include_usage:
                chunk["usage"] = None
            (row,) = chunk["choices"]
            event = self._events[index] = TextEvent.make(chunk, row, row, "text")
        tokens: Sequence[int] = delta.tokens
        times: Sequence[float] = delta.times
        if self._untold:
            tokens = [*self._untold.pop(index, ()), *tokens]
        if self._untold_times:
            times = [*self._untold_times.pop(index, ()), *times]
        return event.write(part.text, tokens, times)

    def usage_chunk(self) -> Json:
        """A chunk without choices."""
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


class Completions(Endpoint):
    """Answers text completion requests."""

    name = "completions"
    body_type = CompletionFields
    answer_type = TextCompletion
    event_type = TextChunk

    async def answer(self, exchange: Exchange) -> None:
        """Validate, encode, generate."""
        self.service.admission.check()
        body = parse_body(await exchange.read_body(self.service.uploads))
        await answer(self.service, exchange, lambda: prepare_completion(self.service, exchange, body))


def read_completion_fields(body: Json, ignored: list[str]) -> CompletionFields:
    """Check a body. Raises ApiError 400."""
    taken = take_fields(body, COMPLETION_FIELDS, ignored)
    if isinstance(options := taken.get("stream_options"), dict):
        taken["stream_options"] = take_fields(options, STREAM_OPTIONS_FIELDS, ignored, "stream_options")
    fields = convert(taken, CompletionFields)
    ignored += list_replaced(fields, taken)
    read_stream_options(fields.stream_options, fields.stream)
    if fields.max_tokens == 0 and not fields.echo:
        raise invalid_value("max_tokens", "'max_tokens' may be 0 only together with 'echo'.")
    if fields.suffix and fields.echo:
        raise unsupported("suffix", " together with 'echo'")
    if fields.suffix and fields.truncate_prompt_tokens is not None:
        raise unsupported("suffix", " together with 'truncate_prompt_tokens'")
    if fields.best_of is not None and fields.best_of < fields.n:
        raise invalid_value("best_of", f"'best_of' is {fields.best_of}, below 'n', which is {fields.n}.")
    if fields.best_of is not None and fields.best_of > fields.n and fields.stream:
        raise invalid_value("best_of", "'best_of' above 'n' is not for streams.")
    return fields


def split_prompts(given: str | list[Any], param: str = "prompt") -> list[str | list[int]]:
    """Return the prompts of a field: a string, strings, token ids, or lists of token ids.

    Raises:
        ApiError: 400 when it is empty or mixes kinds.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise invalid_value(param, f"'{param}' is empty.")
    kinds = {type(item) for item in given}
    if len(kinds) > 1:
        raise invalid("invalid_type", f"'{param}' mixes strings, token ids and lists of token ids.", param)
    return [given] if kinds == {int} else given


async def prepare_completion(service: Service, exchange: Exchange, body: Json) -> tuple[Job, Shape]:
    """Turn a body into a job. Raises ApiError."""
    fields = read_completion_fields(body, exchange.ignored)
    exchange.request_id = choose_id(fields, exchange.request_id)
    prompts = split_prompts(fields.prompt)
    limit = service.config.max_processes_per_request
    num_samples = fields.best_of or fields.n
    if len(prompts) * num_samples > limit:
        raise invalid_value(
            "prompt", f"{len(prompts)} prompts times {num_samples} samples are over {limit} processes."
        )
    constraint = read_constraint(fields, exchange.ignored)
    model = await service.catalog.resolve(fields.model)
    add_special_tokens = fields.add_special_tokens is not False
    fill_in = require_fill_in(model, "suffix") if fields.suffix else None
    if fill_in is not None:
        fields.stop_token_ids = list(dict.fromkeys([*fields.stop_token_ids, *fill_in.ends]))

    def encode() -> tuple[tuple[int, ...], ...]:
        for prompt in prompts:
            if isinstance(prompt, str):
                check_length(fields, model, len(prompt), fields.max_tokens, "prompt")
        has_start = add_special_tokens and fill_in is None
        pieces = [
            model.text.encode(prompt, has_start) if isinstance(prompt, str) else prompt for prompt in prompts
        ]
        if fill_in is not None:
            suffix = model.text.encode(fields.suffix, add_special_tokens=False)
            pieces = [fill_in.join(piece, suffix) for piece in pieces]
        return tuple(map(tuple, pieces))

    def spell() -> tuple[str, ...]:
        return tuple(
            prompt
            if isinstance(prompt, str) and len(tokens) == len(whole)
            else model.text.decode(tokens, fields.skip_special_tokens)
            for prompt, whole, tokens in zip(prompts, encoded, job.prompts, strict=True)
        )

    size = sum(map(len, prompts)) + len(fields.suffix)
    if fields.truncate_prompt_tokens is not None:
        check_encoded(sum(len(prompt) for prompt in prompts if isinstance(prompt, str)), "prompt", CUT)
    encoded = await service.do_text_work(size, encode)
    if fields.dry_multiplier:  # its breakers are looked for in every token
        await service.do_text_work(model.info.vocab_size, lambda: model.text.piece_search)
    grammar = None
    if constraint is not None:
        given = constraint
        grammar = await service.do_text_work(given.num_characters, lambda: compile_constraint(given))
    job = make_job(
        fields,
        model,
        service.config,
        encoded,
        max_tokens=fields.max_tokens,
        num_top_logprobs=fields.logprobs,
        param="prompt",
        label=exchange.request_id,
        num_samples=num_samples,
        is_echo_scored=fields.echo and fields.logprobs is not None,
        grammar=grammar,
    )
    echoes = await service.do_text_work(size, spell) if fields.echo else ()
    return job, CompletionShape(job, echoes)
