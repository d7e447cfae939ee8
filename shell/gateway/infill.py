"""`POST /infill`, as llama.cpp has it: what is missing between two pieces of code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import attrs
import msgspec
from msgspec import Meta

from shell.gateway.answer import Collected, Json, Shape, answer
from shell.gateway.catalog import ServedModel
from shell.gateway.choice import Choice, Delta
from shell.gateway.constraints import compile_constraint, read_constraint
from shell.gateway.errors import invalid_value, unsupported
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, refused
from shell.gateway.job import Job, make_job
from shell.gateway.json_body import read_json
from shell.gateway.prompt_length import check_encoded, check_length
from shell.gateway.replies.infill import InfillChunk, Infilled
from shell.gateway.service import Endpoint, Service
from shell.gateway.shared_fields import (
    SHARED_FIELDS,
    SharedFields,
    choose_id,
    convert_shared_fields,
    take_shared_fields,
)
from syscalls.text.fill_in import FillIn, find_fill_in
from syscalls.text.tokenizer import TextModel

INFILL_FIELDS: FieldTable = {
    **SHARED_FIELDS,
    **implemented("input_prefix", "input_suffix", "input_extra", "prompt", "n_predict"),
    **refused(logprobs=(), n_probs=0, n_indent=0, id_slot=-1, response_fields=([],), tools=([],)),
}
TEXT_FIELDS = ("input_prefix", "input_suffix", "input_extra", "prompt")
SNIPPET = "\n\n--- snippet ---\n\n"  # before each other text, where a model has no token for files
PROJECT, HERE = "myproject\n", "filename\n"  # names that a model is shown for want of better ones


class ExtraFile(msgspec.Struct):
    """Another file of the project, or a part of one."""

    text: str
    filename: str = "tmp"


class InfillFields(SharedFields, kw_only=True):
    """The body. `prompt` is the beginning of the line with the hole: it follows `input_prefix`."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: list[ExtraFile] = msgspec.field(default_factory=list)
    prompt: str = ""
    n_predict: Annotated[int, Meta(ge=-1)] = -1  # tokens at most; -1: up to the context
    max_tokens: Annotated[int, Meta(ge=1)] | None = None


def require_fill_in(model: ServedModel, param: str) -> FillIn:
    """How a model is shown a hole. Raises ApiError 400: it has no tokens for that."""
    found = find_fill_in(model.text)
    if found is None:
        raise unsupported(param, f": `{model.name}` has no tokens for filling in")
    return found


@attrs.define(eq=False)
class InfillShape:
    """Writes llama.cpp's objects. The `tokens` of all chunks of a stream are those of the whole answer."""

    job: Job
    _untold: list[int] = attrs.field(factory=list)  # token ids whose text has not come, or that have none

    def chunks(self, choice: Choice, delta: Delta) -> list[Json]:
        """Text, then the end."""
        found = []
        self._untold += delta.tokens
        if delta.text:
            tokens, self._untold = self._untold, []
            row = {
                "index": choice.index,
                "content": delta.text,
                "tokens": tokens,
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": choice.num_tokens,
                "tokens_evaluated": len(self.job.prompts[0]),
            }
            found.append(row)
        if delta.finish_reason is not None:
            found.append(self._end(choice, "", self._untold))
        return found

    def text_event(self, index: int, text: str, tokens: Sequence[int], times: Sequence[float]) -> None:
        """Its objects count tokens: none is like the one before."""
        return None

    def bare_chunk(self, *, is_last: bool) -> Json:
        """An end, or a part, without content."""
        return {"index": 0, "content": "", "tokens": [], "stop": is_last, "id_slot": -1}

    def complete(self, collected: list[Collected]) -> Json:
        """The whole response."""
        (only,) = collected
        return self._end(only.choice, only.text, only.tokens)

    def _end(self, choice: Choice, content: str, tokens: Sequence[int]) -> Json:
        is_word = isinstance(choice.stop_reason, str)
        kind = "limit" if choice.finish_reason == "length" else "word" if is_word else "eos"
        return {
            "index": choice.index,
            "content": content,
            "tokens": list(tokens),
            "id_slot": -1,
            "stop": True,
            "model": self.job.model.name,
            "tokens_predicted": choice.num_tokens,
            "tokens_evaluated": len(self.job.prompts[0]),
            "tokens_cached": choice.usage.num_cached_tokens,
            "truncated": False,
            "has_new_line": choice.has_newline,
            "stop_type": kind,
            "stopping_word": choice.stop_reason if is_word else "",
        }


class Infill(Endpoint):
    """Fills in what is missing between two pieces of code."""

    name = "infill"
    body_type = InfillFields
    answer_type = Infilled
    event_type = InfillChunk

    async def answer(self, exchange: Exchange) -> None:
        """Validate, encode, generate."""
        self.service.admission.check()
        body = await read_json(self.service, exchange, *TEXT_FIELDS)
        await answer(self.service, exchange, lambda: prepare_infill(self.service, exchange, body))


async def prepare_infill(service: Service, exchange: Exchange, body: Json) -> tuple[Job, Shape]:
    """Turn a body into a job. Raises ApiError."""
    taken = take_shared_fields(body, INFILL_FIELDS, exchange.ignored)
    fields = convert_shared_fields(taken, InfillFields, exchange.ignored)
    if fields.n != 1:
        raise invalid_value("n", f"'n' is {fields.n}; one text at a time is filled in.")
    if fields.n_predict == 0:
        raise invalid_value("n_predict", "'n_predict' is 0: nothing would be written.")
    if fields.truncate_prompt_tokens is not None:
        raise unsupported("truncate_prompt_tokens", ": a text with a hole cannot be cut at its beginning")
    if fields.prompt_logprobs is not None:
        raise unsupported("prompt_logprobs")
    if fields.return_token_times:
        raise unsupported("return_token_times")
    exchange.request_id = choose_id(fields, exchange.request_id)
    constraint = read_constraint(fields, exchange.ignored)
    model = await service.catalog.resolve(fields.model)
    fill_in = require_fill_in(model, "input_prefix")
    size = len(fields.input_prefix) + len(fields.prompt) + len(fields.input_suffix)
    size += sum(len(each.text) for each in fields.input_extra)
    max_tokens = fields.max_tokens or (None if fields.n_predict < 0 else fields.n_predict)

    def encode() -> list[int]:
        check_length(fields, model, size, max_tokens, "input_prefix")
        check_encoded(size, "input_prefix", "with the other texts ")
        return encode_infill(fields, model.text, fill_in)

    prompt = await service.do_text_work(size, encode)
    if fields.dry_multiplier:  # its breakers are looked for in every token
        await service.do_text_work(model.info.vocab_size, lambda: model.text.piece_search)
    grammar = None
    if constraint is not None:
        given = constraint
        grammar = await service.do_text_work(given.num_characters, lambda: compile_constraint(given))
    fields.stop_token_ids = list(dict.fromkeys([*fields.stop_token_ids, *fill_in.ends]))
    job = make_job(
        fields,
        model,
        service.config,
        (tuple(prompt),),
        max_tokens=max_tokens,
        num_top_logprobs=None,
        param="input_prefix",
        label=exchange.request_id,
        grammar=grammar,
    )
    job = attrs.evolve(job, has_timings=True)  # editors show them
    return job, InfillShape(job)


def encode_infill(fields: InfillFields, text: TextModel, fill_in: FillIn) -> list[int]:
    """The prompt in tokens: other files first, then the text with the hole."""

    def encode(given: str) -> list[int]:
        return text.encode(given, add_special_tokens=False) if given else []

    extra: list[int] = []
    if fields.input_extra and fill_in.repository is not None:
        extra += [fill_in.repository, *encode(PROJECT)]
    for each in fields.input_extra:
        if fill_in.file is not None:
            extra += [fill_in.file, *encode(f"{each.filename}\n"), *encode(each.text)]
        else:
            extra += encode(SNIPPET + each.text)
    if fields.input_extra and fill_in.file is not None:
        extra += [fill_in.file, *encode(HERE)]
    joined = fill_in.join(encode(fields.input_prefix + fields.prompt), encode(fields.input_suffix))
    return [*fill_in.start, *extra, *joined[len(fill_in.start) :]]
