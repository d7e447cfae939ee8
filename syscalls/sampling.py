"""How a process turns logits into tokens: part of its image, fixed at spawn, carried out by the driver."""

from __future__ import annotations

import msgspec

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """Sampling parameters. The sample at position p is a function of (logits, seed, p) and nothing else.

    Order of application: penalties and bias on the raw logits, then temperature, top-k, top-p, min-p.
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

    @property
    def has_penalties(self) -> bool:
        """True when the sampler needs counts of the tokens so far."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0

    def explain_invalid(self) -> str | None:
        """Return a sentence that names the first bad field and its limit, or None when all are valid."""
        biases = self.logit_bias.values()
        checks = (
            (0.0 <= self.temperature <= 2.0, "temperature", self.temperature, "0 to 2"),
            (self.top_k >= 0, "top_k", self.top_k, "0 (off) or more"),
            (0.0 < self.top_p <= 1.0, "top_p", self.top_p, "above 0, at most 1"),
            (0.0 <= self.min_p <= 1.0, "min_p", self.min_p, "0 to 1"),
            (0.0 < self.repetition_penalty <= 10.0, "repetition_penalty", self.repetition_penalty, "0 to 10"),
            (-2.0 <= self.frequency_penalty <= 2.0, "frequency_penalty", self.frequency_penalty, "-2 to 2"),
            (-2.0 <= self.presence_penalty <= 2.0, "presence_penalty", self.presence_penalty, "-2 to 2"),
            (len(biases) <= MAX_LOGIT_BIAS, "len(logit_bias)", len(biases), f"at most {MAX_LOGIT_BIAS}"),
            (all(-100.0 <= b <= 100.0 for b in biases), "logit_bias", list(biases), "-100 to 100"),
            (self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a signed 64-bit number"),
            (0 <= (self.logprobs or 0) <= MAX_LOGPROBS, "logprobs", self.logprobs, f"0 to {MAX_LOGPROBS}"),
        )
        for ok, name, value, limit in checks:
            if not ok:
                return f"{name} is {value}; the limit is {limit}"
        return None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one sampled position, from the raw model distribution."""

    logprob: float  # of the sampled token
    top_ids: tuple[int, ...] = ()  # most likely first
    top_logprobs: tuple[float, ...] = ()
