"""Page-table edits: they ride on the step that needs them, and take effect before its rows."""

from __future__ import annotations

import msgspec

from syscalls.embedding import Pooling
from syscalls.sampling import Sampling


class Reserve(msgspec.Struct, frozen=True, tag="reserve", array_like=True):
    """Open space `asid`; nothing is mapped yet."""

    asid: int


class Release(msgspec.Struct, frozen=True, tag="release", array_like=True):
    """Close space `asid`; its mappings, and what `Bind` said of it, end."""

    asid: int


class Map(msgspec.Struct, frozen=True, tag="map", array_like=True):
    """Back page `vpn` of a space by `pfns`, one frame for each segment; replaces what was mapped there.

    A map ahead is for a page that a later step will probably reach: the driver may carry it out beside its
    computation, and finishes it before a row that reaches the page. The kernel may give its frames to others
    without a word; before a row reaches the page, it is then mapped anew.
    """

    asid: int
    vpn: int
    pfns: tuple[int, ...]
    is_ahead: bool = False


class CopyPage(msgspec.Struct, frozen=True, tag="copy_page", array_like=True):
    """Copy frames, segment by segment: the copy of copy-on-write."""

    sources: tuple[int, ...]
    targets: tuple[int, ...]


class Bind(msgspec.Struct, frozen=True, tag="bind", array_like=True):
    """Set (or set again) how a space samples. Sent before its first sampling row.

    `tokens` is the whole history that is known when the edit is made, and `num_prompt_tokens` how much of it
    was prompt: the sampler's counts start from there and advance by what it samples and by the input tokens
    of later rows at positions >= len(tokens). While fewer than `min_tokens` tokens were sampled since
    `num_prompt_tokens`, the ids in `stop_token_ids` are never sampled. `mu` is what mirostat has come to: a
    process's own, from the last `StepDone` whose token the kernel has taken; None: nothing was sampled yet.

    With `pooling` the space samples nothing, and no history is told: its row with `pool` yields a vector. A
    mean goes on from `total`, the sum over the first `num_summed` positions as a `StepDone` told it: rows may
    compute those again, and then follow each other.

    The output follows `grammar`, the id of one that the device has compiled, and is where `tokens` behind the
    prompt have brought it; `sampling.grammar`, its text, is None here.
    """

    asid: int
    sampling: Sampling
    tokens: tuple[int, ...]
    num_prompt_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    mu: float | None = None
    pooling: Pooling | None = None
    num_summed: int = 0
    total: bytes = b""
    grammar: int | None = None


Edit = Reserve | Release | Map | CopyPage | Bind
