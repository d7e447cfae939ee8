"""What the live page shows of processes and devices, and how one look differs from the one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from syscalls.memory import FrameMap
from syscalls.process import ProcessInfo
from syscalls.system import DeviceInfo

Json = dict[str, Any]
Row = tuple[Any, ...]

COLUMNS = ("pid", "tenant", "activity", "label", "model", "nice", "given", "output", "bytes", "preemptions")


def describe_row(process: ProcessInfo) -> Row:
    """Return what the table shows of a process, by COLUMNS. Of one that decodes a column or two change."""
    usage = process.usage
    return (
        process.pid,
        process.tenant,
        process.activity,
        process.label,
        process.model,
        process.nice,
        process.num_tokens - usage.num_output_tokens,
        usage.num_output_tokens,
        process.num_resident_bytes,
        usage.num_preemptions,
    )


def difference(
    before: Mapping[int, Row], now: Mapping[int, Row]
) -> tuple[list[Row], dict[str, list[Any]], list[int]]:
    """Return the rows that are new, what changed in the others, and the pids that are gone.

    What changed is, by column, a flat list of pid, value, pid, value …: a thousand processes that decode
    cost ten bytes each instead of ninety.
    """
    new: list[Row] = []
    changed: dict[str, list[Any]] = {}
    for pid, row in now.items():
        old = before.get(pid)
        if old is None:
            new.append(row)
        elif old != row:
            for column, was, value in zip(COLUMNS, old, row, strict=True):
                if was != value:
                    changed.setdefault(column, []).extend((pid, value))
    return new, changed, [pid for pid in before if pid not in now]


def describe_device(device: DeviceInfo, frame_map: FrameMap | None) -> Json:
    """Return what the page shows of a device; without a map it has not loaded a model.

    The cells of the map are run lengths, "12p3sf": twelve private, three shared, one free. The letters are
    the first ones of the kinds.
    """
    found: Json = {"device": device.name, "state": device.state, "message": device.message}
    if device.swap is not None:
        found["tiers"] = [(tier.name, tier.num_bytes, tier.num_free_bytes) for tier in device.swap.tiers]
    if device.cache is not None:
        found["asked"], found["found"] = device.cache.num_query_tokens, device.cache.num_hit_tokens
    if frame_map is not None:
        runs = ((run.kind[0], run.num_cells) for run in frame_map.runs)
        found |= {
            "model": frame_map.model,
            "weights": frame_map.weights,
            "frame_bytes": frame_map.frame_bytes,
            "num_frames": frame_map.num_frames,
            "frames_per_cell": frame_map.frames_per_cell,
            "num_by_kind": frame_map.num_by_kind,
            "cells": "".join(f"{count if count > 1 else ''}{letter}" for letter, count in runs),
        }
    return found
