"""Fields that chat and text completions share: table, struct, and what they mean to the kernel."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import attrs
import msgspec
from msgspec import Meta

from shell.gateway.catalog import ServedModel
from shell.gateway.config import GatewayConfig, SamplingDefaults
from shell.gateway.constraints import CONSTRAINT_FIELDS, ConstraintFields
from shell.gateway.errors import context_length_exceeded, invalid, invalid_value
from shell.gateway.fields import FieldTable, accepted, implemented, refused
from shell.gateway.reader import PLAIN_TEXT, Reading
from shell.gateway.sampler_fields import SAMPLER_FIELDS, read_samplers
from syscalls.process import MAX_SAMPLES
from syscalls.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, Sampling
from syscalls.session import SpawnOptions

MAX_STOP_STRINGS = 32
CUT = "with 'truncate_prompt_tokens' "
MAX_ENCODED_CHARACTERS = 4 << 20  # of a text that no context bounds: encoding takes 60 times as many bytes

SHARED_FIELDS: FieldTable = {
    **implemented(
        "model", "n", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p",
        "frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty", "logit_bias", "seed",
        "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output",
        "no_stop_trim", "skip_special_tokens", "add_special_tokens", "return_token_ids", "return_token_times",
        "logprobs", "priority", "request_id", "rid", "cache_salt", "cache_prompt", "t_max_predict_ms",
        "deadline_ms", "timings_per_token", "prompt_logprobs", "return_tokens_as_token_ids",
        "truncate_prompt_tokens",
        *SAMPLER_FIELDS, *CONSTRAINT_FIELDS,
    ),
    **accepted(
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "spaces_between_special_tokens",  # no tokenizer of ours puts any there
    ),
    **refused(
        documents=([],), chat_template=(),
        return_progress=False, lora=([],), lora_path=(), speculative=({},),
        pin_ttl_s=0, use_beam_search=False, length_penalty=1.0, early_stopping=False,
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
    t_max_predict_ms: Annotated[float, Meta(ge=-1, le=1e12)] = -1.0  # 0 or less: no limit
    timings_per_token: bool = False
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_tokens_as_token_ids: bool = False
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # -1: to what fits


@attrs.frozen(kw_only=True, eq=False)
class Job:
    """What to generate, all checked: one prompt or several, `num_samples` processes for each.

    `num_choices` of them are shown, the likeliest ones.
    """

    model: ServedModel
    prompts: tuple[tuple[int, ...], ...]
    spawn: SpawnOptions
    num_samples: int
    num_choices: int
    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    reading: Reading  # thoughts and calls in the text
    num_top_logprobs: int | None  # None: no log-probabilities
    num_prompt_logprobs: int | None  # asked for by `prompt_logprobs`; None: it was not
    tokens_as_ids: bool  # in log-probabilities
    return_token_ids: bool
    return_token_times: bool
    max_predict_seconds: float | None  # from a choice's first token on, once it has a line; None: no limit
    has_timings: bool
    stream: bool
    include_usage: bool  # a usage chunk at the end of a stream
    continuous_usage: bool  # usage on every chunk


def read_stream_options(given: Any, is_streaming: bool) -> None:
    """Check that `stream_options` came with `stream`. Raises ApiError 400."""
    if given is not None and not is_streaming:
        message = "'stream_options' is only allowed when 'stream' is true."
        raise invalid_value("stream_options", message)


def _read_stops(fields: SharedFields) -> tuple[str, ...]:
    # An empty string, or an empty list, is what clients send for "no stop string".
    return (fields.stop,) if isinstance(fields.stop, str) and fields.stop else tuple(fields.stop)


def _read_logit_bias(fields: SharedFields, vocab_size: int) -> dict[int, float]:
    if len(fields.logit_bias) > MAX_LOGIT_BIAS:
        raise invalid_value("logit_bias", f"'logit_bias' has more than {MAX_LOGIT_BIAS} entries.")
    bias = {}
    for name, value in fields.logit_bias.items():
        if not (name.isascii() and name.isdecimal() and int(name) < vocab_size):
            message = (
                f"'logit_bias' has the key '{name[:40]}', which is no token id from 0 to {vocab_size - 1}."
            )
            raise invalid_value("logit_bias", message)
        bias[int(name)] = value
    return bias


def _read_repetition_penalty(fields: SharedFields) -> float | None:
    one, other = fields.repetition_penalty, fields.repeat_penalty
    if one is not None and other is not None and one != other:
        message = "'repetition_penalty' and 'repeat_penalty' are the same thing with two values."
        raise invalid_value("repeat_penalty", message)
    return one if one is not None else other


def make_sampling(
    fields: SharedFields,
    model: ServedModel,
    defaults: SamplingDefaults,
    num_top_logprobs: int | None,
    num_prompt_logprobs: int | None = None,
    grammar: str | None = None,
) -> Sampling:
    """Resolve the sampling parameters: the body's, else the model's, else OpenAI's.

    Raises:
        ApiError: 400, naming the field.
    """
    of_model = model.sampling_defaults if defaults is SamplingDefaults.MODEL else {}

    def choose(given: float | None, name: str, otherwise: float) -> float:
        return given if given is not None else of_model.get(name, otherwise)

    sampling = Sampling(
        temperature=choose(fields.temperature, "temperature", 1.0),
        top_k=max(0, int(choose(fields.top_k, "top_k", 0))),
        top_p=choose(fields.top_p, "top_p", 1.0),
        min_p=choose(fields.min_p, "min_p", 0.0),
        repetition_penalty=choose(_read_repetition_penalty(fields), "repetition_penalty", 1.0),
        frequency_penalty=fields.frequency_penalty,
        presence_penalty=fields.presence_penalty,
        logit_bias=_read_logit_bias(fields, model.info.vocab_size),
        seed=fields.seed,
        logprobs=num_top_logprobs,
        prompt_logprobs=num_prompt_logprobs,
        grammar=grammar,
        **read_samplers(fields, model),
    )
    if complaint := sampling.explain_invalid():
        raise invalid("invalid_value", f"Invalid sampling parameters: {complaint}.")
    return sampling


def check_context(model: ServedModel, num_prompt: int, max_tokens: int | None, param: str) -> None:
    """Check that the prompt and what is asked for fit. Raises ApiError 400 `context_length_exceeded`."""
    limit = model.info.max_model_len
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt + wanted > limit:
        raise context_length_exceeded(limit, num_prompt, wanted, param)


def check_encoded(num_characters: int, param: str, when: str = "") -> None:
    """Check that texts together are not too long to be encoded whole. Raises ApiError 400 `invalid_value`."""
    if num_characters > MAX_ENCODED_CHARACTERS:
        limit = f"{when}at most {MAX_ENCODED_CHARACTERS} are encoded"
        raise invalid_value(param, f"'{param}' has {num_characters} characters; {limit}.")


def check_length(
    fields: SharedFields, model: ServedModel, num_characters: int, max_tokens: int | None, param: str
) -> None:
    """Check that a text can fit, by the fewest tokens that it may have.

    To encode 64 MiB takes gigabytes and seconds, and what is far too long is to cost others neither. A text
    that is cut to its last tokens must be encoded from its start, so there its length has a limit of its own.

    Raises:
        ApiError: 400 `context_length_exceeded`; 400 `invalid_value` for a text that is too long to be cut.
    """
    if fields.truncate_prompt_tokens is not None:
        check_encoded(num_characters, param, CUT)
    elif num_characters > model.info.max_model_len:
        check_context(model, num_characters // model.text.longest_piece, max_tokens, param)


def _read_salt(fields: SharedFields) -> str:
    # One that nobody else has, for a prompt that shall not be found, nor be left for others to find.
    return fields.cache_salt if fields.cache_prompt else f"{fields.cache_salt}:{secrets.token_hex(16)}"


def choose_id(fields: SharedFields, otherwise: str) -> str:
    """The request's id: the body's, else the one from its headers. Raises ApiError 400."""
    if fields.rid is not None and fields.request_id not in (None, fields.rid):
        raise invalid_value("rid", "'request_id' and 'rid' are the same thing with two values.")
    return fields.request_id or fields.rid or otherwise


def truncate(
    prompt: tuple[int, ...], fields: SharedFields, model: ServedModel, max_tokens: int | None
) -> tuple[int, ...]:
    """The last tokens of a prompt, as `truncate_prompt_tokens` says. Raises ApiError 400."""
    count = fields.truncate_prompt_tokens
    if count is None:
        return prompt
    if count == 0:
        raise invalid_value("truncate_prompt_tokens", "'truncate_prompt_tokens' is 0: nothing would be left.")
    if count < 0:
        count = max(1, model.info.max_model_len - (1 if max_tokens is None else max_tokens))
    return prompt[len(prompt) - count :] if count < len(prompt) else prompt


def make_job(
    fields: SharedFields,
    model: ServedModel,
    config: GatewayConfig,
    prompts: tuple[tuple[int, ...], ...],
    *,
    max_tokens: int | None,
    num_top_logprobs: int | None,
    param: str,
    label: str,
    num_samples: int | None = None,
    is_echo_scored: bool = False,
    reading: Reading = PLAIN_TEXT,
    grammar: str | None = None,
) -> Job:
    """Check what the fields mean together, and put it into the kernel's terms.

    Args:
        fields: the decoded body.
        model: who will serve it.
        config: says where absent sampling parameters come from, and which priority wins.
        prompts: token ids.
        max_tokens: for each choice; None: up to the context.
        num_top_logprobs: for each token; None: none wanted.
        param: the field that held the prompt, for errors.
        label: shown by ps.
        num_samples: for each prompt, of which `fields.n` are shown; None: all are.
        is_echo_scored: the log-probabilities are wanted of the prompts too.
        reading: what to look for in the text.
        grammar: that the output follows; None: it is free.

    Raises:
        ApiError: 400, naming the field.
    """
    prompts = tuple(truncate(prompt, fields, model, max_tokens) for prompt in prompts)
    num_samples = num_samples or fields.n
    sampled_logprobs, prompt_logprobs = num_top_logprobs, fields.prompt_logprobs
    if num_samples > fields.n and sampled_logprobs is None:
        sampled_logprobs = 0  # they are chosen by it
    if is_echo_scored:
        prompt_logprobs = max(num_top_logprobs or 0, prompt_logprobs or 0)
    if fields.prompt_logprobs is not None and fields.stream:
        raise invalid_value("prompt_logprobs", "'prompt_logprobs' is not for streams.")
    for index, prompt in enumerate(prompts):
        where = param if len(prompts) == 1 else f"{param}[{index}]"
        if not prompt:
            raise invalid_value(where, f"'{where}' is empty: a prompt needs at least one token.")
        if max(prompt) >= model.info.vocab_size:
            message = f"'{where}' holds a token id over {model.info.vocab_size - 1}, the model's last."
            raise invalid_value(where, message)
        check_context(model, len(prompt), max_tokens, param)
    if max_tokens is not None and fields.min_tokens > max_tokens:
        raise invalid_value(
            "min_tokens", f"'min_tokens' is {fields.min_tokens}, over 'max_tokens' {max_tokens}."
        )
    options = fields.stream_options or StreamOptions()
    return Job(
        model=model,
        prompts=prompts,
        spawn=SpawnOptions(
            model=model.info.name,
            max_tokens=max_tokens,
            sampling=make_sampling(
                fields, model, config.sampling_defaults, sampled_logprobs, prompt_logprobs, grammar
            ),
            num_samples=num_samples,
            stop_token_ids=tuple(fields.stop_token_ids),
            ignore_eos=fields.ignore_eos,
            min_tokens=fields.min_tokens,
            auto_reap=True,
            nice=config.nice_of(fields.priority),
            label=label,
            cache_salt=_read_salt(fields),
            token_times=fields.return_token_times,
            deadline_seconds=None if fields.deadline_ms is None else fields.deadline_ms / 1000,
        ),
        num_samples=num_samples,
        num_choices=fields.n,
        stops=_read_stops(fields),
        include_stop=fields.include_stop_str_in_output or fields.no_stop_trim,
        skip_special_tokens=fields.skip_special_tokens,
        reading=reading,
        num_top_logprobs=num_top_logprobs,
        num_prompt_logprobs=fields.prompt_logprobs,
        tokens_as_ids=fields.return_tokens_as_token_ids,
        return_token_ids=fields.return_token_ids,
        return_token_times=fields.return_token_times,
        max_predict_seconds=fields.t_max_predict_ms / 1000 if fields.t_max_predict_ms > 0 else None,
        has_timings=fields.timings_per_token,
        stream=fields.stream,
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
    )
