"""Fields of samplers beyond OpenAI's, by vLLM's, SGLang's and llama.cpp's names, in the kernel's terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from shell.gateway.catalog import ServedModel
from shell.gateway.errors import invalid_value, unsupported
from syscalls.sampling import CUTS, MAX_BAD_WORDS, MAX_BREAKERS, Dry, Dynatemp, Mirostat, Xtc
from syscalls.text.tokenizer import TextModel

DEFAULT_BREAKERS = ("\n", ":", '"', "*")  # llama.cpp's
MAX_BREAKER_STRINGS = 32

# llama.cpp's names of what `samplers` orders, and its letters for them.
PENALTIES = ("penalties", "dry")
SAMPLER_NAMES = {**{name: name for name in (*PENALTIES, *CUTS)}, "typ_p": "typical_p"}
SAMPLER_LETTERS = {
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typical_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature",
}  # fmt: skip

SAMPLER_FIELDS = (
    "typical_p", "top_n_sigma", "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length",
    "dry_penalty_last_n", "dry_sequence_breakers", "xtc_probability", "xtc_threshold", "dynatemp_range",
    "dynatemp_exponent", "mirostat", "mirostat_tau", "mirostat_eta", "samplers", "bad_words",
    "allowed_token_ids", "logprobs_mode",
)  # fmt: skip

Word = Annotated[str, Meta(min_length=1, max_length=1000)]


class SamplerFields(msgspec.Struct, kw_only=True):
    """Body fields of the samplers; the defaults ask for nothing."""

    typical_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_n_sigma: Annotated[float, Meta(ge=-1, le=1000)] = -1.0  # 0 or less: off
    repeat_last_n: Annotated[int, Meta(ge=-1)] = -1
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] = 0.0  # 0: off
    dry_base: Annotated[float, Meta(ge=1, le=100)] = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=1)] = 2
    dry_penalty_last_n: Annotated[int, Meta(ge=-1)] = -1  # 0: off
    dry_sequence_breakers: Annotated[list[Word], Meta(max_length=MAX_BREAKER_STRINGS)] = msgspec.field(
        default_factory=lambda: list(DEFAULT_BREAKERS)
    )
    xtc_probability: Annotated[float, Meta(ge=0, le=1)] = 0.0  # 0: off
    xtc_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.1
    dynatemp_range: Annotated[float, Meta(ge=0, le=2)] = 0.0  # 0: off
    dynatemp_exponent: Annotated[float, Meta(gt=0, le=10)] = 1.0
    mirostat: Annotated[int, Meta(ge=0, le=2)] = 0  # 0: off
    mirostat_tau: Annotated[float, Meta(ge=0, le=100)] = 5.0
    mirostat_eta: Annotated[float, Meta(ge=0, le=10)] = 0.1
    samplers: list[str] | str = []
    bad_words: Annotated[list[Word], Meta(max_length=MAX_BAD_WORDS // 2)] = []
    allowed_token_ids: list[Annotated[int, Meta(ge=0, le=2**31 - 1)]] = []
    logprobs_mode: Literal["raw", "raw_logprobs", "processed", "processed_logprobs"] = "raw"


def list_replaced(fields: SamplerFields, given: dict[str, Any]) -> list[str]:
    """Fields of a body that have no effect because mirostat takes the place of all cuts, as in llama.cpp."""
    if not fields.mirostat:
        return []
    replaced = {*CUTS[1:], "xtc_probability", "xtc_threshold", "samplers"}
    return [name for name in given if name in replaced]


def read_samplers(fields: SamplerFields, model: ServedModel) -> dict[str, Any]:
    """Return the fields of `Sampling` that these body fields set.

    Raises:
        ApiError: 400, naming the field.
    """
    vocab_size = model.info.vocab_size
    if fields.allowed_token_ids and max(fields.allowed_token_ids) >= vocab_size:
        message = f"'allowed_token_ids' holds a token id over {vocab_size - 1}, the model's last."
        raise invalid_value("allowed_token_ids", message)
    order = _read_order(fields)
    has = {name: name in order for name in PENALTIES}
    wants_dry = has["dry"] and fields.dry_multiplier > 0 and fields.dry_penalty_last_n != 0
    return {
        "typical_p": fields.typical_p,
        "top_n_sigma": fields.top_n_sigma if fields.top_n_sigma > 0 else None,
        "repeat_last_n": fields.repeat_last_n if has["penalties"] else 0,
        "dry": _read_dry(fields, model.text) if wants_dry else None,
        "xtc": Xtc(fields.xtc_probability, fields.xtc_threshold) if fields.xtc_probability else None,
        "dynatemp": Dynatemp(fields.dynatemp_range, fields.dynatemp_exponent)
        if fields.dynatemp_range
        else None,
        "mirostat": Mirostat(fields.mirostat, fields.mirostat_tau, fields.mirostat_eta)
        if fields.mirostat
        else None,
        "cuts": tuple(name for name in order if name in CUTS),
        "bad_words": _read_bad_words(fields.bad_words, model.text),
        "allowed_token_ids": tuple(dict.fromkeys(fields.allowed_token_ids)),
        "processed_logprobs": fields.logprobs_mode.startswith("processed"),
    }


def _read_order(fields: SamplerFields) -> tuple[str, ...]:
    """The names of all steps that are made, in order: those of `samplers`, or all in the usual one."""
    given = fields.samplers
    if not given:
        return (*PENALTIES, *CUTS)
    known = SAMPLER_LETTERS if isinstance(given, str) else SAMPLER_NAMES
    order = []
    for name in given:
        if name not in known:
            message = f"'samplers' has '{name[:40]}', which is none of {', '.join(known)}."
            raise invalid_value("samplers", message)
        order.append(known[name])
    if len(set(order)) < len(order):
        raise invalid_value("samplers", "'samplers' names one of them twice.")
    penalties = [name for name in order if name in PENALTIES]
    if order[: len(penalties)] != penalties or penalties == ["dry", "penalties"]:
        raise unsupported("samplers", " that does not begin with 'penalties', then 'dry', where it has them")
    return tuple(order)


def _read_dry(fields: SamplerFields, text: TextModel) -> Dry:
    breakers: set[int] = set()
    for index, word in enumerate(fields.dry_sequence_breakers):
        if not (found := text.piece_search.find(word)):
            where = f"dry_sequence_breakers[{index}]"
            raise invalid_value(where, f"'{where}' is part of no single token of this model.")
        breakers.update(found)
    if len(breakers) > MAX_BREAKERS:
        message = f"'dry_sequence_breakers' are in {len(breakers)} tokens; the limit is {MAX_BREAKERS}."
        raise invalid_value("dry_sequence_breakers", message)
    return Dry(
        multiplier=fields.dry_multiplier,
        base=fields.dry_base,
        allowed_length=fields.dry_allowed_length,
        last_n=fields.dry_penalty_last_n,
        breakers=tuple(sorted(breakers)),
    )


def _read_bad_words(words: list[str], text: TextModel) -> tuple[tuple[int, ...], ...]:
    """The token sequences of words, at the beginning of a text and behind a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for spelling in (word, f" {word.lstrip()}"):
            if ids := tuple(text.encode(spelling, add_special_tokens=False)):
                found[ids] = None
    return tuple(found)
