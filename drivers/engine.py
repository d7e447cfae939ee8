"""One loaded model on one device: carries out loads and steps, and keeps every failure in its place.

What can fail alone fails alone: an edit breaks its space until that is released, a bad row is its own
`RowFault`, and a batch whose forward pass raises is run again in halves. The driver goes on.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from drivers.backend import Backend, DeviceUnavailable
from drivers.model.errors import ModelError
from drivers.model.kv_layout import poison_tail
from drivers.model.pooler import Pooler
from drivers.model.step_queue import MAX_IN_FLIGHT
from drivers.page_table import ArenaError
from drivers.session import ReportProgress, Session, open_session
from drivers.step_pipeline import StepPipeline
from drivers.step_results import StepResults
from drivers.step_work import StepWork
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
    Load,
    Loaded,
    Map,
    Release,
    Reserve,
    Row,
    Step,
    StepDone,
)  # fmt: skip

__all__ = ["Engine"]


@attrs.define(eq=False)
class Engine:
    """Runs steps on a backend."""

    backend: Backend
    debug: bool = attrs.field(factory=lambda: os.environ.get("LLMOS_DEBUG") == "1")
    _session: Session | None = attrs.field(default=None, init=False)
    _sampled: dict[int, tuple[int, int]] = attrs.field(factory=dict, init=False)  # asid: position, token
    _broken: dict[int, str] = attrs.field(factory=dict, init=False)  # asid: what failed

    def load(self, load: Load, report: ReportProgress) -> Loaded | Failed:
        """Load a model, in place of the one that was loaded before. Never raises."""
        self.close()
        started = time.perf_counter()
        try:
            session, loaded = open_session(self.backend, load, report)
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

    def run_step(self, step: Step) -> StepDone:
        """Carry out a step, and wait for it; see `begin_step`. No other step is in flight."""
        answers = [*self.begin_step(step), *self._finish_steps()]
        return answers[-1]

    def begin_step(self, step: Step) -> list[StepDone]:
        """Apply edits in order, run the rows as one batch, and sample.

        Where the device does not wait for the host, the step may only be launched: `collect` answers it when
        it is over.

        Returns:
            Answers that are there now, in order: of steps before this one, and its own if it has ended.

        Raises:
            RuntimeError: no model is loaded.
            Exception: whatever says that the device is beyond use.
        """
        if (session := self._session) is None:
            raise RuntimeError(f"step {step.id} came before a model was loaded")
        pipeline = session.pipeline
        answers: list[StepDone] = []
        while pipeline is not None and pipeline.must_collect(step.rows):
            answers.append(self._finish_step(session, pipeline))
        began_at = time.perf_counter()
        results = StepResults(len(step.rows))
        good = self._find_good_rows(session, step, results)
        if pipeline is not None and good and not any(map(session.pooler.wanted, good.values())):
            try:
                self._launch(session, pipeline, step, good, results, began_at, answers)
            except Exception as error:  # it is run once more, by halves: what fails alone is at fault
                traceback.print_exc()
                self._outlive(error)
            else:
                return answers
        answers += self._finish_steps()
        if good := self._fill_in(step.rows, good, results):
            self._run_apart(session, step.rows, good, results)
        for index in results.faults:
            self._sampled.pop(step.rows[index].asid, None)
        seconds = time.perf_counter() - began_at
        return [*answers, results.done(step.id, seconds, session.arena.take_map_work())]

    def _find_good_rows(self, session: Session, step: Step, results: StepResults) -> dict[int, Row]:
        """Apply edits; the rows that can run, by index, without a token where only the device knows it."""
        good: dict[int, Row] = {}
        failed = self._apply_edits(session, step.edits)
        seen: set[int] = set()
        for index, row in enumerate(step.rows):
            resolved = self._resolve(session, row)
            message = failed or self._explain_bad_row(session, row, resolved, row.asid in seen)
            seen.add(row.asid)
            if message is None and resolved is not None:
                good[index] = resolved
            else:
                results.faults[index] = message or "it has no tokens"
        return good

    def _fill_in(self, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults) -> dict[int, Row]:
        """Good rows, all with tokens: no step is in flight, so what was sampled is known."""
        filled: dict[int, Row] = {}
        assert self._session is not None
        for index, row in good.items():
            if (resolved := self._resolve(self._session, row)) is not None:
                filled[index] = resolved
            else:
                results.faults[index] = _explain_no_token(rows[index])
        return filled

    def _launch(
        self,
        session: Session,
        pipeline: StepPipeline,
        step: Step,
        good: dict[int, Row],
        results: StepResults,
        began_at: float,
        answers: list[StepDone],
    ) -> None:
        """Launch good rows, and add the answers of steps that were collected on the way.

        Raises whatever the model raises; then nothing was launched that counts.
        """
        if self.debug:
            _poison_tails(session, list(good.values()))

        def prepare() -> StepWork:
            if pipeline.draws_late(good.values()):
                answers.extend(self._finish_steps())
                for index, row in good.items():
                    if not row.tokens and self._sampled.get(row.asid, (-1, -1))[0] != row.start:
                        results.faults[index] = _explain_no_token(row)  # it was fed with junk
            return StepWork.prepare(session.sampler, good)

        try:
            pipeline.launch(step, good, results, began_at, prepare)
        finally:
            session.arena.mark_step([row.asid for row in good.values()])

    def _outlive(self, error: Exception) -> None:
        """Go on after an exception. Raises it if the device is beyond use: it was the first to say so."""
        try:
            self.backend.check_health()
        except Exception as loss:
            raise error from loss

    def _finish_step(self, session: Session, pipeline: StepPipeline) -> StepDone:
        """Wait for the oldest step in flight, and answer it. Raises: the device is beyond use."""
        launched, choices, seconds = pipeline.collect()
        step, results = launched.step, launched.results
        for asid, sampled in launched.work.take(session.sampler, choices, results).items():
            if asid not in launched.released:
                self._sampled[asid] = sampled
        failed = {step.rows[index].asid for index in results.faults} - launched.released
        for asid in failed:
            self._sampled.pop(asid, None)
        pipeline.fail_fed_rows(failed, _explain_no_token)
        return results.done(step.id, seconds, session.arena.take_map_work())

    def _finish_steps(self) -> list[StepDone]:
        """Wait for all steps in flight."""
        answers: list[StepDone] = []
        if self._session is not None and (pipeline := self._session.pipeline) is not None:
            while pipeline.num_in_flight:
                answers.append(self._finish_step(self._session, pipeline))
        return answers

    def _apply_edits(self, session: Session, edits: tuple[Edit, ...]) -> str | None:
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
                        if session.pipeline is not None:
                            session.pipeline.release(asid)
                        session.arena.release(asid)
                    case CopyPage():
                        session.arena.copy_page(edit)
            except Exception as error:  # the edits behind it must still be applied
                if not isinstance(error, ArenaError | OSError):
                    self._outlive(error)
                message = f"{type(edit).__name__}: {error}"
                print(message, file=sys.stderr, flush=True)
                if isinstance(edit, CopyPage):
                    failed = message  # it does not say whose page it is
                else:
                    self._broken[edit.asid] = message
        return failed

    def _resolve(self, session: Session, row: Row) -> Row | None:
        """Fill in the token that the space sampled last; none, where a step in flight samples it.

        Returns:
            The row, or None: nothing was sampled for this position, or will be.
        """
        if row.tokens:
            return row
        position, token = self._sampled.get(row.asid, (-1, -1))
        if position == row.start:
            return Row(row.asid, row.start, (token,), row.sample)
        is_coming = session.pipeline is not None and session.pipeline.is_coming(row.asid, row.start)
        return Row(row.asid, row.start, (), row.sample) if is_coming else None

    def _explain_bad_row(
        self, session: Session, row: Row, resolved: Row | None, is_second: bool
    ) -> str | None:
        """Say why a row cannot run, or None."""
        if (message := self._broken.get(row.asid)) is not None:
            return message
        if is_second:
            return f"space {row.asid} has two rows in one step"
        if resolved is None:
            return _explain_no_token(row)
        known = resolved if resolved.tokens else Row(row.asid, row.start, (0,), row.sample)
        if (message := session.model.explain_bad_row(known)) is not None:
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
        self, session: Session, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults
    ) -> None:
        """Run good rows as one batch; where that fails, its halves: only what fails alone is at fault.

        A row has the same bits in any company, and of a batch that failed nothing was counted. Raises what
        says that the device is beyond use.
        """
        try:
            try:
                self._run_rows(session, rows, good, results)
            finally:
                session.arena.mark_step([row.asid for row in good.values()])
        except Exception as error:
            traceback.print_exc()
            self._outlive(error)
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
        self, session: Session, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults
    ) -> None:
        """Run good rows, by index, and take what they yield."""
        batch = list(good.values())
        if self.debug:
            _poison_tails(session, batch)
        work = StepWork.prepare(session.sampler, good)
        told, num_before = [], 0
        for row in batch if session.pooler.num_spaces else ():
            told += [num_before + index for index in session.pooler.wanted(row)]
            num_before += row.num_tokens
        index_of, keys, values = session.arena.page_index, session.k_pages, session.v_pages
        if told:
            choices, hidden = session.model.choose_and_tell(batch, index_of, keys, values, work.draws, told)
            _pool(session.pooler, good, hidden, results)
        else:
            choices = session.model.choose(batch, index_of, keys, values, work.draws)
        self._sampled.update(work.take(session.sampler, choices, results))

    # --- what goes on beside the steps -------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """True while a copy or a step runs, or a grammar is compiled: there will be something to collect."""
        if (session := self._session) is None:
            return False
        num_steps = 0 if session.pipeline is None else session.pipeline.num_in_flight
        return bool(num_steps or session.tiers.num_running or session.grammars.num_compiling)

    @property
    def wants_step(self) -> bool:
        """True while a step runs, and another one could be launched behind it."""
        pipeline = None if self._session is None else self._session.pipeline
        return pipeline is not None and 0 < pipeline.num_in_flight < MAX_IN_FLIGHT

    def wait_for(self) -> tuple[tuple[int, ...], float | None]:
        """Descriptors, one of which is readable when there is something to collect; and seconds to wait."""
        assert self._session is not None
        tiers, grammars, pipeline = self._session.tiers, self._session.grammars, self._session.pipeline
        steps = () if pipeline is None else (pipeline.fileno(),)
        return (tiers.fileno(), grammars.fileno(), *steps), grammars.seconds_left()

    def collect(self) -> list[StepDone | CopyDone | Compiled]:
        """Since the last call: steps and copies that have ended, grammars that are ready or never will be.

        Raises:
            Exception: the device is beyond use.
        """
        if not self.is_busy or (session := self._session) is None:
            return []
        answers: list[StepDone | CopyDone | Compiled] = []
        while (pipeline := session.pipeline) is not None and pipeline.is_ready:
            answers.append(self._finish_step(session, pipeline))
        return [*answers, *session.tiers.collect(), *session.grammars.collect()]

    def begin_grammars(self, orders: Sequence[Compile]) -> None:
        """Begin to compile grammars. Raises RuntimeError: no model is loaded."""
        if orders and self._session is None:
            raise RuntimeError(f"grammar {orders[0].id} came before a model was loaded")
        for order in orders:
            assert self._session is not None
            self._session.grammars.begin(order)

    @property
    def steps_hold_up(self) -> bool:
        """True where a step is over when `begin_step` returns, and copies may be asked for meanwhile."""
        session = self._session
        return session is not None and session.pipeline is None and session.tiers.num_slots_below > 0

    def copy_fds(self) -> tuple[int, ...]:
        """Descriptors, one of which is readable when a copy may have ended."""
        return () if self._session is None else (self._session.tiers.fileno(),)

    def begin_copies(self, copies: Sequence[Copy]) -> list[CopyDone]:
        """Begin copies, and wait for those that are over in a moment. May run beside `begin_step`.

        Returns:
            Copies that have ended, these or others.

        Raises:
            Exception: the device is beyond use.
        """
        done = [refused for copy in copies if (refused := self.begin_copy(copy)) is not None]
        if self._session is not None:
            self._session.tiers.finish_small()
            done += self._session.tiers.collect()
        return done

    def forget_grammar(self, id: int) -> None:
        """Drop a compiled grammar; spaces that follow it go on."""
        if self._session is not None:
            self._session.grammars.forget(id)

    def begin_copy(self, copy: Copy) -> CopyDone | None:
        """Begin a copy; None: it is under way. It finds what the steps write that were begun before it."""
        if self._session is None:
            message = "there is no model, and so no memory"
            return CopyDone(
                copy.id, 0.0, (), tuple(CopyFault(i, message) for i in range(len(copy.source.slots)))
            )
        return self._session.tiers.begin(copy)

    def finish(self) -> list[StepDone | CopyDone]:
        """Wait for the steps and copies that were begun; those that were not collected yet."""
        if self._session is None:
            return []
        steps = self._finish_steps()
        self._session.tiers.wait()
        return [*steps, *self._session.tiers.collect()]

    def close(self) -> None:
        """Unload the model, drop what the tiers hold, and give all memory back. Idempotent."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
            gc.unfreeze()
        self._sampled.clear()
        self._broken.clear()


def _explain_no_token(row: Row) -> str:
    return f"space {row.asid} has no sampled token for position {row.start}"


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


def _poison_tails(session: Session, rows: list[Row]) -> None:
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
