"""Documents by relevance, and scores of pairs."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from shell.gateway.replies.common import Count
from shell.gateway.replies.embeddings import InputUsage


class RankedText(msgspec.Struct, forbid_unknown_fields=True):
    """A document, as it was sent."""

    text: str


class RankedDocument(msgspec.Struct, forbid_unknown_fields=True):
    """Where a document was in the request, and its score: more is better."""

    index: Count
    relevance_score: float
    document: RankedText | UnsetType = UNSET


class Ranking(msgspec.Struct, forbid_unknown_fields=True):
    """Documents, the best first."""

    id: Annotated[str, Meta(pattern="^rerank-")]
    model: str
    results: list[RankedDocument]
    usage: InputUsage


class PairScore(msgspec.Struct, forbid_unknown_fields=True):
    """The score of a pair: more is nearer."""

    index: Count
    object: Literal["score"]
    score: float


class Scores(msgspec.Struct, forbid_unknown_fields=True):
    """Scores in the order of the pairs."""

    id: Annotated[str, Meta(pattern="^score-")]
    object: Literal["list"]
    created: int
    model: str
    data: list[PairScore]
    usage: InputUsage
