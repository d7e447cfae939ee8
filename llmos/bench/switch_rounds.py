"""`llmos bench switch` on a real device: the knee of the load, then all variants in turn, round by round.

The knee is the highest load that the kernel's own choice of ways sustains: half of all people get their first
token within twice the time that it takes under the lightest load. All runs are stopped when the last
conversation has begun; what has not come by then counts as waited for until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import attrs

from llmos.bench.conversations import MEAN_TURNS, Conversation, TraceRow, make_conversations
from llmos.bench.kept_runs import KeptRuns
from llmos.bench.report import Report
from llmos.bench.switch_real import RealMachine, hold, mean_live_tokens
from llmos.bench.switch_report import add_recompute_rows, add_rows, check_runs
from llmos.bench.switch_run import SwitchRun
from llmos.bench.switch_variants import AUTO, BLOCK_TOKENS, FCFS, make_variants

FULL_CONTEXT = 8192  # of a model that the trace's lengths suit as they are
PAUSE_SECONDS = 1.0  # mean, between two turns: runs are short, and most conversations should end in them
RERANK_STEPS = 25
SHARE_IN_MEMORY = 1 / 3  # of what live conversations hold
SWEEP = (0.3, 0.6, 0.75, 0.9, 1.05, 1.2)  # of the rate that is got done when everybody is there at once
SWEEP_SHARE = 0.5  # of a run's time, for each of them
NUM_WARM = 24  # conversations that this rate is measured with
NUM_RUNS_BEFORE = 1 + len(SWEEP)
MAX_STRETCH = 2.0  # of the median time to the first token, at the knee


@attrs.frozen
class Traffic:
    """Conversations, and memory for a third of those that live at a time."""

    per_second: float  # conversations
    seconds: float  # that they start in
    conversations: list[Conversation]
    pool_mib: int
    swap_mib: int


@attrs.define
class RealBench:
    """One machine and what is done to it.

    Args:
        machine: from `describe`.
        rows: of the trace.
        seconds: of each run; conversations start all the while.
        kept: what was measured before, and where what is measured goes.
        advance: called after each run.
    """

    machine: RealMachine
    rows: Sequence[TraceRow]
    seconds: float
    kept: KeptRuns
    advance: Callable[[], None]

    def measure(self, num_rounds: int) -> Iterator[Report]:
        """A report after the search for the knee, and after each round of variants at it.

        Conversations are new in each round, and the same for all variants.

        Raises:
            NothingMeasured: see `check_runs`.
        """
        search = Report("switch")
        capacity, seconds_per_token = self._measure_capacity()
        knee = self._find_knee(capacity, seconds_per_token, search)
        yield search
        names = list(make_variants(self._block_bytes(), RERANK_STEPS, 0))
        runs: dict[str, list[SwitchRun]] = {name: [] for name in names}
        for number in range(1, num_rounds + 1):
            traffic = self._make_traffic(knee, seconds_per_token, number, self.seconds)
            for name in names:
                runs[name].append(self._run(name, traffic, number))
            case = f"{self.machine.name}, knee at {knee * MEAN_TURNS:.2g} turns/s"
            check_runs(runs, case)
            report = Report("switch")
            report.rows += search.rows
            add_rows(report, case, runs)
            add_recompute_rows(report, case, AUTO, runs)
            yield report

    def _measure_capacity(self) -> tuple[float, float]:
        """Conversations per second when all are there at once, and seconds per token of each of them."""
        found = self.kept.numbers(self.machine.name, "capacity")
        if found is None:
            conversations = self._draw(NUM_WARM, 0.0, seed=0)
            variant = make_variants(self._block_bytes(), RERANK_STEPS, 0)[FCFS]
            run = hold(self.machine, conversations, variant.options, pool_mib=None)
            num_tokens = sum(turn.num_output_tokens for c in conversations for turn in c.turns)
            found = NUM_WARM * run.latencies.throughput / num_tokens, run.latencies.tbt[50.0]
            self.kept.keep_numbers(self.machine.name, "capacity", 0, found)
        self.advance()
        capacity, seconds_per_token = found
        return capacity, seconds_per_token

    def _find_knee(self, capacity: float, seconds_per_token: float, search: Report) -> float:
        """The highest load of the sweep, in conversations per second, that is sustained. Adds rows."""
        knee, quiet = SWEEP[0] * capacity, math.inf
        for share in SWEEP:
            seconds = SWEEP_SHARE * self.seconds
            traffic = self._make_traffic(share * capacity, seconds_per_token, 0, seconds)
            median = self._run(AUTO, traffic, 0).latencies.ttft[50.0]
            quiet = min(quiet, median) if share == SWEEP[0] else quiet
            search.add(
                f"{self.machine.name}, search of the knee: {share * capacity * MEAN_TURNS:.2g} turns/s",
                "P50 TTFT", median, "s", against="the lightest load", ratio=quiet / median, runs=1,
            )  # fmt: skip
            if median > MAX_STRETCH * quiet:
                for _ in SWEEP[SWEEP.index(share) + 1 :]:
                    self.advance()
                break
            knee = share * capacity
        return knee

    def _make_traffic(
        self, per_second: float, seconds_per_token: float, seed: int, seconds: float
    ) -> Traffic:
        conversations = self._draw(max(12, round(seconds * per_second)), per_second, seed)
        kv = self.machine.kv
        live = mean_live_tokens(conversations, seconds_per_token)
        longest = max(c.num_tokens for c in conversations) + kv.tokens_per_page
        num_pages = kv.num_pages(math.ceil(max(live * SHARE_IN_MEMORY, longest))) + 1
        pool_bytes = num_pages * kv.page_bytes
        all_pages = sum(kv.num_pages(c.num_tokens) + 1 for c in conversations)
        all_bytes = all_pages * kv.page_bytes
        return Traffic(per_second, seconds, conversations, -(-pool_bytes >> 20), -(-all_bytes >> 20))

    def _draw(self, count: int, per_second: float, seed: int) -> list[Conversation]:
        pause = PAUSE_SECONDS if per_second else 0.0
        context = self.machine.context
        return make_conversations(
            self.rows, count, per_second, pause, context, seed, min(1.0, context / FULL_CONTEXT)
        )

    def _run(self, name: str, traffic: Traffic, seed: int) -> SwitchRun:
        case = f"{self.machine.name}, {traffic.per_second:.6g} conversations/s, {traffic.seconds:g} s"
        run = self.kept.run(case, name, seed)
        if run is None:
            variant = make_variants(self._block_bytes(), RERANK_STEPS, seed)[name]
            options = {**variant.options, **self.machine.below(traffic.swap_mib)}
            last = max(conversation.starts_at for conversation in traffic.conversations)
            run = hold(self.machine, traffic.conversations, options, traffic.pool_mib, last)
            self.kept.keep_run(case, name, seed, run)
        self.advance()
        return run

    def _block_bytes(self) -> int:
        return self.machine.block_bytes(BLOCK_TOKENS)
