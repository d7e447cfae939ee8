"""`/v1/requests`: what is generated now, what happened to it, and how to end it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import trio
from msgspec import Meta

from shell.gateway.config import GatewayConfig
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields
from shell.gateway.json_body import read_json
from shell.gateway.process_errors import explaining_processes, not_found
from shell.gateway.replies.processes import CancelledRequest, RequestDetails, RequestList
from shell.gateway.service import Endpoint
from syscalls.client import Client
from syscalls.process import ProcessInfo

Json = dict[str, Any]

ABORT_FIELDS: FieldTable = implemented("rid")


class AbortFields(msgspec.Struct):
    """The body of `/abort_request`."""

    rid: Annotated[str, Meta(min_length=1, max_length=128)]


def describe_process(process: ProcessInfo, config: GatewayConfig) -> Json:
    """Return the row of one process: seconds, bytes; its priority as requests give it."""
    return {
        "id": process.label or str(process.pid),
        "object": "request",
        "pid": process.pid,
        "tenant": process.tenant,
        "model": process.model,
        "state": process.state,
        "age_seconds": round(process.age_seconds, 6),
        "num_tokens": process.num_tokens,
        "num_computed_tokens": process.num_computed,
        "num_prompt_tokens": process.usage.num_prompt_tokens,
        "num_output_tokens": process.usage.num_output_tokens,
        "kv_bytes": process.num_resident_bytes,
        "priority": config.nice_of(process.nice),
    }


async def list_processes(client: Client) -> list[ProcessInfo]:
    """List what a caller may see: its tenant's processes, or everybody's, without those that have exited."""
    processes = await client.ps(everyone=client.welcome.admin)
    return [process for process in processes if process.state != "ZOMBIE"]


async def find_processes(client: Client, wanted: str) -> list[ProcessInfo]:
    """Find a request's processes, by its id or by a pid. Raises ApiError 404 `request_not_found`."""
    found = [
        process
        for process in await list_processes(client)
        if wanted == process.label or wanted == str(process.pid)
    ]
    if not found:
        raise not_found("request_not_found", f"There is no request `{wanted[:128]}`.")
    return found


async def cancel_processes(client: Client, wanted: str) -> Json:
    """Kill a request's processes, and wait until their memory is free. Raises ApiError 404."""
    pids = [process.pid for process in await find_processes(client, wanted)]

    async def kill(pid: int) -> None:
        with explaining_processes():
            await client.kill(pid)

    async with trio.open_nursery() as nursery:
        for pid in pids:
            nursery.start_soon(kill, pid)
    return {"id": wanted, "object": "request", "cancelled": True, "pids": pids}


class RequestListing(Endpoint):
    """Lists what is generated now: the tenant's own, or to administrators everybody's."""

    name = "requests"
    answer_type = RequestList

    async def answer(self, exchange: Exchange) -> None:
        """Ask the kernel."""
        rows = [
            describe_process(process, self.service.config)
            for process in await list_processes(self.client_of(exchange))
        ]
        await exchange.respond_json(200, {"object": "list", "data": rows})


class RequestDescription(Endpoint):
    """Describes one request: a row for each of its processes, with the timeline and a verdict."""

    name = "requests.id"
    answer_type = RequestDetails

    async def answer(self, exchange: Exchange) -> None:
        """Ask the kernel; a process that ends meanwhile is left out."""
        client = self.client_of(exchange)
        wanted = exchange.path_params["id"]
        rows = []
        for process in await find_processes(client, wanted):
            with explaining_processes():
                why = await client.why(process.pid)
            rows.append(
                {
                    **describe_process(process, self.service.config),
                    "verdict": why.verdict,
                    "seconds": why.seconds,
                    "num_dropped_entries": why.num_dropped,
                    "timeline": [describe_entry(entry) for entry in why.entries],
                }
            )
        await exchange.respond_json(200, {"id": wanted, "object": "request", "processes": rows})


def describe_entry(entry: Any) -> Json:
    """Return an entry of a timeline by its fields' names."""
    return {name: getattr(entry, name) for name in entry.__struct_fields__}


class RequestCancel(Endpoint):
    """Ends a request in whatever state it is."""

    name = "requests.cancel"
    answer_type = CancelledRequest

    async def answer(self, exchange: Exchange) -> None:
        """Answer when its pages are free."""
        result = await cancel_processes(self.client_of(exchange), exchange.path_params["id"])
        await exchange.respond_json(200, result)


class AbortRequest(Endpoint):
    """`/abort_request`: the same, with the id in the body."""

    name = "abort_request"
    body_type = AbortFields
    answer_type = CancelledRequest

    async def answer(self, exchange: Exchange) -> None:
        """Answer when its pages are free."""
        body = await read_json(self.service, exchange)
        fields = read_fields(body, ABORT_FIELDS, AbortFields, exchange.ignored)
        await exchange.respond_json(200, await cancel_processes(self.client_of(exchange), fields.rid))
