"""`POST /v1/embeddings`: vectors of texts, or of token ids."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

from msgspec import Meta

from shell.gateway.completions import split_prompts
from shell.gateway.embedding_job import (
    VECTOR_FIELDS,
    EmbeddingJob,
    VectorFields,
    cut_vector,
    make_embedding_job,
    run_embedding_job,
)
from shell.gateway.errors import invalid_value, unsupported
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields, refused
from shell.gateway.json_body import read_json
from shell.gateway.replies.embeddings import EmbeddingList
from shell.gateway.service import Endpoint
from shell.gateway.shared_fields import TokenId
from syscalls.embedding import read_vector

Json = dict[str, Any]

MAX_TEXTS = 2048  # of one request, as with the reference API

EMBEDDING_FIELDS: FieldTable = {
    **VECTOR_FIELDS,
    **implemented("input", "encoding_format", "dimensions", "normalize"),
    **refused(messages=([],), embed_dtype=("float32",), endianness=("native", "little")),
}


class EmbeddingFields(VectorFields, kw_only=True):
    """The body: what to make vectors of. With `normalize` (the default) they have length 1."""

    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    normalize: bool = True


class Embeddings(Endpoint):
    """Makes vectors of texts."""

    name = "embeddings"
    body_type = EmbeddingFields
    answer_type = EmbeddingList

    async def answer(self, exchange: Exchange) -> None:
        """Validate, encode, have them made, write."""
        self.service.admission.check()
        body = await read_json(self.service, exchange)

        async def work() -> None:
            fields = read_fields(body, EMBEDDING_FIELDS, EmbeddingFields, exchange.ignored)
            inputs = split_prompts(fields.input, "input")
            if len(inputs) > MAX_TEXTS:
                raise invalid_value("input", f"'input' has {len(inputs)} entries; the limit is {MAX_TEXTS}.")
            names = ["input"] if len(inputs) == 1 else [f"input[{index}]" for index in range(len(inputs))]
            job = await make_embedding_job(
                self.service, exchange, fields, inputs, names, normalise=fields.normalize
            )
            check_dimensions(fields, job)
            vectors = await run_embedding_job(self.service, exchange, job)
            size = sum(map(len, vectors)) // 4
            response = await self.service.do_text_work(size, lambda: write_vectors(job, fields, vectors))
            await exchange.respond_json(200, response)

        with self.service.admission.admit(exchange):
            await exchange.guard(work)


def check_dimensions(fields: EmbeddingFields, job: EmbeddingJob) -> None:
    """Raise ApiError 400 unless the model's vectors may be cut to what is asked for."""
    info, wanted = job.model.info.embedding, fields.dimensions
    assert info is not None
    if wanted is None or wanted == info.size or wanted in info.dimensions:
        return
    if info.takes_any_dimension and wanted < info.size:
        return
    allowed = ", ".join(map(str, sorted({*info.dimensions, info.size})))
    if info.takes_any_dimension:
        allowed = f"1 to {info.size}"
    raise unsupported("dimensions", f" with the value {wanted}: vectors of `{job.model.name}` have {allowed}")


def write_vectors(job: EmbeddingJob, fields: EmbeddingFields, vectors: list[bytes]) -> Json:
    """Return the response object."""
    rows = []
    for index, vector in enumerate(vectors):
        if fields.dimensions is not None and 4 * fields.dimensions < len(vector):
            cut = cut_vector(read_vector(vector), fields.dimensions, is_normal=fields.normalize)
            vector = struct.pack(f"<{len(cut)}f", *cut)
        shown: str | list[float]
        if fields.encoding_format == "base64":
            shown = base64.b64encode(vector).decode()
        else:
            shown = list(read_vector(vector))
        rows.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": job.num_tokens, "total_tokens": job.num_tokens}
    return {"object": "list", "data": rows, "model": job.model.name, "usage": usage}
