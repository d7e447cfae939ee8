"""Log-probabilities in the two forms of the API: objects for chat, parallel lists for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shell.gateway.choice import TokenEntry
from syscalls.sampling import TokenLogprobs
from syscalls.text.tokenizer import TextModel

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; clients know this value


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def _spell(text: TextModel, token: int, as_ids: bool) -> tuple[str, bytes]:
    raw = text.token_bytes(token)
    return f"token_id:{token}" if as_ids else raw.decode("utf-8", "replace"), raw


def _chat_row(text: TextModel, token: int, logprob: float, as_ids: bool) -> dict[str, Any]:
    spelled, raw = _spell(text, token, as_ids)
    return {"token": spelled, "logprob": _finite(logprob), "bytes": list(raw)}


def chat_logprobs(
    text: TextModel, entries: Sequence[TokenEntry], num_top: int, as_ids: bool = False
) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice.

    Args:
        text: spells the tokens.
        entries: in order, each with its log-probabilities.
        num_top: how many alternatives to show for each.
        as_ids: tokens are "token_id:5" instead of their text, so that those with equal text differ.
    """
    rows = []
    for entry in entries:
        found = entry.logprobs
        assert found is not None  # asked for at spawn, so the kernel sends one for each token
        row = _chat_row(text, entry.token, found.logprob, as_ids)
        pairs = list(zip(found.top_ids, found.top_logprobs, strict=True))[:num_top]
        row["top_logprobs"] = [_chat_row(text, token, logprob, as_ids) for token, logprob in pairs]
        rows.append(row)
    return {"content": rows}


def completion_logprobs(
    text: TextModel, entries: Sequence[TokenEntry], num_top: int, as_ids: bool = False
) -> dict[str, Any]:
    """Return the `logprobs` object of a text completion choice.

    The token itself is always among the alternatives, with the identical number; of tokens with equal text
    the larger value is kept.

    Args:
        text: spells the tokens.
        entries: in order; the first of an echoed prompt has no log-probabilities, which shows as null.
        num_top: alternatives beside the token itself.
        as_ids: as for chat.
    """
    tokens: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        found = entry.logprobs
        spelled, _ = _spell(text, entry.token, as_ids)
        tokens.append(spelled)
        if found is None:
            values.append(None)
            tops.append(None)
            continue
        own = _finite(found.logprob)
        top: dict[str, float] = {}
        for token, logprob in list(zip(found.top_ids, found.top_logprobs, strict=True))[:num_top]:
            other, _ = _spell(text, token, as_ids)
            top[other] = max(_finite(logprob), top.get(other, -math.inf))
        top[spelled] = max(own, top.get(spelled, -math.inf))
        values.append(own)
        tops.append(top)
    offsets = [entry.start for entry in entries]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def prompt_entries(
    text: TextModel, prompt: Sequence[int], scores: Sequence[TokenLogprobs], skip_special_tokens: bool
) -> list[TokenEntry]:
    """Return a prompt's tokens as entries of the text that repeats it; the first has no log-probabilities."""
    entries = []
    start = 0
    pieces = text.decoder(skip_special_tokens).push_each(prompt)
    for token, piece, found in zip(prompt, pieces, (None, *scores), strict=True):
        entries.append(TokenEntry(token, start, found))
        start += len(piece)
    return entries


def prompt_logprobs(
    text: TextModel, prompt: Sequence[int], scores: Sequence[TokenLogprobs], num_top: int
) -> list[dict[str, Any] | None]:
    """Return vLLM's `prompt_logprobs`: for each token an object by token id; null for the first."""
    rows: list[dict[str, Any] | None] = [None]
    for token, found in zip(prompt[1:], scores, strict=True):
        pairs = list(zip(found.top_ids, found.top_logprobs, strict=True))[:num_top]
        ranked = {other: (logprob, rank) for rank, (other, logprob) in enumerate(pairs, 1)}
        ranked[token] = (found.logprob, found.rank)
        rows.append({str(other): {
            "logprob": _finite(logprob), "rank": rank, "decoded_token": _spell(text, other, False)[0],
        } for other, (logprob, rank) in ranked.items()})  # fmt: skip
    return rows
