"""How a load generator asks an OpenAI-like server, and what it reads out of an answer's events."""

from __future__ import annotations

import enum
import random
from typing import Any
from urllib.parse import SplitResult

import attrs
import msgspec

WORDS = (  # each is one token in most vocabularies; what a prompt came to, the server says
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week",
    "company", "system", "program", "work", "number", "night", "point", "home", "water", "room", "mother",
    "area", "money", "story", "fact", "month", "lot", "right", "study", "book", "eye", "job", "word", "side",
)  # fmt: skip


class Prompts(enum.StrEnum):
    """What a prompt is."""

    TOKENS = "tokens"  # ids, to /v1/completions
    TEXT = "text"  # to /v1/completions, for servers that take no ids
    CHAT = "chat"  # a user's message, to /v1/chat/completions


@attrs.frozen
class Style:
    """How to ask."""

    prompts: Prompts = Prompts.TOKENS
    is_plain: bool = False  # nothing is sent that OpenAI's own API does not know: answers may be shorter

    @property
    def path(self) -> str:
        """Where to."""
        return "/v1/chat/completions" if self.prompts is Prompts.CHAT else "/v1/completions"

    def body(self, model: str | None, prompt: list[int] | str, num_tokens: int) -> bytes:
        """A greedy request for so many tokens, streamed; `model` None is the server's default."""
        fields: dict[str, Any] = {"model": model, "temperature": 0, "stream": True}
        fields["stream_options"] = {"include_usage": True}
        if self.prompts is Prompts.CHAT:
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        is_new = self.prompts is Prompts.CHAT and self.is_plain  # OpenAI's newer models refuse max_tokens
        fields["max_completion_tokens" if is_new else "max_tokens"] = num_tokens
        if not self.is_plain:
            fields |= {"min_tokens": num_tokens, "ignore_eos": True, "return_token_ids": True}
        return msgspec.json.encode(fields)


def words(length: int, seed: str) -> str:
    """So many words that depend on the arguments alone."""
    rng = random.Random(f"{length}/{seed}")
    return " ".join(rng.choice(WORDS) for _ in range(length))


def tokens_of(choice: dict[str, Any]) -> int:
    """How many tokens an event brings: its ids, or 1 for any text, be it thought, said or called."""
    delta = choice.get("delta") or {}
    says = choice.get("text") or any(value for name, value in delta.items() if name != "role")
    return len(choice.get("token_ids") or ()) or int(bool(says))


def path_at(address: SplitResult, path: str) -> str:
    """`path` behind what the address says, which may end with /v1, as SDKs have their base URL."""
    base = address.path.rstrip("/")
    return (base.removesuffix("/v1") if path.startswith("/v1/") else base) + path
