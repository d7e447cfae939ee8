"""`llmos bench switch` on a real device: the knee of the load, then all variants in turn, round by round."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs

from llmos.bench.conversations import Conversation, TraceRow, make_conversations
from llmos.bench.report import Report
from llmos.bench.switch_real import RealMachine, hold, mean_live_tokens
from llmos.bench.switch_report import add_recompute_rows, add_rows, check_runs
from llmos.bench.switch_run import SwitchRun
from llmos.bench.switch_variants import AUTO, BLOCK_TOKENS, BLOCKS, FCFS, make_variants

FULL_CONTEXT = 8192  # of a model that the trace's lengths suit as they are
PAUSE_SECONDS = 1.0  # mean, between two turns: runs are short, and most conversations should end in them
RERANK_STEPS = 25
SHARE_IN_MEMORY = 1 / 3  # of what live conversations hold
SWEEP = (0.3, 0.5, 0.7, 0.9)  # of the rate that the device gets done when everybody is there at once
NUM_WARM = 24  # conversations that this rate is measured with
NUM_RUNS_BEFORE = 1 + len(SWEEP)


@attrs.frozen
class Traffic:
    """Conversations, and memory for a third of those that live at a time."""

    turns_per_second: float
    conversations: list[Conversation]
    pool_mib: int
    swap_mib: int


@attrs.define
class RealBench:
    """One machine and what is done to it.

    Args:
        machine: from `describe`.
        rows: of the trace.
        seconds: that conversations start for, in each run.
        advance: called after each run.
    """

    machine: RealMachine
    rows: Sequence[TraceRow]
    seconds: float
    advance: Callable[[], None]

    def measure(self, report: Report, num_rounds: int) -> None:
        """Rows of all variants at the knee; conversations are new in each round, and the same for all.

        Raises:
            NothingMeasured: see `check_runs`.
        """
        capacity, seconds_per_token = self._measure_capacity()
        knee = self._find_knee(capacity, seconds_per_token)
        names = list(make_variants(self._block_bytes(), RERANK_STEPS, 0))
        runs: dict[str, list[SwitchRun]] = {name: [] for name in names}
        for number in range(num_rounds):
            traffic = self._make_traffic(knee, seconds_per_token, number + 1)
            for name in names:
                runs[name].append(self._run(name, traffic, number + 1))
        case = f"{self.machine.name}, knee at {traffic.turns_per_second:.2g} turns/s"
        check_runs(runs, case)
        add_rows(report, case, runs)
        add_recompute_rows(report, case, AUTO, runs)

    def _measure_capacity(self) -> tuple[float, float]:
        """Conversations per second when all are there at once, and seconds per token of each of them."""
        conversations = self._draw(NUM_WARM, 0.0, seed=0)
        variant = make_variants(self._block_bytes(), RERANK_STEPS, 0)[FCFS]
        run = hold(self.machine, conversations, variant.options, pool_mib=None)
        self.advance()
        num_tokens = sum(turn.num_output_tokens for c in conversations for turn in c.turns)
        return NUM_WARM * run.latencies.throughput / num_tokens, run.latencies.tbt[50.0]

    def _find_knee(self, capacity: float, seconds_per_token: float) -> float:
        """The highest load, in conversations per second, at which half of all people wait at most twice as
        long for their first token as under the lightest one, with the synchronous block swap."""
        knee, quiet = SWEEP[0] * capacity, math.inf
        for share in SWEEP:
            run = self._run(BLOCKS, self._make_traffic(share * capacity, seconds_per_token, 0), 0)
            median = run.latencies.ttft[50.0]
            quiet = min(quiet, median) if share == SWEEP[0] else quiet
            if median <= 2 * quiet:
                knee = share * capacity
        return knee

    def _make_traffic(self, per_second: float, seconds_per_token: float, seed: int) -> Traffic:
        conversations = self._draw(max(12, round(self.seconds * per_second)), per_second, seed)
        kv = self.machine.kv
        live = mean_live_tokens(conversations, seconds_per_token)
        longest = max(c.num_tokens for c in conversations) + kv.tokens_per_page
        num_pages = kv.num_pages(math.ceil(max(live * SHARE_IN_MEMORY, longest))) + 1
        pool_bytes = num_pages * kv.page_bytes
        all_pages = sum(kv.num_pages(c.num_tokens) + 1 for c in conversations)
        all_bytes = all_pages * kv.page_bytes
        num_turns = sum(len(c.turns) for c in conversations)
        rate = per_second * num_turns / len(conversations)
        return Traffic(rate, conversations, -(-pool_bytes >> 20), -(-all_bytes >> 20))

    def _draw(self, count: int, per_second: float, seed: int) -> list[Conversation]:
        pause = PAUSE_SECONDS if per_second else 0.0
        context = self.machine.context
        return make_conversations(
            self.rows, count, per_second, pause, context, seed, min(1.0, context / FULL_CONTEXT)
        )

    def _run(self, name: str, traffic: Traffic, seed: int) -> SwitchRun:
        variant = make_variants(self._block_bytes(), RERANK_STEPS, seed)[name]
        options = {**variant.options, "swap_mib": traffic.swap_mib}
        run = hold(self.machine, traffic.conversations, options, traffic.pool_mib)
        self.advance()
        return run

    def _block_bytes(self) -> int:
        return self.machine.block_bytes(BLOCK_TOKENS)
