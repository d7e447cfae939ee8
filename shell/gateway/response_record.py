"""Stored responses: one file each, written whole, so that they outlive the gateway.

What is generated lives in the kernel, in a process that outlives the gateway as well; the record says which,
and from which of its output tokens on. See docs/adr/0009-responses-are-processes-and-files.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import structlog
import trio

from shell.gateway.errors import ApiError
from shell.gateway.process_errors import NO_RETRY

Json = dict[str, Any]

_ID = re.compile(r"resp_[0-9a-f]{32}")
log = structlog.get_logger("gateway.responses")


class Record(msgspec.Struct, kw_only=True):
    """One response. It is over when `status` is not "in_progress"."""

    id: str
    tenant: str
    created_at: int  # seconds since the epoch
    body: Json  # as it was asked for, without `input`
    messages: list[Json]  # the whole conversation before the answer, without instructions
    echo: Json  # fields of the request that the response object repeats
    model: str
    input_items: list[Json]
    prompt_text: str
    prompt: list[int]  # token ids
    is_stored: bool = True
    is_background: bool = False
    pid: int | None = None  # its label is `id`; None: not known to have been made
    offset: int = 0  # of this response's first token in the output of the process
    spawn_key: str = ""  # equal for equal ways of sampling
    status: str = "in_progress"  # then "completed", "incomplete", "failed", "cancelled"
    error: Json | None = None
    tokens: list[int] = []  # once it is over
    output: list[Json] = []  # likewise, without log-probabilities
    logprobs: bytes = b""  # likewise, of the tokens where they were asked for; MessagePack: rows are large
    num_cached_tokens: int = 0
    num_kept_tokens: int = 0  # of the prompt, in the memory of the process that it was forked from
    num_reasoning_tokens: int = 0

    @property
    def is_over(self) -> bool:
        """True when nothing follows."""
        return self.status != "in_progress"


_decoder = msgspec.json.Decoder(Record)


@attrs.define(eq=False)
class ResponseStore:
    """The records of a folder, bounded in number and age."""

    folder: Path
    max_records: int
    max_age_seconds: float
    _records: dict[str, Record] = attrs.field(factory=dict)  # oldest first

    def load(self) -> None:
        """Read what an earlier gateway left; a damaged file is logged and left out. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for path in self.folder.glob("resp_*.json"):
            try:
                found.append(_decoder.decode(path.read_bytes()))
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("record_unreadable", path=str(path), error=str(error))
        for record in sorted(found, key=lambda record: record.created_at):
            self._records[record.id] = record
        for path in self.folder.glob(".resp_*"):  # an unfinished write
            path.unlink(missing_ok=True)

    def get(self, wanted: str, tenant: str) -> Record:
        """Find a tenant's record. Raises ApiError 404 `response_not_found`."""
        record = self._records.get(wanted)
        if record is None or record.tenant != tenant:
            message = f"Response with id '{wanted[:64]}' not found."
            raise ApiError(404, "invalid_request_error", "response_not_found", message)
        return record

    async def enter(self, record: Record) -> None:
        """Write a new record. Raises ApiError 507: the disk does not take it."""
        try:
            await self._save(record)
        except OSError as error:
            message = f"The response cannot be stored: {error.strerror}. With 'store': false it can be made."
            raise ApiError(507, "server_error", "insufficient_storage", message, headers=NO_RETRY) from error

    async def save(self, record: Record) -> None:
        """Write a record again; one that the disk does not take is here as long as the gateway lives."""
        try:
            await self._save(record)
        except OSError as error:
            log.error("record_not_written", id=record.id, error=str(error))

    async def _save(self, record: Record) -> None:
        """Write a record, whole or not at all. It takes its place at once. Raises OSError."""
        assert _ID.fullmatch(record.id)
        self._records[record.id] = record
        # In a thread: the disk takes its time, and nobody else's stream is to wait for it. Shielded: what was
        # generated is kept, also when it is over because the gateway ends.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._write, record.id, msgspec.json.encode(record))
        if self._records.get(record.id) is not record:
            self.remove(record)  # it was given up meanwhile

    def _write(self, name: str, data: bytes) -> None:
        draft = self.folder / f".{name}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.folder / f"{name}.json")
        except OSError:
            draft.unlink(missing_ok=True)
            raise

    def list_unfinished(self) -> list[Record]:
        """Records that are not over, oldest first."""
        return [record for record in self._records.values() if not record.is_over]

    def remove(self, record: Record) -> None:
        """Forget a record."""
        self._records.pop(record.id, None)
        (self.folder / f"{record.id}.json").unlink(missing_ok=True)

    def list_expired(self, now: float, num_new: int = 0) -> Iterator[Record]:
        """Records to be given up, oldest first: too old, or too many once `num_new` more have come."""
        excess = len(self._records) + num_new - self.max_records
        for record in list(self._records.values()):
            if record.is_over and (now - record.created_at > self.max_age_seconds or excess > 0):
                excess -= 1
                yield record

    def check_room(self) -> None:
        """Raise ApiError 429 `too_many_responses` when no more can be stored."""
        if len(self._records) >= self.max_records:
            message = f"{self.max_records} responses are stored and none is over: the limit is max_responses."
            raise ApiError(429, "requests", "too_many_responses", message, None, {"retry-after": "5"})
