"""Log-probabilities in the two forms of the API: objects for chat, parallel lists for completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from shell.gateway.choice import TokenEntry
from syscalls.text.tokenizer import TextModel

LEAST_LOGPROB = -9999.0  # JSON has no minus infinity; clients know this value


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB


def _spell(text: TextModel, token: int) -> tuple[str, bytes]:
    raw = text.token_bytes(token)
    return raw.decode("utf-8", "replace"), raw


def _chat_row(text: TextModel, token: int, logprob: float) -> dict[str, Any]:
    spelled, raw = _spell(text, token)
    return {"token": spelled, "logprob": _finite(logprob), "bytes": list(raw)}


def chat_logprobs(text: TextModel, entries: Sequence[TokenEntry], num_top: int) -> dict[str, Any]:
    """Return the `logprobs` object of a chat choice.

    Args:
        text: spells the tokens.
        entries: in order, each with its log-probabilities.
        num_top: how many alternatives to show for each.
    """
    rows = []
    for entry in entries:
        found = entry.logprobs
        assert found is not None  # asked for at spawn, so the kernel sends one for each token
        row = _chat_row(text, entry.token, found.logprob)
        pairs = list(zip(found.top_ids, found.top_logprobs, strict=True))[:num_top]
        row["top_logprobs"] = [_chat_row(text, token, logprob) for token, logprob in pairs]
        rows.append(row)
    return {"content": rows}


def completion_logprobs(
    text: TextModel, entries: Sequence[TokenEntry], num_top: int, base_offset: int = 0
) -> dict[str, Any]:
    """Return the `logprobs` object of a text completion choice.

    The sampled token is always among the alternatives, with the identical number; of tokens with equal text
    the larger value is kept.

    Args:
        text: spells the tokens.
        entries: in order.
        num_top: alternatives beside the sampled token.
        base_offset: characters of the choice's text before its first generated one.
    """
    tokens, values, tops, offsets = [], [], [], []
    for entry in entries:
        found = entry.logprobs
        assert found is not None  # as above
        spelled, _ = _spell(text, entry.token)
        sampled = _finite(found.logprob)
        top: dict[str, float] = {}
        for token, logprob in list(zip(found.top_ids, found.top_logprobs, strict=True))[:num_top]:
            other, _ = _spell(text, token)
            top[other] = max(_finite(logprob), top.get(other, -math.inf))
        top[spelled] = max(sampled, top.get(spelled, -math.inf))
        tokens.append(spelled)
        values.append(sampled)
        tops.append(top)
        offsets.append(base_offset + entry.start)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
