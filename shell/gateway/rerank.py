"""`/v1/rerank`, `/rerank`, `/v2/rerank`: documents in the order of what they have to do with a query."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from shell.gateway.embedding_job import VECTOR_FIELDS, VectorFields
from shell.gateway.errors import invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields, refused
from shell.gateway.json_body import read_json
from shell.gateway.pair_scores import MAX_PAIRS, Pairs, score_pairs
from shell.gateway.replies.rerank import Ranking
from shell.gateway.service import Endpoint

Json = dict[str, Any]

RERANK_FIELDS: FieldTable = {
    **VECTOR_FIELDS,
    **implemented("query", "documents", "top_n", "top_k", "return_documents", "max_tokens_per_doc"),
    **refused(rank_fields=([], ["text"]), max_chunks_per_doc=()),
}


class Document(msgspec.Struct):
    """A document as an object."""

    text: str


class RerankFields(VectorFields, kw_only=True):
    """A query and documents. `top_n`, which some call `top_k`: so many of the best; all unless given."""

    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Meta(ge=1)] | None = None
    top_k: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int, Meta(ge=1)] | None = None  # longer ones are cut

    @property
    def num_shown(self) -> int | None:
        """How many of the best are wanted; None: all. Raises ApiError when its two names disagree."""
        if self.top_n is not None and self.top_k not in (None, self.top_n):
            message = f"'top_k' is {self.top_k} and 'top_n' is {self.top_n}: two names of one number."
            raise invalid_value("top_k", message)
        return self.top_k if self.top_n is None else self.top_n


class Rerank(Endpoint):
    """Sorts documents by what they have to do with a query."""

    name = "rerank"
    body_type = RerankFields
    answer_type = Ranking

    async def answer(self, exchange: Exchange) -> None:
        """Score each document, and sort."""
        self.service.admission.check()
        body = await read_json(self.service, exchange)

        async def work() -> None:
            fields = read_fields(body, RERANK_FIELDS, RerankFields, exchange.ignored)
            num_shown = fields.num_shown
            texts = [each if isinstance(each, str) else each.text for each in fields.documents]
            if not texts:
                raise invalid_value("documents", "'documents' is empty.")
            if len(texts) > MAX_PAIRS:
                message = f"'documents' has {len(texts)} entries; the limit is {MAX_PAIRS}."
                raise invalid_value("documents", message)
            pairs = Pairs(
                firsts=(fields.query,),
                seconds=tuple(texts),
                first_names=("query",),
                second_names=tuple(f"documents[{index}]" for index in range(len(texts))),
                second_limit=fields.max_tokens_per_doc,
            )
            scored = await score_pairs(self.service, exchange, fields, pairs)
            order = sorted(range(len(texts)), key=lambda index: (-scored.scores[index], index))
            rows: list[Json] = []
            for index in order[:num_shown]:
                row: Json = {"index": index, "relevance_score": scored.scores[index]}
                if fields.return_documents:
                    row["document"] = {"text": texts[index]}
                rows.append(row)
            usage = {"prompt_tokens": scored.num_tokens, "total_tokens": scored.num_tokens}
            response = {
                "id": f"rerank-{secrets.token_hex(14)}",
                "model": scored.model,
                "results": rows,
                "usage": usage,
            }
            await exchange.respond_json(200, response)

        with self.service.admission.admit(exchange):
            await exchange.guard(work)
