"""What to generate, all checked, in the kernel's terms."""

from __future__ import annotations

import secrets

import attrs

from shell.gateway.catalog import ServedModel
from shell.gateway.config import GatewayConfig
from shell.gateway.errors import invalid_value
from shell.gateway.prompt_length import check_context, truncate
from shell.gateway.reader import PLAIN_TEXT, Reading
from shell.gateway.sampling import make_sampling
from shell.gateway.shared_fields import SharedFields, StreamOptions
from shell.gateway.users import read_user
from syscalls.session import SpawnOptions


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
    has_progress: bool  # of the prompt, in a stream
    stream: bool
    include_usage: bool  # a usage chunk at the end of a stream
    continuous_usage: bool  # usage on every chunk


def _read_stops(fields: SharedFields) -> tuple[str, ...]:
    # An empty string, or an empty list, is what clients send for "no stop string".
    return (fields.stop,) if isinstance(fields.stop, str) and fields.stop else tuple(fields.stop)


def _read_salt(fields: SharedFields) -> str:
    # One that nobody else has, for a prompt that shall not be found, nor be left for others to find.
    return fields.cache_salt if fields.cache_prompt else f"{fields.cache_salt}:{secrets.token_hex(16)}"


def _check_fields(fields: SharedFields, max_tokens: int | None) -> None:
    """Raise ApiError where two fields contradict each other."""
    if fields.prompt_logprobs is not None and fields.stream:
        raise invalid_value("prompt_logprobs", "'prompt_logprobs' is not for streams.")
    if fields.return_progress and not fields.stream:
        raise invalid_value("return_progress", "'return_progress' is only for streams.")
    if fields.pin_ttl_s and not fields.cache_prompt:
        raise invalid_value("pin_ttl_s", "'pin_ttl_s' is given; with 'cache_prompt' false nothing is kept.")
    if max_tokens is not None and fields.min_tokens > max_tokens:
        message = f"'min_tokens' is {fields.min_tokens}, over 'max_tokens' {max_tokens}."
        raise invalid_value("min_tokens", message)


def _check_prompts(
    prompts: tuple[tuple[int, ...], ...], model: ServedModel, max_tokens: int | None, param: str
) -> None:
    """Raise ApiError where a prompt is none, or does not fit the model."""
    for index, prompt in enumerate(prompts):
        where = param if len(prompts) == 1 else f"{param}[{index}]"
        if not prompt:
            raise invalid_value(where, f"'{where}' is empty: a prompt needs at least one token.")
        if max(prompt) >= model.info.vocab_size:
            message = f"'{where}' holds a token id over {model.info.vocab_size - 1}, the model's last."
            raise invalid_value(where, message)
        check_context(model, len(prompt), max_tokens, param)


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
    _check_fields(fields, max_tokens)
    _check_prompts(prompts, model, max_tokens, param)
    num_samples = num_samples or fields.n
    sampled_logprobs, prompt_logprobs = num_top_logprobs, fields.prompt_logprobs
    if num_samples > fields.n and sampled_logprobs is None:
        sampled_logprobs = 0  # they are chosen by it
    if is_echo_scored:
        prompt_logprobs = max(num_top_logprobs or 0, prompt_logprobs or 0)
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
            pin_seconds=fields.pin_ttl_s,
            user=read_user(fields.user, config.max_users),
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
        has_progress=fields.return_progress,
        stream=fields.stream,
        include_usage=options.include_usage,
        continuous_usage=options.continuous_usage_stats,
    )
