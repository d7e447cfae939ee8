"""The ways to take a process's memory that `llmos bench switch` compares, as options of the configuration."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class Variant:
    """One way.

    Args:
        name: in the report.
        options: fields of Config, over those that all variants share.
    """

    name: str
    options: dict[str, Any]


BLOCK_TOKENS = 16  # of the baseline's copies: one block of one layer's keys or values

RECOMPUTE, FCFS = "recompute", "fcfs, never re-ranked"
BLOCKS, GROUPS, ASYNC, REUSE, AUTO = "sync block swap", "groups", "+async", "+reuse", "auto"
NUM_VARIANTS = 7
ABLATION = (BLOCKS, GROUPS, ASYNC, REUSE)


def make_variants(block_bytes: int, rerank_steps: int, seed: int) -> dict[str, Variant]:
    """All variants by name.

    Args:
        block_bytes: of BLOCK_TOKENS tokens of one layer, keys or values.
        rerank_steps: steps between two draws of everybody's priority.
        seed: of those draws.
    """
    # Without the prefix cache memory is where switching has put it, or nowhere.
    shared: dict[str, Any] = {"prefix_cache": False}
    ranked = {**shared, "policy": "rerank", "rerank_steps": rerank_steps, "rerank_seed": seed}
    swap = {**ranked, "preempt": "swap"}
    sync = {**swap, "switching": "sync", "swap_reuse": False}
    piece_kib = max(1, block_bytes >> 10)
    chosen = {
        FCFS: {**shared, "policy": "fcfs"},
        RECOMPUTE: {**ranked, "preempt": "recompute"},
        BLOCKS: {**sync, "swap_piece_kib": piece_kib},
        GROUPS: sync,
        ASYNC: {**sync, "switching": "async"},
        REUSE: {**swap, "switching": "async", "swap_reuse": True},
        AUTO: {**ranked, "preempt": "auto", "switching": "auto", "swap_reuse": True},
    }
    return {name: Variant(name, options) for name, options in chosen.items()}
