"""Steps on a device that the host does not wait for: it prepares one while the device computes another.

A token that a step samples stays on the device, in a table by space, and the next step takes it from there.
So a step is launched before the host knows the tokens of the one before. What it knows is all that most
draws take: seed and position give the random number, and log-probabilities are told of a token later.

What a draw may be depends on the token before it where there is a grammar, say. Then the forward pass is
launched, the step before is collected while the device is at it, and the draw is launched behind.

Penalties are about counts, which the device has and adds to (`token_table.py`), and mirostat goes on from
the surprise of the token that was drawn, which it keeps as well (`mirostat_table.py`). What is told of a
token besides comes to the host with it.

On triton's operations steps of lone tokens run in buckets (`decode_buckets.py`). Other steps, with chunks of
prompts, are launched as they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import torch
from attrs import evolve, field, frozen

from drivers.model.launch import Fence, Launcher
from drivers.model.mirostat_table import MirostatTable
from drivers.model.reference_sampler import tell_token
from drivers.model.token_table import TokenTable
from drivers.model.transformer import Transformer
from drivers.ops.batch import ContiguousPages, ResolvedRow, build_batch
from drivers.ops.counted import Counted
from drivers.ops.drawn import MU, read_told
from drivers.ops.kv_pages import KVPages
from drivers.ops.transfer import send
from llmos.device import Row
from native.sampling import Choice, Draw, sample

__all__ = ["MAX_IN_FLIGHT", "Draws", "StepQueue"]

Draws = Sequence[Draw | None]  # one for each row of logits

MAX_IN_FLIGHT = 2
ANY_TOKEN = 0  # in place of an id that the device knows


@frozen(eq=False)
class _Results:
    """Where a step's results arrive on the host."""

    ids: torch.Tensor  # [most rows of logits]
    num_bad: torch.Tensor


@frozen(eq=False)
class _Told:
    """What the host gets of some rows besides their tokens, by row; to be read once the fence has passed."""

    logits: dict[int, torch.Tensor] = field(factory=dict)
    numbers: dict[int, torch.Tensor] = field(factory=dict)  # see drivers/ops/drawn.py
    choices: dict[int, Choice] = field(factory=dict)  # of draws that were made here


@frozen(eq=False)
class _InFlight:
    """A step that was launched."""

    fence: Fence
    results: _Results
    draws: tuple[Draw | None, ...]
    spaces: tuple[int | None, ...]  # whose next token each row of logits gives; None: nobody's
    told: _Told


class StepQueue:
    """Up to two steps of a model, launched in order and collected in order.

    Args:
        model: whose pages are consecutive.
        pages: those of a space lie one behind the other.
        max_spaces: asids are below it.
        launcher: of the model's device.
    """

    def __init__(
        self,
        model: Transformer,
        pages: KVPages,
        max_spaces: int,
        launcher: Launcher,
    ) -> None:
        assert isinstance(pages.index, ContiguousPages)
        self._model, self._pages, self._launcher = model, pages, launcher
        self._tokens_per_page = pages.layers[0].keys.shape[1]
        self._last = torch.zeros(max_spaces + 1, dtype=torch.int64, device=model.device)
        max_len = pages.index.pages_per_space * self._tokens_per_page
        self._table = TokenTable(model.config.vocab_size, max_len, model.device)
        self._mirostat = MirostatTable(max_spaces, model.device)
        self._buckets = None
        if model.ops.kernels == "triton":
            from drivers.model.decode_buckets import DecodeBuckets  # here: there may be no triton

            self._buckets = DecodeBuckets(model, pages, self._last, launcher, MAX_IN_FLIGHT)
        self._in_flight: deque[_InFlight] = deque()
        self._num_launched = 0
        self._results: list[_Results] = [self._make_results(0)] * MAX_IN_FLIGHT

    @property
    def num_in_flight(self) -> int:
        """Steps launched and not collected."""
        return len(self._in_flight)

    @property
    def is_full(self) -> bool:
        """Whether `collect` has to come before another launch."""
        return len(self._in_flight) == MAX_IN_FLIGHT

    @torch.inference_mode()
    def launch(self, rows: Sequence[ResolvedRow], draws: Draws | Callable[[], Draws]) -> Fence:
        """Launch a step, without waiting for anything. Returns a fence that passes when it is over.

        Args:
            rows: as in `Transformer.run`, but without tokens where the space samples its token on the device.
            draws: one for each row of logits; their arrays are not changed before `collect`. Or what gives
                them: it is called when the forward pass was launched, and may collect the step before.

        Raises:
            RuntimeError: the queue is full.
        """
        if self.is_full:
            raise RuntimeError(f"{self.num_in_flight} steps are in flight, and one of them must be collected")
        turn = self._num_launched % MAX_IN_FLIGHT
        is_decode = all(len(row.tokens) <= 1 and row.sample and not row.targets for row in rows)
        buckets = self._buckets if is_decode else None
        if buckets is not None and not callable(draws) and all(map(_is_recorded, draws)):
            spaces = tuple(row.asid for row in rows)
            results = buckets.launch(rows, draws, self._table.prepare(draws, spaces), turn)
            self._table.confirm(results[0])
            step = self._fetch(*results, _Told(), tuple(draws), spaces, turn)
        else:
            logits = self._forward(rows) if buckets is None else buckets.launch_forward(rows, turn)
            step = self._draw(rows, logits, tuple(draws() if callable(draws) else draws), turn)
        self._num_launched += 1
        self._in_flight.append(step)
        return step.fence

    @torch.inference_mode()
    def collect(self) -> list[Choice]:
        """Wait for the oldest step. Returns a choice for each of its rows of logits.

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
            choice = Choice(-1, bad) if bad else self._tell(step.told, row, token, draw)
            if space is not None and choice.token < 0:
                self._table.forget(space)
                self._mirostat.forget(space)
            choices.append(choice)
        return choices

    def _tell(self, told: _Told, row: int, token: int, draw: Draw | None) -> Choice:
        """What is known of a token that was drawn, of logits that are finite."""
        if draw is None:
            return Choice(token)
        if draw.given is not None:
            return sample(told.logits[row].numpy(), draw)
        choice = told.choices.get(row, Choice(token))
        if token >= 0 and row in told.numbers:
            choice = read_told(told.numbers[row].numpy(), token, draw.untold)
        return tell_token(told.logits[row].numpy(), choice, draw) if row in told.logits else choice

    def _forward(self, rows: Sequence[ResolvedRow]) -> torch.Tensor:
        """Launch the forward pass of any rows; their logits."""
        device = self._model.device
        filled = [row if row.tokens else Row(row.asid, row.start, (ANY_TOKEN,), row.sample) for row in rows]
        batch = build_batch(filled, self._pages.index, self._tokens_per_page, device)
        fed = [(span.offset, row.asid) for span, row in zip(batch.spans, rows, strict=True) if not row.tokens]
        if fed:
            places, asids = send(torch.tensor(fed, dtype=torch.int64).T.contiguous(), device)
            batch.token_ids[places] = self._last[asids]
        return self._model.forward(batch, self._pages)

    def _draw(
        self, rows: Sequence[ResolvedRow], logits: torch.Tensor, draws: tuple[Draw | None, ...], turn: int
    ) -> _InFlight:
        """Launch what is drawn of logits by the device, and copy those that the host is to see."""
        device, ops = self._model.device, self._model.ops
        # of a token that is given there is nothing to draw
        wanted = [None if draw is None or draw.given is not None else draw.untold for draw in draws]
        spaces: list[int | None] = []
        for row in rows:
            spaces += [None] * len(row.targets) + ([row.asid] if row.sample else [])
        counted, mus = self._table.prepare(wanted, spaces), self._mirostat.prepare(wanted, spaces)
        copied = {
            place: self._to_host(logits[place])
            for place, draw in enumerate(draws)
            if draw is not None and not draw.is_untold
        }
        if all(map(ops.can_draw, wanted)):
            ids, num_bad, told = ops.draw_tokens(logits, wanted, counted, mus)
            numbers = {} if told is None else dict(zip(told.rows, self._to_host(told.numbers), strict=True))
            also = _Told(copied, numbers)
            if told is not None and mus is not None:
                by_mirostat = [place for place, row in enumerate(told.rows) if _is_by_mirostat(wanted[row])]
                mus = told.numbers[send(torch.tensor(by_mirostat), device), MU]
        else:
            ids, num_bad, _ = ops.draw_tokens(logits, [None] * len(draws))
            also = _Told(copied, choices=self._draw_here(logits, wanted, num_bad, counted, mus))
            for place, choice in also.choices.items():
                ids[place] = choice.token
        self._table.confirm(ids)
        self._mirostat.confirm(mus)
        kept = [(place, space) for place, space in enumerate(spaces) if space is not None]
        if kept:
            places, asids = send(torch.tensor(kept, dtype=torch.int64).T.contiguous(), device)
            self._last[asids] = ids[places].clamp(min=0)  # where none is allowed, nobody asks what follows
        return self._fetch(ids, num_bad, also, draws, tuple(spaces), turn)

    def _draw_here(
        self,
        logits: torch.Tensor,
        draws: Draws,
        num_bad: torch.Tensor,
        counted: Counted | None,
        mus: torch.Tensor | None,
    ) -> dict[int, Choice]:
        """Draw tokens on a processor, in place of operations that cannot: all but the plain greedy ones.

        Counts and mus are brought up to date. Waits for the device.
        """
        choices: dict[int, Choice] = {}
        num_mirostat = 0
        for row, draw in enumerate(draws):
            if draw is None:
                continue
            if draw.mirostat is not None:
                assert mus is not None
                mu, num_mirostat = mus[num_mirostat], num_mirostat + 1  # a view
                draw = evolve(draw, mirostat=draw.mirostat._replace(mu=float(mu)))
            if num_bad[row]:
                continue
            place = -1 if counted is None else counted.places[row]
            made = sample(logits[row].cpu().numpy(), draw if place < 0 else self._table.seen(place, draw))
            if counted is not None and place >= 0:
                self._table.note(place, counted.notes[row], made.token)
            if made.mu is not None:
                mu.fill_(made.mu)
            choices[row] = made
        return choices

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        copied = self._launcher.host_memory(tuple(tensor.shape), tensor.dtype)
        return copied.copy_(tensor, non_blocking=True)

    def _fetch(
        self,
        ids: torch.Tensor,
        num_bad: torch.Tensor,
        told: _Told,
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
        return _InFlight(self._launcher.mark(), results, draws, spaces, told)

    def _make_results(self, size: int) -> _Results:
        return _Results(*(self._launcher.host_memory((size,), torch.int64) for _ in range(2)))


def _is_by_mirostat(draw: Draw | None) -> bool:
    return draw is not None and draw.mirostat is not None


def _is_recorded(draw: Draw | None) -> bool:
    """Whether it is drawn in the graph of its step."""
    return draw is None or draw.is_plain or draw.is_counted
