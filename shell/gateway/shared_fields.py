"""Fields that chat and text completions share: what happens to each, and the struct they become."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from shell.gateway.constraints import CONSTRAINT_FIELDS, ConstraintFields
from shell.gateway.errors import invalid_value
from shell.gateway.fields import FieldTable, accepted, convert, implemented, refused, take_fields
from shell.gateway.sampler_fields import SAMPLER_FIELDS, list_replaced
from syscalls.process import MAX_SAMPLES
from syscalls.sampling import MAX_LOGPROBS

MAX_STOP_STRINGS = 32

T = TypeVar("T", bound="SharedFields")

SHARED_FIELDS: FieldTable = {
    **implemented(
        "model", "n", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
        "frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty", "logit_bias", "seed",
        "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
        "no_stop_trim", "skip_special_tokens", "add_special_tokens", "return_token_ids", "return_token_times",
        "logprobs", "priority", "request_id", "rid", "cache_salt", "cache_prompt", "t_max_predict_ms",
        "deadline_ms", "timings_per_token", "prompt_logprobs", "return_tokens_as_token_ids",
        "truncate_prompt_tokens", "return_progress", "pin_ttl_s", "user",
        *SAMPLER_FIELDS, *CONSTRAINT_FIELDS,
    ),
    **accepted(
        "metadata", "store", "service_tier", "safety_identifier",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",  # the cache needs no hints
        "spaces_between_special_tokens",  # no tokenizer of ours puts any there
    ),
    **refused(
        documents=([],), chat_template=(),
        lora=([],), lora_path=(), speculative=({},),
        use_beam_search=False, length_penalty=1.0, early_stopping=False,
        moderation=(), structural_tag=(), guided_json_object=False, guided_whitespace_pattern=(),
    ),
}  # fmt: skip

Text = Annotated[str, Meta(min_length=1)]
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}\Z")]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class StreamOptions(msgspec.Struct, kw_only=True):
    """The `stream_options` object."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


STREAM_OPTIONS_FIELDS: FieldTable = {
    **implemented("include_usage", "continuous_usage_stats"),
    **accepted("include_obfuscation"),  # padding against traffic analysis by the reference API; we never pad
}


class SharedFields(ConstraintFields, msgspec.Struct, kw_only=True):
    """Common body fields. None is absent."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_SAMPLES)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] = {}
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    stop: str | Annotated[list[Text], Meta(max_length=MAX_STOP_STRINGS)] = []
    stop_token_ids: list[TokenId] = []
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    add_special_tokens: bool | None = None
    return_token_ids: bool = False
    return_token_times: bool = False
    priority: Annotated[int, Meta(ge=-20, le=19)] = 0
    deadline_ms: Annotated[float, Meta(gt=0, le=1e12)] | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
    cache_salt: Annotated[str, Meta(max_length=200)] = ""
    cache_prompt: bool = True
    pin_ttl_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    t_max_predict_ms: Annotated[float, Meta(ge=-1, le=1e12)] = -1.0  # 0 or less: no limit
    timings_per_token: bool = False
    return_progress: bool = False
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # -1: to what fits
    user: Any = None  # see users.py


def take_shared_fields(body: dict[str, Any], table: FieldTable, ignored: list[str]) -> dict[str, Any]:
    """`take_fields` of a body, and of its `stream_options`. Raises ApiError 400."""
    taken = take_fields(body, table, ignored)
    if isinstance(options := taken.get("stream_options"), dict):
        taken["stream_options"] = take_fields(options, STREAM_OPTIONS_FIELDS, ignored, "stream_options")
    return taken


def convert_shared_fields(taken: dict[str, Any], to: type[T], ignored: list[str]) -> T:
    """What was taken, as a struct. Raises ApiError 400.

    Args:
        taken: by `take_shared_fields`.
        to: the struct.
        ignored: gets the fields that others took the place of.
    """
    fields = convert(taken, to)
    ignored += list_replaced(fields, taken)
    if fields.stream_options is not None and not fields.stream:
        message = "'stream_options' is only allowed when 'stream' is true."
        raise invalid_value("stream_options", message)
    return fields


def choose_id(fields: SharedFields, otherwise: str) -> str:
    """The request's id: the body's, else the one from its headers. Raises ApiError 400."""
    if fields.rid is not None and fields.request_id not in (None, fields.rid):
        raise invalid_value("rid", "'request_id' and 'rid' are the same thing with two values.")
    return fields.request_id or fields.rid or otherwise
