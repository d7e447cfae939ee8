"""How tokens are chosen: a body's fields, else the model's own defaults, in the kernel's terms."""

from __future__ import annotations

from shell.gateway.catalog import ServedModel
from shell.gateway.config import SamplingDefaults
from shell.gateway.errors import invalid, invalid_value
from shell.gateway.sampler_fields import read_samplers
from shell.gateway.shared_fields import SharedFields
from syscalls.sampling import MAX_LOGIT_BIAS, Sampling


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
