"""One loaded model on one device: carries out loads and steps, and keeps every failure in its place.

What can fail alone fails alone: an edit breaks its space until that is released, a bad row is its own
`RowFault`, and a batch whose forward pass raises is run again in halves. The driver goes on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import torch

from drivers.arena import Arena
from drivers.backend import Backend, DeviceUnavailable
from drivers.copy_cost import measure_copy_cost
from drivers.grammars import Grammars
from drivers.model.errors import ModelError
from drivers.model.grammar import GrammarTokens
from drivers.model.kv_layout import poison_tail
from drivers.model.pooler import Pooler
from drivers.model.sampler import Sampler
from drivers.model.transformer import Model
from drivers.page_table import ArenaError
from drivers.profile import profile_model
from drivers.step_results import StepResults
from drivers.tiers import Tiers
from llmos.device import (
    Bind,
    Compile,
    Compiled,
    Copy,
    CopyDone,
    CopyFault,
    CopyPage,
    Edit,
    Failed,
    KVFormat,
    Load,
    Loaded,
    Map,
    Release,
    Reserve,
    Row,
    Segment,
    Step,
    StepDone,
    TokenLogprobs,
    choose_kv_format,
)  # fmt: skip
from native.sampling import Draw

__all__ = ["Engine"]

ReportProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor


@attrs.define(eq=False)
class _Session:
    """What a load sets up."""

    model: Model
    sampler: Sampler
    pooler: Pooler
    arena: Arena
    tiers: Tiers
    grammars: Grammars
    k_pages: list[torch.Tensor]
    v_pages: list[torch.Tensor]


@attrs.define(eq=False)
class Engine:
    """Runs steps on a backend."""

    backend: Backend
    debug: bool = attrs.field(factory=lambda: os.environ.get("LLMOS_DEBUG") == "1")
    _session: _Session | None = attrs.field(default=None, init=False)
    _sampled: dict[int, tuple[int, int]] = attrs.field(factory=dict, init=False)  # asid: position, token
    _broken: dict[int, str] = attrs.field(factory=dict, init=False)  # asid: what failed

    def load(self, load: Load, report: ReportProgress) -> Loaded | Failed:
        """Load a model, in place of the one that was loaded before. Never raises."""
        self.close()
        started = time.perf_counter()
        try:
            session, loaded = self._open(load, report)
        except (ModelError, ArenaError, DeviceUnavailable, OSError) as error:
            return Failed(str(error))
        except Exception as error:
            traceback.print_exc()
            return Failed(f"{type(error).__name__}: {error}")
        self._session = session
        # what lives now lives on: collections in the step loop need not look at it
        gc.collect()
        gc.freeze()
        return msgspec.structs.replace(loaded, seconds=time.perf_counter() - started)

    def _open(self, load: Load, report: ReportProgress) -> tuple[_Session, Loaded]:
        backend = self.backend
        model, quality = backend.load_model(load, report)
        kv, num_frames = self._plan_memory(load, model.info.kv, model.segments, model.info.max_model_len)
        profile = profile_model(model, backend, kv, load)
        pages_per_space = kv.num_pages(model.info.max_model_len)
        with contextlib.ExitStack() as undo:
            arena = backend.open_arena(kv, num_frames, load.max_spaces, pages_per_space)
            undo.callback(arena.close)
            k_pages, v_pages = (
                model.kv_views(frames, kv, segment) for segment, frames in enumerate(arena.segments)
            )
            tiers = Tiers(
                arena, load.host_bytes, load.disk_bytes, load.disk_folder, load.copy_piece_bytes or 0
            )
            undo.callback(tiers.close)
            profile = msgspec.structs.replace(
                profile,
                host=measure_copy_cost(tiers, "host", tiers.num_host_slots),
                disk=measure_copy_cost(tiers, "disk", tiers.num_disk_slots),
            )
            undo.pop_all()
        info = model.info.model_info(load.name, load.path)
        grammar_tokens = GrammarTokens.open(info.path, info.vocab_size, info.eos_token_ids)
        grammars = Grammars(grammar_tokens)
        sampler = Sampler(info.vocab_size)
        session = _Session(model, sampler, Pooler(), arena, tiers, grammars, k_pages, v_pages)
        loaded = Loaded(
            model=msgspec.structs.replace(info, weight_bytes=model.weight_bytes),
            kv=kv,
            num_frames=num_frames,
            seconds=0.0,
            quality=quality,
            profile=profile,
            num_host_slots=tiers.num_host_slots,
            num_disk_slots=tiers.num_disk_slots,
            takes_grammars=grammar_tokens is not None,
        )
        return session, loaded

    def _plan_memory(
        self, load: Load, kv_name: str, segments: tuple[Segment, ...], max_model_len: int
    ) -> tuple[KVFormat, int]:
        """Choose the size of a frame and how many there are."""
        kv = self._choose_frames(load, kv_name, segments)
        limit = self.backend.max_frames(load.max_spaces, len(segments))
        if load.pool_bytes is None:
            # More than every space at its longest is of no use, and neither is more than can be mapped.
            num_frames = load.max_spaces * kv.num_pages(max_model_len) * kv.frames_per_page
            num_frames = min(num_frames, self.backend.choose_pool_bytes() // kv.frame_bytes)
            num_frames = num_frames if limit is None else min(num_frames, limit)
        else:
            while (
                load.frame_bytes is None and limit is not None and load.pool_bytes // kv.frame_bytes > limit
            ):
                kv = choose_kv_format(kv_name, segments, 2 * kv.frame_bytes)
            num_frames = load.pool_bytes // kv.frame_bytes
        if num_frames < kv.frames_per_page:
            raise ArenaError(
                f"a pool of {num_frames} frames of {kv.frame_bytes} bytes is too small: one page of "
                f"{kv.tokens_per_page} tokens takes {kv.frames_per_page}"
            )
        return kv, num_frames

    def _choose_frames(self, load: Load, kv_name: str, segments: tuple[Segment, ...]) -> KVFormat:
        """A format whose frames the device can map. Raises ArenaError."""
        kv = choose_kv_format(kv_name, segments, load.frame_bytes)
        granularity = self.backend.granularity_bytes
        if excess := kv.frame_bytes % granularity:
            if load.frame_bytes is not None:
                raise ArenaError(
                    f"a frame of {load.frame_bytes} bytes is not a multiple of the {granularity} bytes that "
                    "this device maps at once"
                )
            kv = choose_kv_format(kv_name, segments, kv.frame_bytes - excess + granularity)
        return kv

    def run_step(self, step: Step) -> StepDone:
        """Apply edits in order, run the rows as one batch, and sample.

        Raises:
            RuntimeError: no model is loaded.
            Exception: whatever says that the device is beyond use.
        """
        if (session := self._session) is None:
            raise RuntimeError(f"step {step.id} came before a model was loaded")
        started = time.perf_counter()
        results = StepResults(len(step.rows))
        good: dict[int, Row] = {}
        failed = self._apply_edits(session, step.edits)
        seen: set[int] = set()
        for index, row in enumerate(step.rows):
            resolved = self._resolve(row)
            message = failed or self._explain_bad_row(session, row, resolved, row.asid in seen)
            seen.add(row.asid)
            if message is None and resolved is not None:
                good[index] = resolved
            else:
                results.faults[index] = message or "it has no tokens"
        if good:
            self._run_apart(session, step.rows, good, results)
        for index in results.faults:
            self._sampled.pop(step.rows[index].asid, None)
        return results.done(step.id, time.perf_counter() - started, session.arena.take_map_work())

    def _apply_edits(self, session: _Session, edits: tuple[Edit, ...]) -> str | None:
        """Apply every edit; return why the whole step cannot run, if so. Raises when the device is lost."""
        failed = None
        for edit in edits:
            try:
                match edit:
                    case Map():
                        session.arena.map(edit)
                    case Bind():
                        session.pooler.bind(edit)
                        if edit.pooling is None:
                            id = edit.grammar
                            session.sampler.bind(edit, None if id is None else session.grammars.get(id))
                    case Reserve(asid):
                        session.arena.reserve(asid)
                    case Release(asid):
                        self._broken.pop(asid, None)
                        self._sampled.pop(asid, None)
                        session.sampler.release(asid)
                        session.pooler.release(asid)
                        session.arena.release(asid)
                    case CopyPage():
                        session.arena.copy_page(edit)
            except Exception as error:  # the edits behind it must still be applied
                if not isinstance(error, ArenaError | OSError):
                    self.backend.check_health()
                message = f"{type(edit).__name__}: {error}"
                print(message, file=sys.stderr, flush=True)
                if isinstance(edit, CopyPage):
                    failed = message  # it does not say whose page it is
                else:
                    self._broken[edit.asid] = message
        return failed

    def _resolve(self, row: Row) -> Row | None:
        """Fill in the token that the space sampled last; None when there is none for this position."""
        if row.tokens:
            return row
        position, token = self._sampled.get(row.asid, (-1, -1))
        return Row(row.asid, row.start, (token,), row.sample) if position == row.start else None

    def _explain_bad_row(
        self, session: _Session, row: Row, resolved: Row | None, is_second: bool
    ) -> str | None:
        """Say why a row cannot run, or None."""
        if (message := self._broken.get(row.asid)) is not None:
            return message
        if is_second:
            return f"space {row.asid} has two rows in one step"
        if resolved is None:
            return f"space {row.asid} has no sampled token for position {row.start}"
        if (message := session.model.explain_bad_row(resolved)) is not None:
            return message
        if (message := session.pooler.explain_bad_row(row)) is not None:
            return message
        num_pages = session.arena.kv.num_pages(row.start + row.num_tokens)
        try:
            session.arena.finish_maps(row.asid, num_pages)
        except (ArenaError, OSError) as error:
            return f"Map: {error}"
        if (num_mapped := session.arena.num_mapped_pages(row.asid)) < num_pages:
            return f"space {row.asid} needs {num_pages} pages, and {num_mapped} are mapped"
        return None

    def _run_apart(
        self, session: _Session, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults
    ) -> None:
        """Run good rows as one batch; where that fails, its halves: only what fails alone is at fault.

        A row has the same bits in any company, and of a batch that failed nothing was counted. Raises what
        says that the device is beyond use.
        """
        try:
            try:
                self._run_rows(session, rows, good, results)
            finally:
                session.arena.mark_step()
        except Exception as error:
            traceback.print_exc()
            self.backend.check_health()
            message = f"{type(error).__name__}: {error}"
        else:
            return
        results.forget(good)
        if len(good) == 1:
            results.faults.update(dict.fromkeys(good, message))
            return
        indices = list(good)
        middle = len(indices) // 2
        for half in (indices[:middle], indices[middle:]):
            self._run_apart(session, rows, {index: good[index] for index in half}, results)

    def _run_rows(
        self, session: _Session, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults
    ) -> None:
        """Run good rows, by index, and take what they yield."""
        batch = list(good.values())
        if self.debug:
            _poison_tails(session, batch)
        sampling = [index for index, row in good.items() if row.sample]
        wanted = [(rows[index].asid, rows[index].start + rows[index].num_tokens) for index in sampling]
        for row in batch:
            session.sampler.observe(row.asid, row.start, row.tokens)
        own = iter(session.sampler.draws(wanted))
        draws: list[Draw | None] = []
        for row in batch:
            draws += session.sampler.scores(row.asid, row.targets)
            draws += [next(own)] if row.sample else []
        told, num_before = [], 0
        for row in batch if session.pooler.num_spaces else ():
            told += [num_before + index for index in session.pooler.wanted(row)]
            num_before += row.num_tokens
        index_of, keys, values = session.arena.page_index, session.k_pages, session.v_pages
        if told:
            choices_made, hidden = session.model.choose_and_tell(batch, index_of, keys, values, draws, told)
            _pool(session.pooler, good, hidden, results)
        else:
            choices_made = session.model.choose(batch, index_of, keys, values, draws)
        made = iter(choices_made)
        choices = []
        for index, row in good.items():
            if row.targets:
                given = [next(made) for _ in row.targets]
                results.scores[index] = tuple(
                    TokenLogprobs(each.logprob, each.top_ids, each.top_logprobs, each.rank) for each in given
                )
                if any(each.num_bad for each in given):
                    results.faults[index] = (
                        f"logits are not finite between {row.start} and {row.start + len(given)}"
                    )
            choices += [next(made)] if row.sample else []
        for index, (asid, position), sampled in zip(
            sampling, wanted, session.sampler.record(choices, wanted), strict=True
        ):
            if sampled.token is None:
                results.faults[index] = sampled.fault or "no token was sampled"
            else:
                results.tokens[index], results.logprobs[index] = sampled.token, sampled.logprobs
                self._sampled[asid] = (position, sampled.token)
                if sampled.mu is not None:
                    results.mus[index] = sampled.mu

    # --- what goes on beside the steps -------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """True while a copy runs, or a grammar is being compiled: there will be something to collect."""
        session = self._session
        return session is not None and bool(session.tiers.num_running or session.grammars.num_compiling)

    def wait_for(self) -> tuple[tuple[int, ...], float | None]:
        """Descriptors, one of which is readable when there is something to collect; and seconds to wait."""
        assert self._session is not None
        tiers, grammars = self._session.tiers, self._session.grammars
        return (tiers.fileno(), grammars.fileno()), grammars.seconds_left()

    def collect(self) -> list[CopyDone | Compiled]:
        """Copies that have ended and grammars that are ready, or never will be, since the last call."""
        if not self.is_busy or self._session is None:
            return []
        return [*self._session.tiers.collect(), *self._session.grammars.collect()]

    def begin_grammars(self, orders: Sequence[Compile]) -> None:
        """Begin to compile grammars. Raises RuntimeError: no model is loaded."""
        if orders and self._session is None:
            raise RuntimeError(f"grammar {orders[0].id} came before a model was loaded")
        for order in orders:
            assert self._session is not None
            self._session.grammars.begin(order)

    def forget_grammar(self, id: int) -> None:
        """Drop a compiled grammar; spaces that follow it go on."""
        if self._session is not None:
            self._session.grammars.forget(id)

    def begin_copy(self, copy: Copy) -> CopyDone | None:
        """Begin a copy; None: it is under way. It finds what steps before it wrote: they have ended."""
        if self._session is None:
            message = "there is no model, and so no memory"
            return CopyDone(
                copy.id, 0.0, (), tuple(CopyFault(i, message) for i in range(len(copy.source.slots)))
            )
        return self._session.tiers.begin(copy)

    def finish_copies(self) -> list[CopyDone]:
        """Wait for the copies that were begun; those that were not collected yet."""
        if self._session is None:
            return []
        self._session.tiers.wait()
        return self._session.tiers.collect()

    def close(self) -> None:
        """Unload the model, drop what the tiers hold, and give all memory back. Idempotent."""
        if self._session is not None:
            session, self._session = self._session, None
            session.grammars.close()
            session.tiers.close()
            session.arena.close()
            gc.unfreeze()
        self._sampled.clear()
        self._broken.clear()


def _pool(
    pooler: Pooler, good: dict[int, Row], hidden: npt.NDArray[np.float32], results: StepResults
) -> None:
    """Hand the hidden states of a step to the rows that wanted them, in order."""
    first = 0
    for index, row in good.items():
        last = first + len(pooler.wanted(row))
        try:
            vector = pooler.take(row, hidden[first:last])
        except ValueError as error:
            results.faults[index] = str(error)
        else:
            if vector is not None:
                results.vectors[index] = vector
        first = last


def _poison_tails(session: _Session, rows: list[Row]) -> None:
    """Fill what lies behind each row's last token in its page with junk (NaN), so that a stray read shows.

    Nobody else can need it: a row appends, so its last page is its own.
    """
    size = session.arena.kv.tokens_per_page
    for row in rows:
        vpn, slot = divmod(row.start + row.num_tokens, size)
        if slot:
            page = session.arena.page_index(row.asid, vpn)
            for layer in (*session.k_pages, *session.v_pages):
                poison_tail(layer, page, slot, size)
