"""How much texts have to do with each other: by the angle between their vectors."""

from __future__ import annotations

import attrs

from shell.gateway.embedding_job import VectorFields, cosine, make_embedding_job, run_embedding_job
from shell.gateway.exchange import Exchange
from shell.gateway.service import Service
from syscalls.embedding import read_vector

MAX_PAIRS = 2048


@attrs.frozen(kw_only=True)
class Pairs:
    """Texts to compare: the only first one with each second one, or each with its own.

    The names are of the body's fields, for errors.
    """

    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    first_names: tuple[str, ...]
    second_names: tuple[str, ...]
    second_limit: int | None = None  # tokens of a second text; a longer one is cut


@attrs.frozen(kw_only=True)
class ScoredPairs:
    """The scores in the order of the pairs; more is nearer."""

    model: str  # the name asked for
    scores: tuple[float, ...]
    num_tokens: int  # read


async def score_pairs(
    service: Service, exchange: Exchange, fields: VectorFields, pairs: Pairs
) -> ScoredPairs:
    """Score pairs by the cosine between the vectors of their texts, -1 to 1. Raises ApiError."""
    texts = (*pairs.firsts, *pairs.seconds)
    names = (*pairs.first_names, *pairs.second_names)
    limits = [None] * len(pairs.firsts) + [pairs.second_limit] * len(pairs.seconds)
    job = await make_embedding_job(service, exchange, fields, texts, names, limits=limits)
    vectors = await run_embedding_job(service, exchange, job)

    def compare() -> tuple[float, ...]:
        numbers = [read_vector(vector) for vector in vectors]
        firsts, seconds = numbers[: len(pairs.firsts)], numbers[len(pairs.firsts) :]
        return tuple(
            cosine(firsts[index if len(firsts) > 1 else 0], second) for index, second in enumerate(seconds)
        )

    scores = await service.do_text_work(sum(map(len, vectors)) // 4, compare)
    return ScoredPairs(model=job.model.name, scores=scores, num_tokens=job.num_tokens)
