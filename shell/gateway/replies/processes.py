"""`/v1/requests` and `/slots`: processes as this API and llama.cpp name them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shell.gateway.replies.common import Count


class RequestRow(msgspec.Struct, forbid_unknown_fields=True):
    """One process of a request. `kv_bytes` is what it has in a device's memory."""

    id: str
    object: Literal["request"]
    pid: int
    tenant: str
    model: str
    state: str
    age_seconds: float
    num_tokens: Count
    num_computed_tokens: Count
    num_prompt_tokens: Count
    num_output_tokens: Count
    kv_bytes: Count
    priority: int  # as requests give it


class RequestList(msgspec.Struct, forbid_unknown_fields=True):
    """What is generated now."""

    object: Literal["list"]
    data: list[RequestRow]


class RequestTimeline(RequestRow):
    """One process with what happened to it, by time."""

    verdict: str
    seconds: dict[str, float]  # by what they were spent on
    num_dropped_entries: Count
    timeline: list[dict[str, Any]]  # docs/abi.md, `timeline_entry`


class RequestDetails(msgspec.Struct, forbid_unknown_fields=True):
    """One request."""

    id: str
    object: Literal["request"]
    processes: list[RequestTimeline]


class CancelledRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A request whose processes were killed, and whose memory is free."""

    id: str
    object: Literal["request"]
    cancelled: Literal[True]
    pids: list[int]


class Slot(msgspec.Struct, forbid_unknown_fields=True):
    """One process in llama.cpp's words."""

    id: int
    is_processing: bool
    state: str
    label: str
    n_ctx: int
    n_past: int
    n_tokens: int
    n_decoded: int
    n_prompt_tokens_cache: int


class SavedSlot(msgspec.Struct, forbid_unknown_fields=True):
    """What was written."""

    id_slot: int
    filename: str
    n_saved: int
    n_tokens: int
    n_written: int
    timings: dict[str, float]


class RestoredSlot(msgspec.Struct, forbid_unknown_fields=True):
    """What was read."""

    id_slot: int
    filename: str
    n_restored: int
    n_read: int
    timings: dict[str, float]


class ErasedSlot(msgspec.Struct, forbid_unknown_fields=True):
    """What is gone."""

    id_slot: int
    n_erased: int


class DoneAction(msgspec.Struct, forbid_unknown_fields=True):
    """What a button of the page did."""

    pid: int
    action: Literal["kill", "stop", "cont", "nice"]


class Moment(msgspec.Struct, frozen=True, array_like=True):
    """One thing that happened to a process, or several of a kind in a row. Seconds since spawn."""

    kind: str
    at: float
    seconds: float
    count: int
    text: str


class Life(msgspec.Struct, frozen=True):
    """Where a process's time went, and what the kernel says about it in one line."""

    pid: int
    state: str
    verdict: str
    seconds: dict[str, float]
    entries: list[Moment]
