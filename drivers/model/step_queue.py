"""Steps on a device that the host does not wait for: it prepares one while the device computes another.

A token that a step samples stays on the device, in a table by space, and the next step takes it from there.
So a step of lone tokens is launched before the host knows the tokens of the one before. What it knows is
all that a draw takes: seed and position give the random number. Draws that take more (penalties, bans, a
grammar's mask, log-probabilities) are the host's: their logits are copied to it, and their space cannot go
on before `collect` has decided the token and sent it back.

Steps of lone tokens run on memory of fixed places in a few sizes, so that they can be recorded as graphs:
the batch is padded to a bucket, and the grid of attention to a power of two of splits. Neither changes a bit
of a row. Other steps, with chunks of prompts, are launched as they are.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence

import torch
from attrs import frozen

from drivers.model.launch import Fence, Launcher
from drivers.model.reference_sampler import choose_token
from drivers.model.transformer import Transformer
from drivers.ops.batch import Batch, ContiguousPages, ResolvedRow, build_batch
from drivers.triton_ops.attention import SPLIT
from drivers.triton_ops.plan import plan_singles
from drivers.triton_ops.sample import NUM_NUMBERS, can_draw, draw_numbers, sample
from llmos.device import Row
from native.sampling import Choice, Draw

__all__ = ["MAX_IN_FLIGHT", "StepQueue", "bucket_size"]

MAX_IN_FLIGHT = 2
MAX_POWER = 16  # up to here buckets are powers of 2, then multiples of it
NO_TOKEN = -1  # in place of an id: the one that the space sampled last
ASID, POSITION, TOKEN = range(3)  # rows of a decode step's integers


def bucket_size(num_rows: int) -> int:
    """Rows that a step of so many is padded to: 1, 2, 4, 8, 16, 32, 48, 64, ..."""
    if num_rows > MAX_POWER:
        return -(-num_rows // MAX_POWER) * MAX_POWER
    return int(1 << (num_rows - 1).bit_length())


@frozen(eq=False)
class _Results:
    """Where a step's results arrive on the host."""

    ids: torch.Tensor  # [most rows of logits]
    num_bad: torch.Tensor


@frozen(eq=False)
class _InFlight:
    """A step that was launched."""

    fence: Fence
    results: _Results
    draws: tuple[Draw | None, ...]
    spaces: tuple[int | None, ...]  # whose next token each row of logits gives; None: nobody's
    logits: dict[int, torch.Tensor]  # on the host, of the rows that it decides


class _Bucket:
    """Memory of fixed places for steps of up to `size` lone tokens."""

    def __init__(self, size: int, launcher: Launcher, device: torch.device) -> None:
        self.size = size
        self.ints = torch.zeros((3, size), dtype=torch.int64, device=device)
        self.numbers = torch.zeros((NUM_NUMBERS, size), dtype=torch.float64, device=device)
        self.ids = torch.zeros(size, dtype=torch.int64, device=device)
        self.num_bad = torch.zeros(size, dtype=torch.int64, device=device)
        # a copy to the device may be under way for each step in flight
        self.staged = [
            (
                launcher.host_memory((3, size), torch.int64),
                launcher.host_memory((NUM_NUMBERS, size), torch.float64),
            )
            for _ in range(MAX_IN_FLIGHT)
        ]


class StepQueue:
    """Up to two steps of a model, launched in order and collected in order.

    Args:
        model: on triton's operations, whose pages are consecutive.
        k_pages: see `Transformer.run`; the page of a space is at `page_index`.
        v_pages: likewise.
        page_index: pages of a space.
        max_spaces: asids are below it.
        launcher: of the model's device.
    """

    def __init__(
        self,
        model: Transformer,
        k_pages: Sequence[torch.Tensor],
        v_pages: Sequence[torch.Tensor],
        page_index: ContiguousPages,
        max_spaces: int,
        launcher: Launcher,
    ) -> None:
        self._model, self._k_pages, self._v_pages = model, k_pages, v_pages
        self._page_index, self._launcher = page_index, launcher
        self._tokens_per_page = k_pages[0].shape[1]
        self._nobody = max_spaces  # the space of padding
        self._last = torch.zeros(max_spaces + 1, dtype=torch.int64, device=model.device)
        self._buckets: dict[int, _Bucket] = {}
        self._in_flight: deque[_InFlight] = deque()
        self._undecided: set[int] = set()
        self._num_launched = 0
        self._results: list[_Results] = [self._make_results(0)] * MAX_IN_FLIGHT

    @property
    def num_in_flight(self) -> int:
        """Steps launched and not collected."""
        return len(self._in_flight)

    def must_collect(self, rows: Sequence[ResolvedRow]) -> bool:
        """Whether `collect` has to come before these rows: two are in flight, or the host decides a token."""
        return len(self._in_flight) == MAX_IN_FLIGHT or any(
            not row.tokens and row.asid in self._undecided for row in rows
        )

    @torch.inference_mode()
    def launch(self, rows: Sequence[ResolvedRow], draws: Sequence[Draw | None]) -> None:
        """Launch a step, without waiting for anything.

        Args:
            rows: as in `Transformer.run`, but without tokens where the space samples its token on the device.
            draws: one for each row of logits; their arrays are not kept.

        Raises:
            RuntimeError: `must_collect`.
        """
        if self.must_collect(rows):
            raise RuntimeError(f"{self.num_in_flight} steps are in flight, and one of them must be collected")
        turn = self._num_launched % MAX_IN_FLIGHT
        self._num_launched += 1
        is_decode = all(len(row.tokens) <= 1 and row.sample and not row.targets for row in rows)
        if is_decode and all(map(can_draw, draws)):
            self._in_flight.append(self._launch_decode(rows, draws, turn))
        else:
            self._in_flight.append(self._launch_mixed(rows, draws, turn))

    @torch.inference_mode()
    def collect(self) -> list[Choice]:
        """Wait for the oldest step; a choice for each of its rows of logits.

        Raises:
            RuntimeError: nothing is in flight.
        """
        if not self._in_flight:
            raise RuntimeError("no step is in flight")
        step = self._in_flight.popleft()
        step.fence.synchronize()
        count = len(step.draws)
        choices = []
        ids, num_bad = step.results.ids[:count].tolist(), step.results.num_bad[:count].tolist()
        for row, (draw, space, token, bad) in enumerate(
            zip(step.draws, step.spaces, ids, num_bad, strict=True)
        ):
            choice = Choice(-1, bad) if bad else Choice(token)
            if row in step.logits:
                assert draw is not None
                if not bad:
                    choice = choose_token(step.logits[row].numpy(), draw)
                if space is not None:
                    self._undecided.discard(space)
                    self._last[space] = max(choice.token, 0)
            choices.append(choice)
        return choices

    def _launch_decode(
        self, rows: Sequence[ResolvedRow], draws: Sequence[Draw | None], turn: int
    ) -> _InFlight:
        size = bucket_size(len(rows))
        if (bucket := self._buckets.get(size)) is None:
            bucket = self._buckets[size] = _Bucket(size, self._launcher, self._model.device)
        ints, numbers = bucket.staged[turn]
        spaces = tuple(row.asid for row in rows)
        table = ints.numpy()
        table[:] = [[self._nobody], [-1], [0]]
        table[ASID, : len(rows)] = spaces
        table[POSITION, : len(rows)] = [row.start for row in rows]
        table[TOKEN, : len(rows)] = [row.tokens[0] if row.tokens else NO_TOKEN for row in rows]
        numbers.numpy()[:, : len(rows)] = draw_numbers(draws)
        numbers.numpy()[:, len(rows) :] = 0.0
        bucket.ints.copy_(ints, non_blocking=True)
        bucket.numbers.copy_(numbers, non_blocking=True)
        num_splits = max(row.start for row in rows) // SPLIT + 1
        num_splits = 1 << (num_splits - 1).bit_length()
        work = functools.partial(self._decode, bucket, num_splits * SPLIT)
        self._launcher.run((size, num_splits), work)
        return self._fetch(bucket.ids, bucket.num_bad, {}, tuple(draws), spaces, turn)

    def _decode(self, bucket: _Bucket, max_length: int) -> None:
        """The device's part of a step of lone tokens: tensors only, at places that stay."""
        asids, positions, given = bucket.ints
        token_ids = torch.where(given == NO_TOKEN, self._last[asids], given)
        first_pages = asids * self._page_index.pages_per_space
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
        logits = self._model.forward_planned(batch, plan, self._k_pages, self._v_pages)
        ids, num_bad = sample(logits, bucket.numbers)
        self._last[asids] = ids
        bucket.ids.copy_(ids)
        bucket.num_bad.copy_(num_bad)

    def _launch_mixed(
        self, rows: Sequence[ResolvedRow], draws: Sequence[Draw | None], turn: int
    ) -> _InFlight:
        device = self._model.device
        filled = [row if row.tokens else Row(row.asid, row.start, (NO_TOKEN,), row.sample) for row in rows]
        batch = build_batch(filled, self._page_index, self._tokens_per_page, device)
        fed = [(span.offset, row.asid) for span, row in zip(batch.spans, rows, strict=True) if not row.tokens]
        if fed:
            places, asids = torch.tensor(fed, dtype=torch.int64).T.to(device, non_blocking=True)
            batch.token_ids[places] = self._last[asids]
        logits = self._model.forward(batch, self._k_pages, self._v_pages)
        numbers = torch.from_numpy(draw_numbers(draws)).to(device, non_blocking=True)
        ids, num_bad = sample(logits, numbers)
        spaces: list[int | None] = []
        for row in rows:
            spaces += [None] * len(row.targets) + ([row.asid] if row.sample else [])
        by_device = [
            (place, space)
            for place, (space, draw) in enumerate(zip(spaces, draws, strict=True))
            if space is not None and can_draw(draw)
        ]
        if by_device:
            places, asids = torch.tensor(by_device, dtype=torch.int64).T.to(device, non_blocking=True)
            self._last[asids] = ids[places]
        by_host = [place for place, draw in enumerate(draws) if not can_draw(draw)]
        self._undecided.update(space for space in (spaces[place] for place in by_host) if space is not None)
        copied = {place: self._to_host(logits[place]) for place in by_host}
        return self._fetch(ids, num_bad, copied, tuple(draws), tuple(spaces), turn)

    def _to_host(self, row: torch.Tensor) -> torch.Tensor:
        copied = self._launcher.host_memory((len(row),), row.dtype)
        return copied.copy_(row, non_blocking=True)

    def _fetch(
        self,
        ids: torch.Tensor,
        num_bad: torch.Tensor,
        logits: dict[int, torch.Tensor],
        draws: tuple[Draw | None, ...],
        spaces: tuple[int | None, ...],
        turn: int,
    ) -> _InFlight:
        """Send results on their way to the host."""
        results = self._results[turn]
        if len(results.ids) < len(ids):
            results = self._results[turn] = self._make_results(len(ids))
        results.ids[: len(ids)].copy_(ids, non_blocking=True)
        results.num_bad[: len(ids)].copy_(num_bad, non_blocking=True)
        return _InFlight(self._launcher.mark(), results, draws, spaces, logits)

    def _make_results(self, size: int) -> _Results:
        return _Results(*(self._launcher.host_memory((size,), torch.int64) for _ in range(2)))
