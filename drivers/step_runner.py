"""Runs the steps of a session, and keeps every failure in its place.

What can fail alone fails alone: a bad row is its own `RowFault`, and a batch whose forward pass raises is run
again in halves.
"""

from __future__ import annotations

import time
import traceback

import attrs
import numpy as np
import numpy.typing as npt

from drivers.backend import Backend, outlive
from drivers.model.kv_layout import poison_tail
from drivers.model.step_queue import MAX_IN_FLIGHT
from drivers.session import Session
from drivers.spaces import Spaces, explain_no_token
from drivers.step_pipeline import StepPipeline
from drivers.step_results import StepResults
from drivers.step_work import StepWork
from llmos.device import Row, Step, StepDone

__all__ = ["StepRunner"]


@attrs.define(eq=False)
class StepRunner:
    """Carries out steps: one by one, or two in flight where the device does not wait for the host.

    Args:
        session: what it runs on.
        backend: the session's device.
        debug: fill what no row may read with junk.
    """

    session: Session
    backend: Backend
    debug: bool
    _spaces: Spaces = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._spaces = Spaces(self.session, self.backend)

    def begin(self, step: Step) -> list[StepDone]:
        """Apply edits in order, run the rows as one batch, and sample; or only launch that.

        Returns:
            Answers that are there now, in order: of steps before this one, and its own if it has ended.

        Raises:
            Exception: the device is beyond use.
        """
        session, pipeline = self.session, self.session.pipeline
        answers: list[StepDone] = []
        while pipeline is not None and pipeline.is_full:
            answers.append(self.finish_oldest(pipeline))
        began_at = time.perf_counter()
        results = StepResults(len(step.rows))
        good = self._spaces.find_good_rows(step, results)
        if pipeline is not None and good and not any(map(session.pooler.wanted, good.values())):
            try:
                self._launch(pipeline, step, good, results, began_at, answers)
            except Exception as error:  # it is run once more, by halves: what fails alone is at fault
                traceback.print_exc()
                outlive(self.backend, error)
            else:
                return answers
        answers += self.finish_all()
        if good := self._spaces.fill_in(step.rows, good, results):
            self._run_apart(good, results)
        self._spaces.forget_sampled(step.rows[index].asid for index in results.faults)
        seconds = time.perf_counter() - began_at
        return [*answers, results.done(step.id, seconds, session.arena.take_map_work())]

    @property
    def num_in_flight(self) -> int:
        """Steps that were launched and are not answered."""
        return 0 if self.session.pipeline is None else self.session.pipeline.num_in_flight

    @property
    def wants_step(self) -> bool:
        """True while a step runs, and another one could be launched behind it."""
        return 0 < self.num_in_flight < MAX_IN_FLIGHT

    def collect(self) -> list[StepDone]:
        """Answer the steps in flight that are over. Raises: the device is beyond use."""
        answers: list[StepDone] = []
        while (pipeline := self.session.pipeline) is not None and pipeline.is_ready:
            answers.append(self.finish_oldest(pipeline))
        return answers

    def finish_all(self) -> list[StepDone]:
        """Wait for all steps in flight, and answer them. Raises: the device is beyond use."""
        answers: list[StepDone] = []
        while (pipeline := self.session.pipeline) is not None and pipeline.num_in_flight:
            answers.append(self.finish_oldest(pipeline))
        return answers

    def finish_oldest(self, pipeline: StepPipeline) -> StepDone:
        """Wait for the oldest step in flight, and answer it. Raises: the device is beyond use."""
        session = self.session
        launched, choices, seconds = pipeline.collect()
        step, results = launched.step, launched.results
        sampled = launched.work.take(session.sampler, choices, results)
        self._spaces.note_sampled(
            {asid: token for asid, token in sampled.items() if asid not in launched.released}
        )
        failed = {step.rows[index].asid for index in results.faults} - launched.released
        self._spaces.forget_sampled(failed)
        pipeline.fail_fed_rows(failed, explain_no_token)
        return results.done(step.id, seconds, session.arena.take_map_work())

    def _launch(
        self,
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
        session = self.session
        if self.debug:
            _poison_tails(session, list(good.values()))

        def prepare() -> StepWork:
            if pipeline.draws_late(good.values()):
                answers.extend(self.finish_all())
                for index, row in good.items():
                    if not row.tokens and not self._spaces.has_sampled(row.asid, row.start):
                        results.faults[index] = explain_no_token(row)  # it was fed with junk
            return StepWork.prepare(session.sampler, good)

        try:
            pipeline.launch(step, good, results, began_at, prepare)
        finally:
            session.arena.mark_step([row.asid for row in good.values()])

    def _run_apart(self, good: dict[int, Row], results: StepResults) -> None:
        """Run good rows as one batch; where that fails, its halves: only what fails alone is at fault.

        A row has the same bits in any company, and of a batch that failed nothing was counted. Raises what
        says that the device is beyond use.
        """
        try:
            try:
                self._run_rows(good, results)
            finally:
                self.session.arena.mark_step([row.asid for row in good.values()])
        except Exception as error:
            traceback.print_exc()
            outlive(self.backend, error)
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
            self._run_apart({index: good[index] for index in half}, results)

    def _run_rows(self, good: dict[int, Row], results: StepResults) -> None:
        """Run good rows, by index, and take what they yield."""
        session, batch = self.session, list(good.values())
        if self.debug:
            _poison_tails(session, batch)
        work = StepWork.prepare(session.sampler, good)
        told, num_before = [], 0
        for row in batch if session.pooler.num_spaces else ():
            told += [num_before + index for index in session.pooler.wanted(row)]
            num_before += row.num_tokens
        if told:
            choices, hidden = session.model.choose_and_tell(batch, session.pages, work.draws, told)
            _pool(session, good, hidden, results)
        else:
            choices = session.model.choose(batch, session.pages, work.draws)
        self._spaces.note_sampled(work.take(session.sampler, choices, results))


def _pool(
    session: Session, good: dict[int, Row], hidden: npt.NDArray[np.float32], results: StepResults
) -> None:
    """Hand the hidden states of a step to the rows that wanted them, in order."""
    pooler, first = session.pooler, 0
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
            for view in session.pages.views():
                poison_tail(view, page, slot, size)
