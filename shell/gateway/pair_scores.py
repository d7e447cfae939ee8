"""How much texts have to do with each other: by the angle between their vectors, or as a reranker says."""

from __future__ import annotations

import attrs

from shell.gateway.embedding_job import VectorFields, cosine, make_embedding_job, run_embedding_job
from shell.gateway.errors import invalid_value
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
    second_limit: int | None = None  # tokens of a second text (to a reranker, of a pair); a longer one is cut


@attrs.frozen(kw_only=True)
class ScoredPairs:
    """The scores in the order of the pairs; more is nearer."""

    model: str  # the name asked for
    scores: tuple[float, ...]
    num_tokens: int  # read


async def score_pairs(
    service: Service, exchange: Exchange, fields: VectorFields, pairs: Pairs
) -> ScoredPairs:
    """Score pairs: with a reranker, 0 to 1; else by the cosine between vectors, -1 to 1. Raises ApiError."""
    model = await service.catalog.resolve(fields.model, embeds=True, pairs=True)
    if model.info.embedding is not None and model.info.embedding.scores_pairs:
        return await _ask_reranker(service, exchange, fields, pairs)
    texts = (*pairs.firsts, *pairs.seconds)
    names = (*pairs.first_names, *pairs.second_names)
    limits = [None] * len(pairs.firsts) + [pairs.second_limit] * len(pairs.seconds)
    job = await make_embedding_job(service, exchange, fields, texts, names, limits=limits, pairs=True)
    vectors = await run_embedding_job(service, exchange, job)

    def compare() -> tuple[float, ...]:
        numbers = [read_vector(vector) for vector in vectors]
        firsts, seconds = numbers[: len(pairs.firsts)], numbers[len(pairs.firsts) :]
        return tuple(
            cosine(firsts[index if len(firsts) > 1 else 0], second) for index, second in enumerate(seconds)
        )

    scores = await service.do_text_work(sum(map(len, vectors)) // 4, compare)
    return ScoredPairs(model=job.model.name, scores=scores, num_tokens=job.num_tokens)


async def _ask_reranker(
    service: Service, exchange: Exchange, fields: VectorFields, pairs: Pairs
) -> ScoredPairs:
    """Each pair is one input, and its score is all that comes of it."""
    for name, text in zip(
        (*pairs.first_names, *pairs.second_names), (*pairs.firsts, *pairs.seconds), strict=True
    ):
        if not text:
            raise invalid_value(name, f"'{name}' is empty: an input needs at least one token.")
    firsts = pairs.firsts if len(pairs.firsts) > 1 else pairs.firsts * len(pairs.seconds)
    given = list(zip(firsts, pairs.seconds, strict=True))
    limits = [pairs.second_limit] * len(given)
    job = await make_embedding_job(
        service, exchange, fields, given, pairs.second_names, limits=limits, pairs=True
    )
    vectors = await run_embedding_job(service, exchange, job)
    scores = tuple(read_vector(vector)[0] for vector in vectors)
    return ScoredPairs(model=job.model.name, scores=scores, num_tokens=job.num_tokens)
