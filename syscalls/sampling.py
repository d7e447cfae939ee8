"""How a process turns logits into tokens: part of its image, fixed at spawn, carried out by the driver."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 1024
MAX_BREAKERS = 65_536
MAX_GRAMMAR_CHARACTERS = 1 << 20

CUTS = ("temperature", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc")
"""The steps that lead from scores to the tokens that may be drawn, in the order that they usually have."""

Limit = tuple[bool, str, object, str]  # is it kept, of what, its value, what is allowed


class Dry(msgspec.Struct, frozen=True, array_like=True):
    """Don't repeat yourself: a penalty on each token that would continue a repetition (p-e-w 2024).

    A token that followed an earlier occurrence of the last n tokens, n >= allowed_length at its longest,
    loses multiplier * base^(n - allowed_length).
    """

    multiplier: float
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = -1  # so many last tokens are looked at; -1: all
    breakers: tuple[int, ...] = ()  # no repetition reaches across these tokens, and they lose nothing

    def limits(self) -> Iterator[Limit]:
        """What each value may be."""
        yield 0 <= self.multiplier <= 100, "dry.multiplier", self.multiplier, "0 to 100"
        yield 1 <= self.base <= 100, "dry.base", self.base, "1 to 100"
        yield self.allowed_length >= 1, "dry.allowed_length", self.allowed_length, "1 or more"
        yield self.last_n >= -1, "dry.last_n", self.last_n, "-1 (all) or more"
        yield len(self.breakers) <= MAX_BREAKERS, "len(dry.breakers)", len(self.breakers), _most(MAX_BREAKERS)


class Xtc(msgspec.Struct, frozen=True, array_like=True):
    """Exclude top choices: at times, of the tokens over a threshold only the least likely stays (p-e-w 2024).

    Whether it happens at a position is a matter of the seed and the position alone.
    """

    probability: float
    threshold: float = 0.1

    def limits(self) -> Iterator[Limit]:
        """What each value may be."""
        yield 0 <= self.probability <= 1, "xtc.probability", self.probability, "0 to 1"
        yield 0 <= self.threshold <= 1, "xtc.threshold", self.threshold, "0 to 1"


class Dynatemp(msgspec.Struct, frozen=True, array_like=True):
    """A temperature between T - spread and T + spread, by how uncertain the model is (Zhu et al. 2024)."""

    spread: float
    exponent: float = 1.0

    def limits(self) -> Iterator[Limit]:
        """What each value may be."""
        yield 0 <= self.spread <= 2, "dynatemp.spread", self.spread, "0 to 2"
        yield 0 < self.exponent <= 10, "dynatemp.exponent", self.exponent, "above 0, at most 10"


class Mirostat(msgspec.Struct, frozen=True, array_like=True):
    """Instead of cuts, but the temperature: keep a text's surprise near tau bits (Basu et al. 2021).

    How surprised it has been so far is a number that travels with the process, `mu`.
    """

    version: int  # 1 or 2
    tau: float = 5.0
    eta: float = 0.1  # how fast it learns

    @property
    def first_mu(self) -> float:
        """Before the first token."""
        return 2 * self.tau

    def limits(self) -> Iterator[Limit]:
        """What each value may be."""
        yield self.version in (1, 2), "mirostat.version", self.version, "1 or 2"
        yield 0 <= self.tau <= 100, "mirostat.tau", self.tau, "0 to 100"
        yield 0 <= self.eta <= 10, "mirostat.eta", self.eta, "0 to 10"


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """Sampling parameters.

    The sample at position p is a function of the logits, the seed, p and the tokens before p; with `mirostat`
    also of the logits at earlier samples.

    Order of application: penalties, bias, DRY and what is not allowed on the raw logits, then the cuts.
    """

    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output; Keskar et al. 2019
    frequency_penalty: float = 0.0  # over output only
    presence_penalty: float = 0.0  # over output only
    logit_bias: dict[int, float] = {}
    seed: int | None = None  # None: the kernel draws one at spawn and records it
    logprobs: int | None = None  # k: of the sampled token and the k most likely, raw distribution; None: none
    typical_p: float = 1.0  # Meister et al. 2022
    top_n_sigma: float | None = None  # within so many standard deviations of the best; Tang et al. 2024
    repeat_last_n: int = -1  # the three penalties look at so many last tokens; -1: at all, 0: off
    dry: Dry | None = None
    xtc: Xtc | None = None
    dynatemp: Dynatemp | None = None
    mirostat: Mirostat | None = None
    cuts: tuple[str, ...] = CUTS  # which cuts are made, in this order
    bad_words: tuple[
        tuple[int, ...], ...
    ] = ()  # the last token of such a sequence does not follow the others
    allowed_token_ids: tuple[int, ...] = ()  # nothing else is sampled; empty: no limit
    processed_logprobs: bool = False  # of the distribution that is drawn from, not of the raw one
    prompt_logprobs: int | None = None  # k: of each token of the prompt but the first, as `logprobs`
    grammar: str | None = (
        None  # the output follows it, and ends only where it may; Lark as llguidance reads it
    )

    @property
    def has_penalties(self) -> bool:
        """True when the sampler needs counts of the tokens so far."""
        is_neutral = (
            self.repetition_penalty == 1.0 and self.frequency_penalty == 0.0 and self.presence_penalty == 0.0
        )
        return self.repeat_last_n != 0 and not is_neutral

    @property
    def needs_history(self) -> bool:
        """True when the sampler needs the tokens so far in their order."""
        is_windowed = self.has_penalties and self.repeat_last_n > 0
        return is_windowed or self.dry is not None or any(len(word) > 1 for word in self.bad_words)

    @property
    def token_ids(self) -> dict[str, set[int]]:
        """Every token that is named, by the field that names it."""
        return {
            "logit_bias": set(self.logit_bias),
            "allowed_token_ids": set(self.allowed_token_ids),
            "bad_words": {token for word in self.bad_words for token in word},
            "dry.breakers": set(self.dry.breakers) if self.dry is not None else set(),
        }

    def limits(self) -> Iterator[Limit]:
        """What each value may be."""
        biases = self.logit_bias.values()
        yield 0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "0 to 2"
        yield self.top_k >= 0, "top_k", self.top_k, "0 (off) or more"
        yield 0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0, at most 1"
        yield 0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "0 to 1"
        repetition = self.repetition_penalty
        yield 0.0 < repetition <= 10.0, "repetition_penalty", repetition, "0 to 10"
        yield -2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "-2 to 2"
        yield -2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "-2 to 2"
        yield len(biases) <= MAX_LOGIT_BIAS, "len(logit_bias)", len(biases), _most(MAX_LOGIT_BIAS)
        yield all(-100.0 <= b <= 100.0 for b in biases), "logit_bias", list(biases), "-100 to 100"
        yield self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a signed 64-bit number"
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            yield 0 <= (count or 0) <= MAX_LOGPROBS, name, count, f"0 to {MAX_LOGPROBS}"
        yield 0.0 < self.typical_p <= 1.0, "typical_p", self.typical_p, "above 0, at most 1"
        sigma = self.top_n_sigma
        yield sigma is None or 0.0 < sigma <= 1000.0, "top_n_sigma", sigma, "above 0, at most 1000"
        yield self.repeat_last_n >= -1, "repeat_last_n", self.repeat_last_n, "-1 (all) or more"
        is_order = len(set(self.cuts)) == len(self.cuts) and set(self.cuts) <= set(CUTS)
        yield is_order, "cuts", list(self.cuts), f"each at most once of {', '.join(CUTS)}"
        length = len(self.grammar or "")
        yield length <= MAX_GRAMMAR_CHARACTERS, "len(grammar)", length, _most(MAX_GRAMMAR_CHARACTERS)
        alone = self.grammar is None or not self.allowed_token_ids
        yield alone, "allowed_token_ids", "given", "none beside a grammar"
        words = self.bad_words
        yield len(words) <= MAX_BAD_WORDS, "len(bad_words)", len(words), _most(MAX_BAD_WORDS)
        yield all(words), "bad_words", list(words), "at least one token each"
        for part in (self.dry, self.xtc, self.dynatemp, self.mirostat):
            if part is not None:
                yield from part.limits()

    def explain_invalid(self) -> str | None:
        """Return a sentence that names the first bad field and its limit, or None when all are valid."""
        for is_kept, name, value, limit in self.limits():
            if not is_kept:
                return f"{name} is {value}; the limit is {limit}"
        return None


def _most(count: int) -> str:
    return f"at most {count}"


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities at one position, from the raw model distribution unless asked for otherwise."""

    logprob: float  # of the token there
    top_ids: tuple[int, ...] = ()  # most likely first
    top_logprobs: tuple[float, ...] = ()
    rank: int = 0  # of a token of the prompt: 1 is the most likely; 0: not told
