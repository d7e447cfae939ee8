"""From logits to a token on the CPU: native/cpu/sample.h for NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from attrs import evolve, field, frozen

from native._cpu import ffi, lib
from native.arrays import aligned_empty

__all__ = [
    "CUT_KINDS",
    "Choice",
    "Cut",
    "Draw",
    "MirostatDraw",
    "Tally",
    "Window",
    "bind_sample",
    "read_choice",
    "repeats",
    "sample",
    "survey",
    "write_draw",
]

Ids = npt.NDArray[np.int64]


def _no_ids() -> Ids:
    return np.empty(0, dtype=np.int64)


CUT_KINDS = {
    "temperature": lib.LLMOS_TEMPERATURE,
    "dynatemp": lib.LLMOS_DYNAMIC_TEMPERATURE,
    "top_n_sigma": lib.LLMOS_TOP_N_SIGMA,
    "top_k": lib.LLMOS_TOP_K,
    "typical_p": lib.LLMOS_TYPICAL_P,
    "top_p": lib.LLMOS_TOP_P,
    "min_p": lib.LLMOS_MIN_P,
    "xtc": lib.LLMOS_XTC,
}


class Cut(NamedTuple):
    """A step from scores to the tokens that may be drawn; `llmos_cut` of native/cpu/sample.h."""

    kind: str  # of CUT_KINDS
    value: float
    spread: float = 0.0
    exponent: float = 1.0


class Window(NamedTuple):
    """The last tokens that penalties are about, in order."""

    size: int  # at most so many
    num_prompt_tokens: int  # tokens at positions from here on are output
    tokens: npt.NDArray[np.int32]  # those of them that the host knows


class Tally(NamedTuple):
    """The tokens that a draw depends on, for a device that counts them, and what it draws, by itself."""

    owner: object  # it is the space's, until that is bound anew
    num_known: int  # tokens that the draw is about, as the host has it: one may be in flight besides
    position: int  # of the token that is to be drawn
    is_output: bool  # that it is counted as output
    window: Window | None = None  # None: penalties are about all tokens


class MirostatDraw(NamedTuple):
    """Mirostat at one position."""

    version: int
    tau: float
    eta: float
    mu: float
    tally: Tally | None = None  # None: `mu` is what it is, whatever was drawn meanwhile


@frozen(eq=False)
class Draw:
    """Everything besides its logits that a row's token depends on; arrays are contiguous.

    Order of application: what is allowed, penalties, bias and bans on the raw logits, then temperature,
    top-k, top-p, min-p; or where there are cuts those instead, and mirostat.
    """

    temperature: float = 0.0  # 0: the lowest id of the largest
    uniform: float = 0.0  # the random number, in [0, 1)
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seen_ids: Ids = field(factory=_no_ids)  # tokens that the penalties are about, each once
    num_output: Ids = field(factory=_no_ids)  # how often each of those is in the output
    bias_ids: Ids = field(factory=_no_ids)  # may name one several times: all are added
    bias_values: npt.NDArray[np.float64] = field(factory=lambda: np.empty(0))
    banned_ids: Ids = field(factory=_no_ids)
    num_top: int | None = None  # log-probabilities besides the token's own; None: none at all
    allowed_ids: Ids = field(factory=_no_ids)  # none: all are
    cuts: tuple[Cut, ...] | None = None  # instead of the four; None: the four
    mirostat: MirostatDraw | None = None  # takes cuts, if only ()
    is_processed: bool = False  # log-probabilities are of what is drawn from; takes cuts too
    given: int | None = None  # draw nothing: tell the log-probabilities and the rank of this token
    tally: Tally | None = None  # None: `seen_ids` are all there is to know of the tokens before

    @property
    def has_limits(self) -> bool:
        """True when some tokens are not allowed, or banned."""
        return len(self.banned_ids) + len(self.allowed_ids) > 0

    @property
    def is_scored(self) -> bool:
        """True when there are, or will be, penalties or a bias."""
        return self.tally is not None or len(self.seen_ids) + len(self.bias_ids) > 0

    @property
    def has_scores(self) -> bool:
        """True when it is drawn from other numbers than logits: penalties, a bias, or cuts of its own."""
        return self.is_scored or self.cuts is not None

    @property
    def is_adjusted(self) -> bool:
        """True when the token is drawn from other scores than the raw logits."""
        return len(self.seen_ids) + len(self.bias_ids) > 0 or self.has_limits

    @property
    def is_untold(self) -> bool:
        """True when a token is drawn, and no log-probabilities of raw logits are wanted."""
        return self.given is None and (self.num_top is None or self.is_processed)

    @property
    def untold(self) -> Draw:
        """The same without log-probabilities of raw logits: those are told of a token that was drawn."""
        return self if self.is_untold or self.given is not None else evolve(self, num_top=None)

    @property
    def has_more(self) -> bool:
        """True when more than a token comes of it: mirostat's mu, or log-probabilities of what is left."""
        return self.mirostat is not None or (self.is_processed and self.num_top is not None)

    @property
    def is_plain(self) -> bool:
        """True when it takes temperature, random number, top-k, top-p and min-p, and no more than logits."""
        return self.is_untold and not (self.has_scores or self.has_limits)

    @property
    def is_counted(self) -> bool:
        """True when it takes penalties for tokens before, and else what a plain one takes."""
        return (
            self.is_untold
            and self.is_scored
            and self.cuts is None
            and not (len(self.bias_ids) or self.has_limits)
        )


class Choice(NamedTuple):
    """What a row's logits came to."""

    token: int  # -1: no token is allowed
    num_bad: int = 0  # logits that are not finite; unless 0, the rest means nothing
    logprob: float = 0.0  # of the token, where log-probabilities were wanted
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    rank: int = 0  # of a given token: 1 is the best
    mu: float | None = None  # for the next draw, with mirostat


def write_draw(to: Any, draw: Draw, vocab_size: int) -> list[object]:
    """Fill an `llmos_draw` in; returns what has to stay alive as long as it is used."""
    to.temperature, to.uniform = draw.temperature, draw.uniform
    to.top_k, to.top_p, to.min_p = min(draw.top_k, vocab_size), draw.top_p, draw.min_p
    to.num_seen, to.num_bias = len(draw.seen_ids), len(draw.bias_ids)
    to.num_banned, to.num_allowed = len(draw.banned_ids), len(draw.allowed_ids)
    to.given = -1 if draw.given is None else draw.given
    if draw.is_adjusted:
        to.repetition_penalty = draw.repetition_penalty
        to.frequency_penalty, to.presence_penalty = draw.frequency_penalty, draw.presence_penalty
        to.seen_ids = ffi.cast("int64_t *", draw.seen_ids.ctypes.data)
        to.num_output = ffi.cast("int64_t *", draw.num_output.ctypes.data)
        to.bias_ids = ffi.cast("int64_t *", draw.bias_ids.ctypes.data)
        to.bias_values = ffi.cast("double *", draw.bias_values.ctypes.data)
        to.banned_ids = ffi.cast("int64_t *", draw.banned_ids.ctypes.data)
        to.allowed_ids = ffi.cast("int64_t *", draw.allowed_ids.ctypes.data)
    kept: list[object] = [draw]
    to.by_cuts = draw.cuts is not None
    if draw.cuts is not None:
        kept.append(_write_cuts(to, draw, draw.cuts))
    if draw.num_top is None and draw.given is None:
        to.num_top = -1
        return kept
    to.num_top = min(draw.num_top or 0, vocab_size)  # that of a given token is told in any case
    top_ids, top_logprobs = ffi.new("int32_t[]", to.num_top), ffi.new("double[]", to.num_top)
    to.top_ids, to.top_logprobs = top_ids, top_logprobs
    return [*kept, top_ids, top_logprobs]


def _write_cuts(to: Any, draw: Draw, cuts: tuple[Cut, ...]) -> object:
    to.is_processed, to.num_cuts = draw.is_processed, len(cuts)
    to.mirostat = 0
    if draw.mirostat is not None:
        to.mirostat, to.tau, to.eta, to.mu, _tally = draw.mirostat
    to.cuts = memory = ffi.new(
        "llmos_cut[]", [(CUT_KINDS[kind], value, spread, power) for kind, value, spread, power in cuts]
    )
    return memory


def read_choice(choice: Any, draw: Any | None) -> Choice:
    """What an `llmos_choice` says, drawn as the `llmos_draw` asked, or without one."""
    if draw is None or choice.num_bad or choice.token < 0:
        return Choice(choice.token, choice.num_bad)
    mu = choice.mu if draw.by_cuts and draw.mirostat else None
    if draw.num_top < 0:
        return Choice(choice.token, mu=mu)
    top_ids, top_logprobs = draw.top_ids[0 : choice.num_top], draw.top_logprobs[0 : choice.num_top]
    return Choice(choice.token, 0, choice.logprob, tuple(top_ids), tuple(top_logprobs), choice.rank, mu)


def repeats(tokens: npt.NDArray[np.int32], limit: int) -> npt.NDArray[np.int32]:
    """For each token, how many before it equal the last ones of all, up to a limit.

    Args:
        tokens: [n], contiguous.
        limit: at least 0.

    Returns:
        [n]: element i is the largest k <= limit with tokens[i - k:i] == tokens[n - k:n].

    Raises:
        ValueError: tokens are not contiguous int32.
    """
    if tokens.dtype != np.int32 or tokens.ndim != 1 or not tokens.flags.c_contiguous:
        raise ValueError(f"{tokens.dtype} of shape {tokens.shape} is not a row of int32")
    lengths = np.empty(len(tokens), dtype=np.int32)
    from_, to = (ffi.cast("int32_t *", array.ctypes.data) for array in (tokens, lengths))
    lib.llmos_repeats(from_, len(tokens), limit, to)
    return lengths


def sample(logits: npt.NDArray[np.float32], draw: Draw) -> Choice:
    """Draw a token from logits [vocab_size].

    The bits of the result are the same in every variant of the kernels.

    Raises:
        ValueError: logits are not contiguous fp32 of at least one token, an id is outside of them, or there
            is mirostat, or processed log-probabilities, without cuts.
    """
    return bind_sample(logits, draw)()


def bind_sample(logits: npt.NDArray[np.float32], draw: Draw) -> Callable[[], Choice]:
    """`sample` with its arguments checked and its memory there, to be called any number of times."""
    _check_logits(logits)
    for name, ids in (
        ("seen_ids", draw.seen_ids), ("bias_ids", draw.bias_ids), ("banned_ids", draw.banned_ids),
        ("allowed_ids", draw.allowed_ids), ("given", np.array(() if draw.given is None else (draw.given,))),
    ):  # fmt: skip
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(logits):
            raise ValueError(f"{name} from {ids.min()} to {ids.max()} in a vocabulary of {len(logits)}")
    if draw.cuts is None and (draw.mirostat is not None or draw.is_processed):
        raise ValueError("mirostat and processed log-probabilities take cuts, if only ()")
    request, choice = ffi.new("llmos_draw *"), ffi.new("llmos_choice *")
    scratch = aligned_empty(lib.llmos_sample_scratch_bytes(len(logits)))
    kept = (logits, scratch, write_draw(request, draw, len(logits)))
    pointer, memory = ffi.cast("float *", logits.ctypes.data), ffi.cast("void *", scratch.ctypes.data)

    def run(_kept: object = kept) -> Choice:
        lib.llmos_sample(pointer, len(logits), request, choice, memory)
        return read_choice(choice, request)

    return run


def survey(logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], int]:
    """The largest of each 64 logits, and how many are not finite; then the largest mean nothing.

    Raises:
        ValueError: logits are not contiguous fp32 of at least one token.
    """
    _check_logits(logits)
    surveyed = np.empty(-(-len(logits) // 64), dtype=np.float32)
    from_, to = (ffi.cast("float *", array.ctypes.data) for array in (logits, surveyed))
    return surveyed, lib.llmos_survey(from_, len(logits), to)


def _check_logits(logits: npt.NDArray[np.float32]) -> None:
    if logits.dtype != np.float32 or logits.ndim != 1 or not len(logits) or not logits.flags.c_contiguous:
        raise ValueError(f"{logits.dtype} of shape {logits.shape} is not a row of fp32")
