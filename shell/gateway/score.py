"""`/v1/score`, `/score`: how much two texts have to do with each other, for each of some pairs."""

from __future__ import annotations

import secrets
import time
from typing import Any

from shell.gateway.embedding_job import VECTOR_FIELDS, VectorFields
from shell.gateway.errors import invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields
from shell.gateway.json_body import read_json
from shell.gateway.pair_scores import MAX_PAIRS, Pairs, score_pairs
from shell.gateway.replies.rerank import Scores
from shell.gateway.service import Endpoint

Json = dict[str, Any]

SCORE_FIELDS: FieldTable = {**VECTOR_FIELDS, **implemented("text_1", "text_2")}


class ScoreFields(VectorFields, kw_only=True):
    """Pairs: one text with each of some, or as many on both sides."""

    text_1: str | list[str]
    text_2: str | list[str]


class Score(Endpoint):
    """Scores pairs of texts."""

    name = "score"
    body_type = ScoreFields
    answer_type = Scores

    async def answer(self, exchange: Exchange) -> None:
        """Pair the texts, and score each pair."""
        self.service.admission.check()
        body = await read_json(self.service, exchange)

        async def work() -> None:
            fields = read_fields(body, SCORE_FIELDS, ScoreFields, exchange.ignored)
            scored = await score_pairs(self.service, exchange, fields, read_pairs(fields))
            rows = [
                {"index": index, "object": "score", "score": score}
                for index, score in enumerate(scored.scores)
            ]
            usage = {"prompt_tokens": scored.num_tokens, "total_tokens": scored.num_tokens}
            response = {
                "id": f"score-{secrets.token_hex(14)}",
                "object": "list",
                "created": int(time.time()),
                "model": scored.model,
                "data": rows,
                "usage": usage,
            }
            await exchange.respond_json(200, response)

        with self.service.admission.admit(exchange):
            await exchange.guard(work)


def read_pairs(fields: ScoreFields) -> Pairs:
    """Which texts belong together. Raises ApiError 400."""
    sides: list[tuple[str, ...]] = []
    for name, given in (("text_1", fields.text_1), ("text_2", fields.text_2)):
        if not given:
            raise invalid_value(name, f"'{name}' is empty.")
        if isinstance(given, list) and len(given) > MAX_PAIRS:
            raise invalid_value(name, f"'{name}' has {len(given)} entries; the limit is {MAX_PAIRS}.")
        sides.append((given,) if isinstance(given, str) else tuple(given))
    firsts, seconds = sides
    if len(firsts) not in (1, len(seconds)):
        message = f"'text_1' has {len(firsts)} texts and 'text_2' {len(seconds)}; one, or as many."
        raise invalid_value("text_1", message)
    names = [
        ["text_1"] if isinstance(fields.text_1, str) else [f"text_1[{i}]" for i in range(len(firsts))],
        ["text_2"] if isinstance(fields.text_2, str) else [f"text_2[{i}]" for i in range(len(seconds))],
    ]
    return Pairs(firsts=firsts, seconds=seconds, first_names=tuple(names[0]), second_names=tuple(names[1]))
