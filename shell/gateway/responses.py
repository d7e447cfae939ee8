"""`/v1/responses`: create, read, follow again, cancel, delete."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta

from shell.gateway.deadline import kept_deadline
from shell.gateway.errors import ApiError, invalid, invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import accepted, convert, implemented, refused, take_fields
from shell.gateway.json_body import read_json
from shell.gateway.replies.responses import DeletedResponse, InputItems, ResponseEvent, ResponseObject
from shell.gateway.response_events import make_response
from shell.gateway.response_prepare import ResponseBody, prepare_again, prepare_response, require_over
from shell.gateway.response_record import Record
from shell.gateway.response_run import ResponseRun
from shell.gateway.service import Endpoint
from shell.gateway.sse import EventWriter, SendStalled, encode_event
from syscalls.client import Client

Json = dict[str, Any]

LARGEST_NUMBER = 2**53
MAX_ITEMS = 100  # in one list
# Where events are padded against who listens, clients may ask for it or not; ours never are.
QUERY_FIELDS = {
    **implemented("stream", "starting_after"),
    **accepted("include_obfuscation"),
    **refused(include=([],)),
}
ITEMS_QUERY_FIELDS = {**implemented("order", "limit", "after"), **refused(include=([],), before=())}


class ResponseQuery(msgspec.Struct):
    """How a response is told. `starting_after` is for streams."""

    stream: bool = False
    starting_after: Annotated[int, Meta(ge=0, lt=LARGEST_NUMBER)] | None = None


class ItemsQuery(msgspec.Struct):
    """Which item comes first, how many are told, and the id of the one that they follow."""

    order: Literal["asc", "desc"] = "desc"
    limit: Annotated[int, Meta(ge=1, le=MAX_ITEMS)] = 20
    after: str | None = None


def encode_named(event: Json) -> bytes:
    """Frame one event with its name, as this API's streams have it."""
    return f"event: {event['type']}\n".encode() + encode_event(event)


class ResponseEndpoint(Endpoint):
    """What the routes share."""

    def find(self, exchange: Exchange) -> tuple[Client, Record]:
        """The record that the path names, if it is the caller's. Raises ApiError 404."""
        client = self.client_of(exchange)
        return client, self.service.responses.store.get(exchange.path_params["id"], client.welcome.tenant)

    async def take_up(self, client: Client, record: Record) -> ResponseRun:
        """Return the run of a record. Raises ApiError."""
        return await self.service.responses.find(client, record, lambda: prepare_again(self.service, record))

    async def describe(self, client: Client, record: Record) -> Json:
        """Return the response as it stands. Log-probabilities are written anew from what is stored."""
        if record.is_over and not record.logprobs:
            return make_response(record, record.output)
        run = await self.take_up(client, record)
        return make_response(record, run.writer.output)

    async def stream(self, exchange: Exchange, run: ResponseRun, after: int) -> None:
        """Send a run's events with sequence numbers over `after`, to the last one, as they come."""
        config = self.service.config
        writer = EventWriter(exchange, config.ping_interval_or_none, config.send_timeout)
        events = run.writer.events

        async def give_up() -> None:
            exchange.abort(SendStalled())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.watch, give_up)
            await writer.begin()
            sent = after + 1
            while True:
                changed, is_over = run.changed, run.over.is_set()
                if sent < len(events):
                    fresh, sent = events[sent:], len(events)
                    await writer.send_raw(b"".join(map(encode_named, fresh)))
                elif is_over:
                    break
                else:
                    await changed.wait()
            nursery.cancel_scope.cancel()
        await exchange.end_events()


class Responses(ResponseEndpoint):
    """`POST /v1/responses`."""

    name = "responses"
    body_type = ResponseBody
    answer_type = ResponseObject
    event_type = ResponseEvent

    async def answer(self, exchange: Exchange) -> None:
        """Begin it, and tell it whole, streamed, or (in the background) that it has begun."""
        self.service.admission.check()
        body = await read_json(self.service, exchange, "input")
        with self.service.admission.admit(exchange):
            await exchange.guard(lambda: self._create(exchange, body))

    async def _create(self, exchange: Exchange, body: Json) -> None:
        client = self.client_of(exchange)
        runs, tenant = self.service.responses, client.welcome.tenant
        previous = None
        if isinstance(wanted := body.get("previous_response_id"), str):
            previous = self._find_previous(wanted, tenant)
            require_over(previous)
        prepared = await prepare_response(self.service, exchange, body, tenant, previous)
        run = await runs.start(client, prepared)
        record = run.record
        exchange.noted.update(model=record.model, response=record.id, forked=record.num_kept_tokens > 0)
        exchange.pids = (record.pid,) if record.pid is not None else ()
        try:
            limit = None if record.is_background else run.job.spawn["deadline_seconds"]
            async with kept_deadline(exchange, limit, lambda: run.has_begun):
                if record.body.get("stream", False):
                    await self.stream(exchange, run, -1)
                    return
                if not record.is_background:
                    await run.over.wait()
        except BaseException:  # the client went away: nobody waits for what it asked for
            if not record.is_background:
                with trio.CancelScope(shield=True):
                    await runs.cancel(run)
            raise
        if run.failure is not None:
            raise run.failure
        await exchange.respond_json(200, make_response(record, run.writer.output))

    def _find_previous(self, wanted: str, tenant: str) -> Record:
        """The response that one continues. Raises ApiError 400, as this API does."""
        try:
            return self.service.responses.store.get(wanted, tenant)
        except ApiError:
            message = f"Previous response with id '{wanted[:64]}' not found."
            raise invalid("previous_response_not_found", message, "previous_response_id") from None


class ResponseDescription(ResponseEndpoint):
    """`GET /v1/responses/{id}`, and with `?stream=true&starting_after=N` its events from there on."""

    name = "responses.id"
    query_struct = ResponseQuery
    answer_type = ResponseObject
    event_type = ResponseEvent

    async def answer(self, exchange: Exchange) -> None:
        """Take it up again if an earlier gateway had begun it."""
        client, record = self.find(exchange)
        take_fields(dict(exchange.query), QUERY_FIELDS, exchange.ignored)
        is_stream = exchange.query.get("stream", "false")
        if is_stream not in ("true", "false"):
            raise invalid_value("stream", "Invalid value for 'stream': it is 'true' or 'false'.")
        after = exchange.query.get("starting_after")
        if after is not None and is_stream == "false":
            raise invalid_value("starting_after", "'starting_after' is only allowed when 'stream' is true.")
        if after is not None and not (after.isascii() and after.isdecimal() and int(after) < LARGEST_NUMBER):
            raise invalid_value(
                "starting_after", "Invalid value for 'starting_after': it is a number from 0."
            )

        async def tell() -> None:
            await exchange.respond_json(200, await self.describe(client, record))

        async def follow() -> None:
            run = await self.take_up(client, record)
            await self.stream(exchange, run, -1 if after is None else int(after))

        if is_stream == "false":
            await exchange.guard(tell)
            return
        with self.service.admission.admit(exchange):  # it lasts: whoever drains the server waits for it
            await exchange.guard(follow)


def read_items_query(exchange: Exchange) -> ItemsQuery:
    """Check which items are wanted. Raises ApiError 400."""
    taken = take_fields(dict(exchange.query), ITEMS_QUERY_FIELDS, exchange.ignored)
    limit = taken.get("limit", "")
    if limit.isascii() and limit.isdecimal():
        taken["limit"] = int(limit[:9])
    return convert(taken, ItemsQuery)


class ResponseInputItems(ResponseEndpoint):
    """`GET /v1/responses/{id}/input_items`."""

    name = "responses.input_items"
    query_struct = ItemsQuery
    answer_type = InputItems

    async def answer(self, exchange: Exchange) -> None:
        """List what was sent, the last first, as this API does by default; `?order=asc` turns it round."""
        _, record = self.find(exchange)
        query = read_items_query(exchange)
        items = record.input_items if query.order == "asc" else record.input_items[::-1]
        if query.after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == query.after]
            if not places:
                raise invalid_value(
                    "after", f"Invalid value for 'after': {query.after[:64]!r} is no item of it."
                )
            items = items[places[0] + 1 :]
        has_more, items = len(items) > query.limit, items[: query.limit]
        response = {"object": "list", "data": items, "has_more": has_more}
        response["first_id"] = items[0]["id"] if items else None
        response["last_id"] = items[-1]["id"] if items else None
        await exchange.respond_json(200, response)


class ResponseCancel(ResponseEndpoint):
    """`POST /v1/responses/{id}/cancel`: for those in the background, as in the reference API."""

    name = "responses.cancel"
    answer_type = ResponseObject

    async def answer(self, exchange: Exchange) -> None:
        """Answer when its memory is free; one that is over stays as it is."""
        client, record = self.find(exchange)
        if not record.is_background:
            raise invalid("invalid_value", "Only background responses can be cancelled.", "response_id")
        if not record.is_over:
            run = await self.take_up(client, record)
            await self.service.responses.cancel(run)
        await exchange.respond_json(200, await self.describe(client, record))


class ResponseDeletion(ResponseEndpoint):
    """`DELETE /v1/responses/{id}`: with it go its process and its memory."""

    name = "responses.delete"
    answer_type = DeletedResponse

    async def answer(self, exchange: Exchange) -> None:
        """Answer when they are gone. Responses that continued it live on."""
        client, record = self.find(exchange)
        await self.service.responses.remove(client, record)
        await exchange.respond_json(200, {"id": record.id, "object": "response", "deleted": True})
