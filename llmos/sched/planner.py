"""The planner: what a device is to do next, from who runs and what memory there is."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import msgspec
import trio

from llmos.cost import StepWork, count_pairs
from llmos.device import Copy, Row, Step
from llmos.errors import OutOfFrames
from llmos.proc.lifecycle import ProcState
from llmos.proc.pcb import Process
from llmos.sched.admission import Admission
from llmos.sched.batch import BatchLimits, compose
from llmos.sched.courtesy import Courtesy
from llmos.sched.in_flight import Entry, StepsInFlight
from llmos.sched.messages import DropCache
from llmos.sched.pageout import Pageout
from llmos.sched.rest import Rest
from llmos.sched.switch import ContextSwitch


@attrs.define(eq=False)
class Planner:
    """Plans one device's steps and copies, ahead of its answers.

    Args:
        admission: who runs, and who gives way to whom.
        pageout: copies memory in advance.
        limits: what one step may hold, and how many are planned ahead.
        in_flight: where it enters the steps that it plans.
        rest: whether the device is to do nothing.
        drop_cache: begins to drop the prefix cache, of a device that is to rest.
    """

    admission: Admission
    pageout: Pageout
    limits: BatchLimits
    in_flight: StepsInFlight
    rest: Rest
    drop_cache: Callable[[DropCache], None]
    _courtesy: Courtesy = attrs.field(init=False)
    _next_review: int = attrs.field(init=False, default=0)  # the id of a step

    def __attrs_post_init__(self) -> None:
        self._courtesy = Courtesy(self.admission.residents.policy.is_over_share)

    def plan(self, switch: ContextSwitch) -> list[Step | Copy]:
        """Decide what the device is to do next; empty when there is nothing.

        While enough steps are in flight no other one is planned, but copies for those who are admitted begin
        beside them. With synchronous switching, as it was before FastSwitch, these wait for their turn, too.
        Copies come after the step, since its edits may make what they copy.
        """
        if self.rest.is_asked_for:
            return self._plan_rest(switch)
        residents, in_flight = self.admission.residents, self.in_flight
        if len(in_flight) >= self.limits.steps_in_flight:
            if switch.costs.is_sync:
                return []
            if residents.admission_is_due:
                self.admission.admit(switch)
            return [] if switch.vmm.has_page_copies else self._take_copies(switch)
        if residents.accounts.has_memory_caps:
            self.admission.keep_within_caps()
        review_steps = residents.policy.review_steps
        if review_steps and in_flight.last_id >= self._next_review:
            self._next_review = in_flight.last_id + review_steps
            self.admission.review(switch)
        if residents.admission_is_due:
            self.admission.admit(switch)
        orders: list[Step | Copy] = []
        if not switch.must_wait(residents.queue.running) and (step := self._plan_step(switch)) is not None:
            orders.append(step)
        self.pageout.clean(switch)
        if switch.swap.transfers.has_messages and switch.vmm.has_page_copies:
            orders.append(in_flight.issue_edits(switch.take_edits()))
        return orders + self._take_copies(switch)

    def _plan_rest(self, switch: ContextSwitch) -> list[Step | Copy]:
        """Take what memory there is from everybody: only edits and copies are left to do."""
        is_empty = self.rest.empty(self.admission.residents, self.drop_cache)
        orders: list[Step | Copy] = []
        if len(self.in_flight) < self.limits.steps_in_flight and (edits := switch.take_edits()):
            orders.append(self.in_flight.issue_edits(edits))
        if not switch.vmm.has_page_copies:
            orders += self._take_copies(switch)
        if is_empty and not orders and not self.in_flight:
            self.rest.settle()
        return orders

    def _take_copies(self, switch: ContextSwitch) -> list[Step | Copy]:
        """Copies to begin, each with the step that it must wait for."""
        size, in_turn = switch.vmm.kv.tokens_per_page, switch.costs.is_sync
        return [
            copy
            if in_turn or not pages
            else msgspec.structs.replace(copy, after=self.in_flight.last_use(pages, size))
            for copy, pages in switch.take_copies(self.in_flight.last_id)
        ]

    def _plan_step(self, switch: ContextSwitch) -> Step | None:
        """Compose the next step, map its memory, and account for it; None when nobody can run.

        One loop without calls of its own for a row: with hundreds of rows those would be most of its cost.
        """
        residents, pager, forecast = self.admission.residents, switch.vmm.pager, switch.costs.forecast
        rows: list[Row] = []
        entries: list[Entry] = []
        elders: list[Process] = []
        num_tokens = num_context_tokens = num_pairs = 0
        predict = forecast.step_seconds if forecast is not None else None
        for process, num_new in compose(
            residents.queue.running, self.limits, predict, residents.policy.standing, self._courtesy
        ):
            if process.state is not ProcState.RUNNING:
                continue  # gave its memory up for one before it in this very step
            start = process.num_scheduled
            end = start + num_new
            space = process.space
            assert space is not None
            try:
                pager.grow(space, start, end)
            except OutOfFrames:
                placed = {entry[0].pid for entry in entries}
                if not self.admission.make_room(switch, process, start, end, placed):
                    continue
            if not process.bound:
                switch.bind(process)
            known, num_pending = len(process.tokens), process.num_pending
            tokens = tuple(process.tokens[start:end]) if start < known else ()
            sample = end >= known and known - process.turn_start + num_pending < process.max_tokens
            targets = process.targets(start, end) if start < process.num_to_score else ()
            pool = process.pooling is not None and end >= known
            rows.append(Row(space.asid, start, tokens, sample, targets, pool))
            entries.append((process, process.epoch, end, sample))
            num_tokens += num_new
            num_context_tokens += end
            num_pairs += end if num_new == 1 else count_pairs(start, num_new)
            process.num_scheduled = end
            if process.num_uncharged:
                residents.charge_prompt(process, start, end)
            if end < known:
                pager.map_ahead(space, min(known, end + num_new))
            if sample:
                process.num_pending = num_pending + 1
            if tokens and not process.timeline.is_decoding:
                now = trio.current_time()
                if process.first_step_at is None:
                    process.first_step_at = now
                if start < process.turn_start or num_new > 1:
                    process.timeline.computes(now, num_new)
            if process.heirs and end >= process.turn_start - 1:
                elders.append(process)
        if not rows:
            return None
        work = StepWork(num_tokens, len(rows), num_context_tokens, num_pairs)
        step = self.in_flight.issue(switch.take_edits(), rows, entries, work)
        # Only now: the heirs' mappings must ride on the next step, since this one still writes those pages.
        for elder in elders:
            residents.release_heirs(elder)
        return step
