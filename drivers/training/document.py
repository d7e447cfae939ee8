"""A training document: token ids with one loss weight per token.

Generators append text in pieces and say how much each piece should teach. Lengths are known in
tokens while a document grows, so a generator can place a question at an exact distance.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

Encode = Callable[[str], list[int]]


@attrs.define
class Document:
    """`weights[i]` is the loss weight of predicting `ids[i]` from what is before it."""

    encode: Encode
    ids: list[int] = attrs.field(factory=list)
    weights: list[float] = attrs.field(factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, text: str, weight: float = 1.0) -> int:
        """Append `text` and return how many tokens that took."""
        return self.add_ids(self.encode(text), weight)

    def add_ids(self, ids: list[int], weight: float = 1.0) -> int:
        """Append tokens that are already encoded."""
        self.ids += ids
        self.weights += [weight] * len(ids)
        return len(ids)
