"""Completion: a finished step's results go to its processes, and are accounted for."""

from __future__ import annotations

from collections import Counter

import attrs
import trio

from llmos.device import StepDone
from llmos.proc.pcb import Process
from llmos.sched.forecast import Forecast
from llmos.sched.in_flight import InFlight
from llmos.sched.residents import Residents
from syscalls.process import ExitStatus

STEPS_PER_RESIDENCY_CHARGE = 64  # between charges for holding memory


@attrs.define(eq=False)
class Completion:
    """Takes in what one device has computed; the counters count from boot."""

    residents: Residents
    num_steps: int = 0
    num_prompt_tokens: int = 0  # computed, not found in memory
    num_output_tokens: int = 0
    device_seconds: float = 0.0  # that the device spent on steps

    def take(self, step: InFlight, result: StepDone, forecast: Forecast | None) -> None:
        """Hand a step's tokens out, end turns and processes, and learn what it took. Mutates all of them.

        One loop without calls of its own for a token: with hundreds of rows those would be most of its cost.
        """
        residents = self.residents
        self.num_steps += 1
        self.device_seconds += result.seconds
        if forecast is not None and step.entries:
            forecast.learn(step.work, result.seconds)
        if result.maps is not None and residents.switch is not None:
            residents.switch.vmm.note_map_work(result.maps)
        now = trio.current_time()
        ended_at = now if result.ended_at is None else result.ended_at
        faults = {fault.row: fault.message for fault in result.faults}
        tenants: list[str] = []  # of each token
        for i, (process, epoch, end, sample) in enumerate(step.entries):
            if process.epoch != epoch:
                continue
            if faults and i in faults:
                residents.terminate(process, ExitStatus("error", message=faults[i]), is_clean=False)
                continue
            turn_start = process.turn_start
            if process.num_computed < turn_start:
                self.num_prompt_tokens += max(0, min(end, turn_start) - process.num_computed)
            process.num_computed = end
            if result.scores:
                process.take_scores(result.scores[i], end)
            if process.pooling is not None:
                self._take_vector(process, end, result.vectors[i] if result.vectors else None)
                continue
            if not sample:
                if process.max_tokens == 0 and end >= process.num_to_score:
                    residents.end_turn(process, ExitStatus("length"))  # only the prompt was to be scored
                continue
            token = result.tokens[i]
            if token is None:
                residents.terminate(process, ExitStatus("error", message="the driver sampled no token"))
                continue
            process.num_pending -= 1
            tokens = process.tokens
            tokens.append(token)
            process.output.append(token)
            if process.token_times is not None:
                process.token_times.append(ended_at)
            if result.logprobs:
                logprobs = result.logprobs[i]
                if logprobs is not None:
                    process.logprobs.append(logprobs)
            if result.mus:
                process.mu = result.mus[i]
            if not process.timeline.is_decoding:
                is_first = process.num_turn_output == 1 or process.first_token_at is None  # that of a child
                process.timeline.decodes(now, len(process.output), is_first)
                if process.first_token_at is None:
                    process.first_token_at = now
            tenants.append(process.tenant)
            if token in process.stop_tokens:
                residents.end_turn(process, ExitStatus("stop", stop_token=token))
            elif len(tokens) - turn_start >= process.max_tokens:
                residents.end_turn(process, ExitStatus("length"))
            elif process.readers or process.followers:
                process.wake_readers()  # now: the first ones' tokens are on their way beside the others
        self.num_output_tokens += len(tenants)
        for tenant, num_tokens in Counter(tenants).items():
            residents.accounts.of(tenant).charge_output(num_tokens)
        if self.num_steps % STEPS_PER_RESIDENCY_CHARGE == 0:
            residents.charge_all_residency()

    def _take_vector(self, process: Process, end: int, vector: bytes | None) -> None:
        """Take what a process with `pooling` has come to at `end`: its vector ends it."""
        if end < process.turn_start:
            if vector is not None and end > process.num_summed:
                process.num_summed, process.total = end, vector
        elif vector is None:
            self.residents.terminate(process, ExitStatus("error", message="the driver made no vector"))
        else:
            process.vector = vector
            self.residents.terminate(process, ExitStatus("stop"))
