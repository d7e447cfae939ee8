"""`/slots`: processes under llama.cpp's name, and their images: save, restore, erase.

A slot's id is a pid. A slot that is saved stays; restoring makes a new process, with an id of its own, that
lives until it is erased.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
import trio
from msgspec import Meta

from shell.gateway.errors import invalid_value
from shell.gateway.exchange import Exchange
from shell.gateway.fields import FieldTable, implemented, read_fields
from shell.gateway.json_body import read_json
from shell.gateway.process_errors import explaining_processes, read_pid
from shell.gateway.replies.processes import ErasedSlot, RestoredSlot, SavedSlot, Slot
from shell.gateway.requests import list_processes
from shell.gateway.service import Endpoint
from syscalls.errno import SyscallError
from syscalls.image import MAX_IMAGE_NAME
from syscalls.process import ProcessInfo

Json = dict[str, Any]

ACTIONS = ("save", "restore", "erase")
IMAGE_FIELDS: FieldTable = implemented("filename", "overwrite")


class ImageFields(msgspec.Struct, kw_only=True):
    """The body of a save or restore. The name is an image's, not a path."""

    filename: Annotated[str, Meta(min_length=1, max_length=MAX_IMAGE_NAME)]
    overwrite: bool = True  # of a save: replace an image of that name, as llama.cpp does


class SlotQuery(msgspec.Struct):
    """What to do."""

    action: Literal["save", "restore", "erase"]


def describe_slot(process: ProcessInfo, context: int) -> Json:
    """Return one process as a slot."""
    return {
        "id": process.pid,
        "is_processing": not process.state.startswith(("BLOCKED(Input", "STOPPED")),
        "state": process.state,
        "label": process.label,
        "n_ctx": context,
        "n_past": process.num_computed,
        "n_tokens": process.num_tokens,
        "n_decoded": process.usage.num_output_tokens,
        "n_prompt_tokens_cache": process.usage.num_cached_tokens,
    }


class Slots(Endpoint):
    """Lists the processes that the caller may see."""

    name = "slots"
    answer_type = list[Slot]

    async def answer(self, exchange: Exchange) -> None:
        """Ask the kernel."""
        contexts = {model.name: model.max_model_len for model in self.service.link.models}
        processes = await list_processes(self.client_of(exchange))
        rows = [describe_slot(process, contexts.get(process.model, 0)) for process in processes]
        await exchange.respond_json(200, rows)


class SlotAction(Endpoint):
    """`POST /slots/{id}?action=save|restore|erase`."""

    name = "slots.action"
    body_type = ImageFields
    query_struct = SlotQuery
    answer_type = SavedSlot | RestoredSlot | ErasedSlot

    async def answer(self, exchange: Exchange) -> None:
        """Do it, and answer when it is done."""
        action = exchange.query.get("action", "")
        if action not in ACTIONS:
            raise invalid_value(
                "action", f"'action' is {action[:40]!r}; it must be one of {', '.join(ACTIONS)}."
            )
        pid = read_pid(exchange.path_params["id"], "id")
        if action == "erase":
            await exchange.respond_json(200, await self._erase(exchange, pid))
            return
        body = await read_json(self.service, exchange)
        fields = read_fields(body, IMAGE_FIELDS, ImageFields, exchange.ignored)
        run = self._save if action == "save" else self._restore
        await exchange.respond_json(200, await run(exchange, pid, fields))

    async def _save(self, exchange: Exchange, pid: int, fields: ImageFields) -> Json:
        with explaining_processes():
            saved = await self.client_of(exchange).checkpoint(
                pid, fields.filename, overwrite=fields.overwrite
            )
        return {
            "id_slot": pid,
            "filename": saved.name,
            "n_saved": saved.num_saved_tokens,
            "n_tokens": saved.num_tokens,
            "n_written": saved.num_bytes,
            "timings": {"save_ms": round(saved.seconds * 1000, 3)},
        }

    async def _restore(self, exchange: Exchange, pid: int, fields: ImageFields) -> Json:
        client = self.client_of(exchange)
        began = trio.current_time()
        with explaining_processes():
            spawned = await client.restore(fields.filename, detached=True)
            images = {image.name: image for image in await client.images()}
        image = images.get(fields.filename)  # None: removed meanwhile
        return {
            "id_slot": spawned.pids[0],
            "filename": fields.filename,
            "n_restored": image.num_saved_tokens if image else 0,
            "n_read": image.num_bytes if image else 0,
            "timings": {"restore_ms": round((trio.current_time() - began) * 1000, 3)},
        }

    async def _erase(self, exchange: Exchange, pid: int) -> Json:
        client = self.client_of(exchange)
        with explaining_processes():
            num_tokens = (await client.stat(pid)).num_tokens
            await client.kill(pid)
        with suppress(SyscallError):  # whoever reads it may have reaped it
            await client.wait(pid)
        return {"id_slot": pid, "n_erased": num_tokens}
