"""From inputs to vectors: what embeddings, reranking and scoring share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import attrs
import msgspec
import trio
from msgspec import Meta

from shell.gateway.body_parts import MAX_BODY_CHARACTERS
from shell.gateway.catalog import ServedModel
from shell.gateway.errors import invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, accepted, implemented
from shell.gateway.generation import explain_exit
from shell.gateway.limits import rate_headers
from shell.gateway.prompt_length import check_context, check_encoded
from shell.gateway.service import Service
from shell.gateway.shared_fields import RequestId
from shell.gateway.users import read_user
from syscalls.embedding import MAX_INPUTS
from syscalls.process import Output
from syscalls.session import EmbedOptions

MAX_CALL_TOKENS = 1 << 18  # of the inputs of one call to the kernel; a longer one goes alone
MAX_CALLS_AT_ONCE = 2  # so that the device does not wait for the next call when one has ended

VECTOR_FIELDS: FieldTable = {
    **implemented(
        "model", "truncate_prompt_tokens", "add_special_tokens", "pooling", "priority", "deadline_ms",
        "request_id", "rid", "cache_salt", "pin_ttl_s", "user",
    ),
    **accepted("metadata"),
}  # fmt: skip


class VectorFields(msgspec.Struct, kw_only=True):
    """Body fields of every route that makes vectors. None is absent."""

    model: str | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None  # -1: to what fits
    add_special_tokens: bool = True
    pooling: str | None = None  # None: the model's own
    priority: Annotated[int, Meta(ge=-20, le=19)] = 0
    deadline_ms: Annotated[float, Meta(gt=0, le=1e12)] | None = None
    request_id: RequestId | None = None
    rid: RequestId | None = None
    cache_salt: Annotated[str, Meta(max_length=200)] = ""
    pin_ttl_s: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    user: Any = None  # see users.py


@attrs.frozen(kw_only=True, eq=False)
class EmbeddingJob:
    """What to make vectors of, all checked."""

    model: ServedModel
    inputs: tuple[tuple[int, ...], ...]
    options: EmbedOptions

    @property
    def num_tokens(self) -> int:
        """Of all inputs."""
        return sum(map(len, self.inputs))

    def calls(self) -> Iterator[range]:
        """Which inputs go into each call to the kernel."""
        first = num_tokens = 0
        for index, tokens in enumerate(self.inputs):
            if index > first and (index - first == MAX_INPUTS or num_tokens + len(tokens) > MAX_CALL_TOKENS):
                yield range(first, index)
                first, num_tokens = index, 0
            num_tokens += len(tokens)
        yield range(first, len(self.inputs))


async def make_embedding_job(
    service: Service,
    exchange: Exchange,
    fields: VectorFields,
    given: Sequence[str | tuple[str, str] | list[int]],
    names: Sequence[str],
    *,
    normalise: bool = True,
    limits: Sequence[int | None] | None = None,
    pairs: bool = False,
) -> EmbeddingJob:
    """Encode inputs, and check them against the model.

    Args:
        service: the gateway's parts.
        exchange: the request; it gets its id from the body.
        fields: the body.
        given: texts, pairs of texts for a reranker, or token ids.
        names: of the body field that each came from, for errors.
        normalise: vectors to length 1.
        limits: of each input in tokens, beside the body's own; longer ones are cut.
        pairs: it may be a reranker's job.

    Raises:
        ApiError: 400, naming the field; 404; 503.
    """
    if fields.rid is not None and fields.request_id not in (None, fields.rid):
        raise invalid_value("rid", "'request_id' and 'rid' are the same thing with two values.")
    exchange.request_id = fields.request_id or fields.rid or exchange.request_id
    model = await service.catalog.resolve(fields.model, embeds=True, pairs=pairs)
    info = model.info.embedding
    assert info is not None
    if fields.pooling is not None and fields.pooling not in info.poolings:
        able = ", ".join(info.poolings)
        raise invalid_value("pooling", f"'pooling' is {fields.pooling!r}; `{model.name}` can do: {able}.")
    limit = fields.truncate_prompt_tokens
    if limit == 0:
        raise invalid_value("truncate_prompt_tokens", "'truncate_prompt_tokens' is 0: nothing would be left.")
    limit = model.info.max_model_len if limit == -1 else limit

    def encode() -> tuple[tuple[int, ...], ...]:
        encoded: list[tuple[int, ...]] = []
        for index, each in enumerate(given):
            most = limit if limits is None else min_limit(limit, limits[index])
            if isinstance(each, str):
                encoded.append(tuple(model.text.encode_up_to(each, most, fields.add_special_tokens)))
            elif isinstance(each, tuple):
                encoded.append(tuple(model.text.encode_pair(*each, most)))
            else:
                encoded.append(tuple(each[:most]))
        return tuple(encoded)

    size = check_texts(given, names)
    inputs = await service.do_text_work(size, encode)
    for name, original, tokens in zip(names, given, inputs, strict=True):
        if not (original and tokens):  # of an empty text a tokenizer may still make a token
            raise invalid_value(name, f"'{name}' is empty: an input needs at least one token.")
        if max(tokens) >= model.info.vocab_size:
            message = f"'{name}' holds a token id over {model.info.vocab_size - 1}, the model's last."
            raise invalid_value(name, message)
        check_context(model, len(tokens), 0, name.partition("[")[0])
    exchange.noted["model"] = model.name
    return EmbeddingJob(
        model=model,
        inputs=inputs,
        options=EmbedOptions(
            pooling=fields.pooling,
            normalise=normalise,
            model=model.info.name,
            nice=service.config.nice_of(fields.priority),
            label=exchange.request_id,
            deadline_seconds=None if fields.deadline_ms is None else fields.deadline_ms / 1000,
            cache_salt=fields.cache_salt,
            pin_seconds=fields.pin_ttl_s,
            user=read_user(fields.user, service.config.max_users),
        ),
    )


def check_texts(given: Sequence[str | tuple[str, str] | list[int]], names: Sequence[str]) -> int:
    """Check that inputs are short enough to be encoded: each of them, and their sum.

    The first text of a pair is encoded with each second one, and counts each time.

    Returns:
        Characters, and token ids, of all.

    Raises:
        ApiError: 400, naming the field and the limit.
    """
    total = 0
    for name, each in zip(names, given, strict=True):
        size = sum(map(len, each)) if isinstance(each, tuple) else len(each)
        if not isinstance(each, list):
            check_encoded(size, name, "with what it is paired with " if isinstance(each, tuple) else "")
        total += size
    if total > MAX_BODY_CHARACTERS:
        field = names[0].partition("[")[0]
        limit = f"at most {MAX_BODY_CHARACTERS} are encoded for one request"
        raise invalid_value(field, f"'{field}' has {total} characters in all, pairs counted whole; {limit}.")
    return total


def min_limit(one: int | None, other: int | None) -> int | None:
    """The smaller of two limits; None is no limit."""
    given = [limit for limit in (one, other) if limit is not None]
    return min(given, default=None)


async def run_embedding_job(service: Service, exchange: Exchange, job: EmbeddingJob) -> list[bytes]:
    """Have the vectors made; those of one call are made side by side.

    Returns:
        Vectors in the order of the inputs.

    Raises:
        ApiError: a process was killed, or failed. The others are killed then.
        SyscallError: the kernel refuses an input.
    """
    client = exchange.client or service.link.client
    outputs: dict[int, Output] = {}
    limiter = trio.CapacityLimiter(MAX_CALLS_AT_ONCE)

    async def embed(indices: range) -> None:
        async with limiter:
            embedded = await client.embed([job.inputs[index] for index in indices], **job.options)
        exchange.rate_headers = rate_headers(embedded.rates)
        exchange.pids += tuple(embedded.pids)
        for index, output in zip(indices, embedded.outputs, strict=True):
            if output.end is None or output.end.reason != "stop":
                assert output.end is not None
                raise explain_exit(output.end)
            outputs[index] = output

    async with trio.open_nursery() as nursery:
        for indices in job.calls():
            nursery.start_soon(embed, indices)
    exchange.noted["num_prompt_tokens"] = job.num_tokens
    exchange.noted["num_inputs"] = len(job.inputs)
    service.metrics.prompt_tokens.inc(job.num_tokens)
    if service.metrics.users is not None:
        service.metrics.users.observe(client.welcome.tenant, job.options["user"], job.num_tokens, 0)
    return [outputs[index].vector for index in range(len(job.inputs))]


def cut_vector(numbers: Sequence[float], size: int, *, is_normal: bool) -> Sequence[float]:
    """The first numbers of a vector, at length 1 again if it was so before."""
    cut = numbers[:size]
    length = math.sqrt(math.fsum(number * number for number in cut))
    return [number / length for number in cut] if is_normal and length > 0 else cut


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two vectors of length 1."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
