"""Reference attention over paged keys and values: fixed tiles of queries against fixed blocks of keys.

Queries are grouped in tiles at absolute positions (a multiple of the tile's length), keys in blocks at
absolute positions inside their page. Each (tile, block) pair gives, in one batched product of fixed shape, a
partial softmax: its largest score m, its sum l of exp(score - m), and its weighted values o. The partial
results of a tile are then joined in the order of the blocks, sixteen at a time:

    m' = max(m, m_j)      l' = l exp(m - m') + Σ_j l_j exp(m_j - m')      o' likewise;      result = o / l

A block that a query cannot see has m_j = -inf and l_j = o_j = 0: adding it changes no bit, so the result for
a position is the same whatever chunk it arrived in.

Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax"; Dao et al. 2022,
"FlashAttention", arXiv:2205.14135.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from attrs import frozen

from drivers.ops.batch import Batch, Span
from drivers.ops.int8 import scales_of
from drivers.ops.interface import AttentionShape
from drivers.ops.tiling import bmm_rows, fold_sum, verified_bmm_rows

__all__ = ["ReferencePlan", "key_block_tokens", "paged_attention", "plan_attention", "tile_lengths"]

MAX_KEY_BLOCK = 128  # keys; pages that hold more are split
WAVE_BLOCKS = 16  # partial results joined at once; a constant, because it is part of the order of summation
MIN_BMM_ROWS = 4
PREFILL_TILE = 16  # query tokens
MAX_GROUP_BYTES = 4 << 20  # of gathered keys: bounds scratch memory, and stays near the caches


def key_block_tokens(tokens_per_page: int) -> int:
    """Keys in one block: the largest divisor of a page up to 128, a multiple of 16 where there is one."""
    divisors = [n for n in range(1, min(tokens_per_page, MAX_KEY_BLOCK) + 1) if tokens_per_page % n == 0]
    return max(divisors, key=lambda n: (n % 16 == 0, n))


@functools.lru_cache(maxsize=256)
def _verified_tiles(
    shape: AttentionShape, key_block: int, device: torch.device, num_threads: int
) -> tuple[tuple[int, ...], bool]:
    del num_threads  # part of the key: libraries choose their kernels by it
    small = 1
    while small * shape.group_size < MIN_BMM_ROWS:
        small *= 2
    candidates = (small * shape.group_size, PREFILL_TILE * shape.group_size)
    scores = verified_bmm_rows(shape.head_dim, key_block, candidates, device)
    values = verified_bmm_rows(key_block, shape.head_dim, candidates, device)
    passed = tuple(rows // shape.group_size for rows in candidates if rows in scores and rows in values)
    return (passed, True) if passed else ((small, PREFILL_TILE), False)


def tile_lengths(shape: AttentionShape, key_block: int, device: torch.device) -> tuple[tuple[int, ...], bool]:
    """Query tokens in a tile, smallest first, and whether `bmm` was verified for them or must be avoided."""
    return _verified_tiles(shape, key_block, device, torch.get_num_threads())


@frozen(eq=False)
class Wave:
    """Up to sixteen consecutive key blocks of the tiles of a group, as flat pairs ordered by block."""

    tiles: torch.Tensor  # [num_pairs] tile of each pair, within the group
    pages: torch.Tensor  # [num_pairs]
    blocks: torch.Tensor  # [num_pairs] block inside the page
    hidden: torch.Tensor  # [num_pairs, 1, tile_length, 1, key_block] bool: a key this query must not see
    stale_pairs: torch.Tensor  # [num_stale] pair and slot of keys past the tile's last position
    stale_slots: torch.Tensor
    counts: tuple[int, ...]  # block by block: pairs, always those of the first tiles


@frozen(eq=False)
class Group:
    """Tiles of one length that are computed together, longest context first."""

    tile_length: int
    queries: torch.Tensor  # [num_tiles, tile_length] flat token of each slot; padding repeats a neighbour
    waves: tuple[Wave, ...]
    out_slots: torch.Tensor  # [num_real] slots (tile * tile_length + slot) that are not padding
    out_tokens: torch.Tensor  # [num_real] flat token of each


@frozen(eq=False)
class ReferencePlan:
    """A step's attention: groups of tiles, each with its key blocks."""

    shape: AttentionShape
    key_block: int
    bmm_verified: bool
    groups: tuple[Group, ...]


def plan_attention(batch: Batch, shape: AttentionShape) -> ReferencePlan:
    """Cut a batch into tiles and list the key blocks that each must read."""
    device = batch.token_ids.device
    key_block = key_block_tokens(batch.tokens_per_page)
    lengths, bmm_verified = tile_lengths(shape, key_block, device)
    by_length: dict[int, list[Span]] = {}
    for span in batch.spans:
        # which length serves a row is free to choose: the verified ones give equal bits
        length = lengths[-1] if span.num_tokens * 2 >= lengths[-1] else lengths[0]
        by_length.setdefault(length, []).append(span)
    groups = [
        group
        for length, spans in sorted(by_length.items())
        for group in _plan_groups(spans, length, batch.tokens_per_page, key_block, shape, device)
    ]
    return ReferencePlan(shape, key_block, bmm_verified, tuple(groups))


def _plan_groups(
    spans: list[Span],
    length: int,
    tokens_per_page: int,
    key_block: int,
    shape: AttentionShape,
    device: torch.device,
) -> Iterator[Group]:
    page_table = np.zeros((len(spans), max(len(span.pages) for span in spans)), dtype=np.int64)
    tile_spans: list[np.ndarray] = []
    tile_positions: list[np.ndarray] = []
    for index, span in enumerate(spans):
        page_table[index, : len(span.pages)] = span.pages
        first, last = span.start // length, (span.end - 1) // length
        tile_positions.append(np.arange(first, last + 1) * length)
        tile_spans.append(np.full(last - first + 1, index))
    span_of = np.concatenate(tile_spans)
    starts = np.array([span.start for span in spans])[span_of]
    ends = np.array([span.end for span in spans])[span_of]
    offsets = np.array([span.offset for span in spans])[span_of]
    wanted = np.concatenate(tile_positions)[:, None] + np.arange(length)  # [num_tiles, length]
    positions = np.clip(wanted, starts[:, None], ends[:, None] - 1)  # padding repeats a real position
    real = positions == wanted
    tokens = positions - starts[:, None] + offsets[:, None]
    num_blocks = positions[:, -1] // key_block + 1
    order = np.argsort(-num_blocks, kind="stable")

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    block_bytes = key_block * shape.num_kv_heads * shape.head_dim * 4
    begin = 0
    while begin < len(order):
        wave_blocks = min(WAVE_BLOCKS, int(num_blocks[order[begin]]))
        chosen = order[begin : begin + max(1, MAX_GROUP_BYTES // (wave_blocks * block_bytes))]
        begin += len(chosen)
        out_slots = np.flatnonzero(real[chosen])
        yield Group(
            tile_length=length,
            queries=tensor(tokens[chosen]),
            waves=tuple(
                _plan_wave(
                    first, num_blocks[chosen], positions[chosen], page_table[span_of[chosen]],
                    tokens_per_page, key_block, shape.window, tensor,
                )
                for first in range(0, int(num_blocks[chosen[0]]), WAVE_BLOCKS)
            ),
            out_slots=tensor(out_slots),
            out_tokens=tensor(tokens[chosen].reshape(-1)[out_slots]),
        )  # fmt: skip


def _plan_wave(
    first: int,
    num_blocks: np.ndarray,
    positions: np.ndarray,
    page_table: np.ndarray,
    tokens_per_page: int,
    key_block: int,
    window: int | None,
    tensor: Callable[[np.ndarray], torch.Tensor],
) -> Wave:
    last = min(first + WAVE_BLOCKS, int(num_blocks[0]))
    counts = tuple(int(np.count_nonzero(num_blocks > block)) for block in range(first, last))
    tiles = np.concatenate([np.arange(count) for count in counts])
    block_of = np.repeat(np.arange(first, last), counts)
    key_start = block_of * key_block
    keys = (key_start[:, None] + np.arange(key_block))[:, None, :]  # [num_pairs, 1, key_block]
    queries = positions[tiles][:, :, None]  # [num_pairs, length, 1]
    hidden = keys > queries
    stale_pairs, stale_slots = np.nonzero(keys[:, 0] > positions[tiles, -1:])
    if window is not None:
        hidden |= keys <= queries - window
    return Wave(
        tiles=tensor(tiles),
        pages=tensor(page_table[tiles, key_start // tokens_per_page]),
        blocks=tensor(key_start % tokens_per_page // key_block),
        hidden=tensor(hidden[:, None, :, None, :]),
        stale_pairs=tensor(stale_pairs),
        stale_slots=tensor(stale_slots),
        counts=counts,
    )


def paged_attention(
    q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, plan: ReferencePlan
) -> torch.Tensor:
    """Causal attention of one layer; see `Ops.attention` for the shapes."""
    shape = plan.shape
    scaled = q.float() * shape.head_dim**-0.5
    out = torch.empty_like(q)
    for group in plan.groups:
        result = _attend_group(scaled, k_pages, v_pages, group, plan)
        out.index_copy_(0, group.out_tokens, result.index_select(0, group.out_slots).to(q.dtype))
    return out


def _gather(pages: torch.Tensor, wave: Wave, key_block: int) -> torch.Tensor:
    """Copy a wave's key blocks: [num_pairs, kv_heads, key_block, head_dim], fp32, contiguous."""
    if pages.dtype == torch.int8:
        numbers, scales = (_gather_blocks(x, wave, key_block) for x in (pages, scales_of(pages)[..., None]))
        return numbers * scales
    return _gather_blocks(pages, wave, key_block)


def _gather_blocks(pages: torch.Tensor, wave: Wave, key_block: int) -> torch.Tensor:
    if pages.shape[1] == key_block:  # the common case, and several times faster than two indices
        return pages.transpose(1, 2).index_select(0, wave.pages).float().contiguous()
    tokens_per_page = pages.shape[1]
    blocks = pages.unflatten(1, (tokens_per_page // key_block, key_block)).transpose(2, 3)
    gathered: torch.Tensor = blocks[wave.pages, wave.blocks].float()
    return gathered.contiguous()


def _attend_group(
    q: torch.Tensor, k_pages: torch.Tensor, v_pages: torch.Tensor, group: Group, plan: ReferencePlan
) -> torch.Tensor:
    heads, group_size, dim = plan.shape.num_kv_heads, plan.shape.group_size, plan.shape.head_dim
    num_tiles, length = group.queries.shape
    rows = length * group_size
    gathered = q.index_select(0, group.queries.view(-1)).view(num_tiles, length, heads, group_size, dim)
    tiles = gathered.transpose(1, 2).contiguous().view(num_tiles, heads, rows, dim)
    best = torch.full((num_tiles, heads, rows, 1), -torch.inf, device=q.device)
    total = torch.zeros_like(best)
    weighted = torch.zeros_like(tiles)
    for wave in group.waves:
        num_pairs = wave.tiles.shape[0]
        k = _gather(k_pages, wave, plan.key_block).view(-1, plan.key_block, dim)
        v = _gather(v_pages, wave, plan.key_block)
        # what lies past the end was never written by this row: weight 0 would not tame a NaN
        v.transpose(1, 2)[wave.stale_pairs, wave.stale_slots] = 0.0
        scores = bmm_rows(
            tiles.index_select(0, wave.tiles).view(-1, rows, dim), k.transpose(1, 2), plan.bmm_verified
        )
        scores = scores.view(num_pairs, heads, length, group_size, plan.key_block)
        scores.masked_fill_(wave.hidden, -torch.inf)
        scores = scores.view(num_pairs, heads, rows, plan.key_block)
        block_best = scores.amax(dim=-1, keepdim=True)
        block_safe = block_best.masked_fill(block_best == -torch.inf, 0.0)  # -inf - -inf would be NaN
        weights = torch.exp(scores - block_safe)
        block_weighted = bmm_rows(
            weights.view(-1, rows, plan.key_block), v.view(-1, plan.key_block, dim), plan.bmm_verified
        ).view(num_pairs, heads, rows, dim)
        block_total = fold_sum(weights)

        new_best = best.clone()
        start = 0
        for count in wave.counts:
            torch.maximum(new_best[:count], block_best[start : start + count], out=new_best[:count])
            start += count
        new_safe = new_best.masked_fill(new_best == -torch.inf, 0.0)
        carry = torch.exp(best - new_safe)
        scale = torch.exp(block_best - new_safe.index_select(0, wave.tiles))
        total *= carry
        weighted *= carry
        block_total *= scale
        block_weighted *= scale
        start = 0
        for count in wave.counts:  # block by block: the order of summation is the order of positions
            total[:count] += block_total[start : start + count]
            weighted[:count] += block_weighted[start : start + count]
            start += count
        best = new_best
    result = weighted / total
    return (
        result.view(num_tiles, heads, length, group_size, dim).transpose(1, 2).reshape(
            num_tiles * length, heads * group_size, dim
        )
    )  # fmt: skip
