"""Decode steps on memory of fixed places in a few sizes, so that they can be recorded as graphs.

A graph has the whole step, draws by the four cuts and penalties included; or the forward pass alone, where a
draw takes more than that, or what is not known yet.

A batch of lone tokens is padded to a bucket, the grid of attention to a power of two of splits, and rows with
penalties to a power of two of those. None of it changes a bit of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from attrs import frozen

from drivers.model.launch import Launcher
from drivers.model.transformer import Transformer
from drivers.ops.batch import Batch, ContiguousPages, ResolvedRow
from drivers.ops.counted import Counted
from drivers.ops.kv_pages import KVPages
from drivers.triton_ops.attention import SPLIT
from drivers.triton_ops.plan import plan_singles
from drivers.triton_ops.sample import NUM_NUMBERS, draw_numbers, sample
from drivers.triton_ops.scores import penalise, score_numbers
from native.sampling import Draw

__all__ = ["DecodeBuckets", "bucket_size"]

MAX_POWER = 16  # up to here buckets are powers of 2, then multiples of it
NO_TOKEN = -1  # in place of an id: the one that the space sampled last
ASID, POSITION, TOKEN = range(3)  # rows of a decode step's integers


def bucket_size(num_rows: int) -> int:
    """Rows that a step of so many is padded to: 1, 2, 4, 8, 16, 32, 48, 64, ..."""
    if num_rows > MAX_POWER:
        return -(-num_rows // MAX_POWER) * MAX_POWER
    return int(1 << (num_rows - 1).bit_length())


@frozen(eq=False)
class _Bucket:
    """Memory of fixed places for steps of up to `size` lone tokens."""

    size: int
    ints: torch.Tensor  # [3, size], int64
    numbers: torch.Tensor  # [NUM_NUMBERS, size], fp64
    ids: torch.Tensor  # [size], int64
    num_bad: torch.Tensor
    staged: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # of ints and numbers, on the host, for each turn


@frozen(eq=False)
class _Penalties:
    """Memory of fixed places for up to `size` rows that have some."""

    size: int
    notes: torch.Tensor  # see `Scores`
    numbers: torch.Tensor  # [3, size], fp64
    staged: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # of both, on the host, for each turn


class DecodeBuckets:
    """Launches steps of lone tokens, each of which is sampled, by draws that triton carries out.

    Args:
        model: on triton's operations.
        pages: those of a space lie one behind the other.
        last: [max_spaces + 1], int64 on the device: the token that each space sampled last; the last entry
            is that of padding.
        launcher: of the model's device.
        num_turns: steps in flight at most: a copy to the device may be under way for each.
    """

    def __init__(
        self,
        model: Transformer,
        pages: KVPages,
        last: torch.Tensor,
        launcher: Launcher,
        num_turns: int,
    ) -> None:
        assert isinstance(pages.index, ContiguousPages)
        self._model, self._pages, self._last, self._launcher = model, pages, last, launcher
        self._pages_per_space = pages.index.pages_per_space
        self._num_turns = num_turns
        self._tokens_per_page = pages.layers[0].keys.shape[1]
        self._nobody = len(last) - 1
        self._places = (last, pages.layers[0].keys, pages.layers[0].values)
        self._logits: torch.Tensor | None = None  # [bucket_size(max_spaces), vocab_size], made when needed
        self._buckets: dict[int, _Bucket] = {}
        self._penalties: dict[int, _Penalties] = {}

    def launch(
        self,
        rows: Sequence[ResolvedRow],
        draws: Sequence[Draw | None],
        counted: Counted | None,
        turn: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Launch a step; the tokens and how many logits are bad, [bucket_size] each, on the device.

        They, and what was staged in this turn, are used again by the next step of the bucket and the turn.

        Args:
            rows: lone tokens.
            draws: one for each, plain or counted.
            counted: what penalties are about; None: no draw has any.
            turn: of the steps in flight.
        """
        bucket, num_splits = self._stage(rows, turn)
        numbers, count = bucket.staged[turn][1], len(rows)
        numbers.numpy()[:, :count] = draw_numbers(draws)
        numbers.numpy()[:, count:] = 0.0
        bucket.numbers.copy_(numbers, non_blocking=True)
        key: tuple[int, ...] = (bucket.size, num_splits)
        places = [bucket.ints, bucket.numbers, bucket.ids, bucket.num_bad, *self._places]
        penalties, counts = None, None
        if counted is not None:
            penalties, counts = self._stage_penalties(draws, counted, turn), counted.counts
            key = (*key, penalties.size)
            places += [penalties.notes, penalties.numbers, counts]
        work = functools.partial(self._decode, bucket, num_splits * SPLIT, penalties, counts)
        self._launcher.run(key, work, places)
        return bucket.ids, bucket.num_bad

    def launch_forward(self, rows: Sequence[ResolvedRow], turn: int) -> torch.Tensor:
        """Launch no more than the forward pass; the logits, [num_rows, vocab_size], until the next step."""
        bucket, num_splits = self._stage(rows, turn)
        if self._logits is None:
            size = (bucket_size(self._nobody), self._model.config.vocab_size)
            self._logits = torch.zeros(size, device=self._model.device)
        work = functools.partial(self._keep_logits, bucket, num_splits * SPLIT, self._logits[: bucket.size])
        places = (bucket.ints, self._logits, *self._places)
        self._launcher.run((bucket.size, num_splits, "forward"), work, places)
        return self._logits[: len(rows)]

    def _stage(self, rows: Sequence[ResolvedRow], turn: int) -> tuple[_Bucket, int]:
        """Send a step's integers to the device; its bucket, and the splits of its attention."""
        bucket = self._bucket(bucket_size(len(rows)))
        ints, count = bucket.staged[turn][0], len(rows)
        table = ints.numpy()
        table[:] = [[self._nobody], [-1], [0]]
        table[ASID, :count] = [row.asid for row in rows]
        table[POSITION, :count] = [row.start for row in rows]
        table[TOKEN, :count] = [row.tokens[0] if row.tokens else NO_TOKEN for row in rows]
        bucket.ints.copy_(ints, non_blocking=True)
        num_splits = max(row.start for row in rows) // SPLIT + 1
        return bucket, 1 << (num_splits - 1).bit_length()

    def _stage_penalties(self, draws: Sequence[Draw | None], counted: Counted, turn: int) -> _Penalties:
        """Send the penalties of a step to the device."""
        notes, numbers = score_numbers(draws, counted)
        count = notes.shape[1]
        size = 1 << (count - 1).bit_length()
        if (memory := self._penalties.get(size)) is None:
            device, host = self._model.device, self._launcher.host_memory
            memory = self._penalties[size] = _Penalties(
                size,
                torch.zeros((4, size), dtype=torch.int64, device=device),
                torch.zeros((3, size), dtype=torch.float64, device=device),
                tuple(
                    (host((4, size), torch.int64), host((3, size), torch.float64))
                    for _ in range(self._num_turns)
                ),
            )
        staged = memory.staged[turn]
        for to, given, padding in zip(staged, (notes, numbers), (-1, 1.0), strict=True):
            to.numpy()[:, :count] = given
            to.numpy()[:, count:] = padding
        memory.notes.copy_(staged[0], non_blocking=True)
        memory.numbers.copy_(staged[1], non_blocking=True)
        return memory

    def _bucket(self, size: int) -> _Bucket:
        """The memory of a size, made when it is first needed."""
        if (bucket := self._buckets.get(size)) is None:
            device, host = self._model.device, self._launcher.host_memory
            bucket = self._buckets[size] = _Bucket(
                size,
                torch.zeros((3, size), dtype=torch.int64, device=device),
                torch.zeros((NUM_NUMBERS, size), dtype=torch.float64, device=device),
                torch.zeros(size, dtype=torch.int64, device=device),
                torch.zeros(size, dtype=torch.int64, device=device),
                tuple(
                    (host((3, size), torch.int64), host((NUM_NUMBERS, size), torch.float64))
                    for _ in range(self._num_turns)
                ),
            )
        return bucket

    def _decode(
        self, bucket: _Bucket, max_length: int, penalties: _Penalties | None, counts: torch.Tensor | None
    ) -> None:
        """The device's part of a step: tensors only, at places that stay."""
        logits, scores = self._forward(bucket, max_length), None
        if penalties is not None and counts is not None:
            scores = penalise(logits, penalties.notes, penalties.numbers, counts)
        ids, num_bad = sample(logits, bucket.numbers, scores=scores)
        self._last[bucket.ints[ASID]] = ids
        bucket.ids.copy_(ids)
        bucket.num_bad.copy_(num_bad)

    def _keep_logits(self, bucket: _Bucket, max_length: int, logits: torch.Tensor) -> None:
        """The device's part up to the draws: logits, at a place that stays."""
        logits.copy_(self._forward(bucket, max_length))

    def _forward(self, bucket: _Bucket, max_length: int) -> torch.Tensor:
        asids, positions, given = bucket.ints
        token_ids = torch.where(given == NO_TOKEN, self._last[asids], given)
        first_pages = asids * self._pages_per_space
        pages = torch.where(positions >= 0, first_pages + positions // self._tokens_per_page, -1)
        order = torch.arange(bucket.size, device=asids.device)
        batch = Batch(
            token_ids=token_ids,
            positions=positions,
            pages=pages,
            slots=positions.clamp(min=0) % self._tokens_per_page,
            sample_indices=order,
            spans=(),
            tokens_per_page=self._tokens_per_page,
        )
        plan = plan_singles(self._model.shape, torch.stack((first_pages, positions, order)), max_length)
        return self._model.forward_planned(batch, plan, self._pages)
