"""`POST /v1/completions`: text completions, also of prompts given as token ids."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from shell.gateway.answer import Json, Shape, answer
from shell.gateway.completion_shape import CompletionShape
from shell.gateway.constraints import compile_constraint, read_constraint
from shell.gateway.errors import invalid, invalid_value, unsupported
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, refused
from shell.gateway.infill import require_fill_in
from shell.gateway.job import Job, make_job
from shell.gateway.json_body import read_json
from shell.gateway.prompt_length import CUT, check_encoded, check_length
from shell.gateway.replies.completions import TextChunk, TextCompletion
from shell.gateway.service import Endpoint, Service
from shell.gateway.shared_fields import (
    SHARED_FIELDS,
    SharedFields,
    TokenId,
    choose_id,
    convert_shared_fields,
    take_shared_fields,
)
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


class Completions(Endpoint):
    """Answers text completion requests."""

    name = "completions"
    body_type = CompletionFields
    answer_type = TextCompletion
    event_type = TextChunk

    async def answer(self, exchange: Exchange) -> None:
        """Validate, encode, generate."""
        self.service.admission.check()
        body = await read_json(self.service, exchange, "prompt")
        await answer(self.service, exchange, lambda: prepare_completion(self.service, exchange, body))


def read_completion_fields(body: Json, ignored: list[str]) -> CompletionFields:
    """Check a body. Raises ApiError 400."""
    taken = take_shared_fields(body, COMPLETION_FIELDS, ignored)
    fields = convert_shared_fields(taken, CompletionFields, ignored)
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
