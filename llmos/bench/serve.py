"""`llmos bench serve`: requests that arrive over time at an OpenAI-compatible server, and how they fared.

Times count from a request's arrival, not from when the cap on concurrency let it go: who waits, waits.
"""

from __future__ import annotations

import math
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise

import attrs
import trio
from rich.console import Console
from rich.progress import Progress

from llmos.bench.arrivals import PlannedRequest
from llmos.bench.ask import Prompts, Style, words
from llmos.bench.report import Report
from llmos.bench.serve_table import print_table
from llmos.bench.server import Server, running_server
from llmos.bench.sse_client import RequestFailed, stream_completion
from llmos.bench.workload import Target, describe, percentile
from llmos.config import ConfigError

PERCENTS = (50, 95, 99)
UNKNOWN_VOCABULARY = 32_000  # token ids below this are sent to a server that does not list its models


@attrs.frozen
class Slo:
    """Limits that a good request keeps; None: no such limit."""

    ttft_ms: float | None = None
    tbt_ms: float | None = None  # of the mean gap between a request's tokens


@attrs.frozen
class Finished:
    """A request that was answered; all in perf_counter seconds."""

    arrived: float
    tokens: Sequence[float]  # when each came; at least one
    num_prompt_tokens: int = 0  # as the server counts them; 0: it does not say

    @property
    def ttft(self) -> float:
        """Time to first token, in seconds."""
        return self.tokens[0] - self.arrived

    @property
    def tpot(self) -> float:
        """Time per output token after the first, in seconds; 0 where there is only one."""
        return (self.tokens[-1] - self.tokens[0]) / max(1, len(self.tokens) - 1)

    def keeps(self, slo: Slo) -> bool:
        """Whether it is good."""
        is_prompt = slo.ttft_ms is None or 1e3 * self.ttft <= slo.ttft_ms
        return is_prompt and (slo.tbt_ms is None or 1e3 * self.tpot <= slo.tbt_ms)


@attrs.define
class Measured:
    """What has come of a load so far."""

    seconds: float = 0.0  # from the start to the last answer, or to the interruption
    num_arrived: int = 0
    finished: list[Finished] = attrs.field(factory=list)
    errors: Counter[str] = attrs.field(factory=Counter)  # by RequestFailed.kind
    first_errors: dict[str, str] = attrs.field(factory=dict)  # what the first of each kind said

    def add_rows(self, report: Report, case: str, slo: Slo) -> None:
        """Write it into a report; what nothing was measured of has no row."""

        def add(metric: str, value: float, unit: str, against: str = "itself", ratio: float = 1.0) -> None:
            report.add(case, metric, value, unit, against=against, ratio=ratio, runs=1)

        finished, seconds = self.finished, max(self.seconds, 1e-9)
        times = {
            "TTFT": [request.ttft for request in finished],
            "TPOT": [request.tpot for request in finished if len(request.tokens) > 1],
            "TBT": [b - a for request in finished for a, b in pairwise(request.tokens)],
            "end to end": [request.tokens[-1] - request.arrived for request in finished],
        }
        for name, values in times.items():
            if values:
                add(f"mean {name}", 1e3 * statistics.fmean(values), "ms")
            for percent in PERCENTS if values else ():
                add(f"P{percent} {name}", 1e3 * percentile(values, percent), "ms")
        of_arrived = 1 / max(1, self.num_arrived)
        add("finished", len(finished), "requests", "arrived", len(finished) * of_arrived)
        add("duration", self.seconds, "s")
        add("request throughput", len(finished) / seconds, "requests/s")
        if num_prompt_tokens := sum(request.num_prompt_tokens for request in finished):
            add("prompt throughput", num_prompt_tokens / seconds, "tokens/s")
        add("output throughput", sum(len(request.tokens) for request in finished) / seconds, "tokens/s")
        if slo != Slo():
            num_good = sum(request.keeps(slo) for request in finished)
            add("goodput", num_good / seconds, "requests/s", "arrived", num_good * of_arrived)
        for kind, count in sorted(self.errors.items()):
            add(f"errors: {kind}", count, "requests", "arrived", count * of_arrived)
        if num_cut := self.num_arrived - len(finished) - self.errors.total():
            add("cut off", num_cut, "requests", "arrived", num_cut * of_arrived)


async def load(
    target: Target, planned: Sequence[PlannedRequest], measured: Measured, *, api_key: str | None,
    style: Style, concurrency: int | None, seed: int, advance: Callable[[], None],
) -> None:  # fmt: skip
    """Send every request at its time; SIGINT ends it early. `measured` is up to date at any moment."""
    limit = trio.CapacityLimiter(concurrency or math.inf)
    began = time.perf_counter()

    async def one(number: int, request: PlannedRequest) -> None:
        make = target.prompt if style.prompts is Prompts.TOKENS else words
        prompt = make(request.num_input_tokens, f"serve {seed}.{number}")
        arrived = began + request.at
        try:
            async with limit:
                times = await stream_completion(
                    target.url, target.served_name, prompt, request.num_output_tokens, api_key, style
                )
        except RequestFailed as error:
            measured.errors[error.kind] += 1
            measured.first_errors.setdefault(error.kind, str(error))
        else:
            measured.finished.append(Finished(arrived, times.arrivals, times.num_prompt_tokens))
        advance()

    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with trio.open_nursery() as watching:

            async def cancel_when_interrupted() -> None:
                async for _ in interrupts:
                    watching.cancel_scope.cancel()

            watching.start_soon(cancel_when_interrupted)
            async with trio.open_nursery() as nursery:
                for number, request in enumerate(planned):
                    await trio.sleep(max(0.0, began + request.at - time.perf_counter()))
                    measured.num_arrived += 1
                    nursery.start_soon(one, number, request)
            watching.cancel_scope.cancel()
    measured.seconds = time.perf_counter() - began


def find_target(url: str, served_name: str | None, api_key: str | None) -> Target:
    """The model to ask for; a name that is given needs no list of models. Raises RequestFailed."""
    try:
        target = describe(url, None, api_key)
    except RequestFailed:
        if served_name is None:
            raise
        return Target(url, served_name, served_name, UNKNOWN_VOCABULARY)
    target.served_name = served_name or target.served_name
    return target


def main(
    planned: Sequence[PlannedRequest], *, folder: str | None, url: str | None, served_name: str | None,
    api_key: str | None, style: Style, concurrency: int | None, seed: int, slo: Slo, json_path: str | None,
) -> int:  # fmt: skip
    """Measure, print a table, write the rows; 1 when no request was answered.

    Raises:
        ConfigError: an option is out of range.
        RequestFailed: the server does not list its models, and no model was named.
    """
    limits = {"--concurrency": concurrency, "--slo-ttft-ms": slo.ttft_ms, "--slo-tbt-ms": slo.tbt_ms}
    for option, value in limits.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{option} {value} is not a number above 0")
    if url and folder:
        raise ConfigError(f"--url loads a server that runs; the model folder {folder} is for one of our own")
    if url and not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url {url} is not an http:// or https:// address")
    options = ["--device", "cpu", *(["--model", folder] if folder else [])]
    context = nullcontext(Server(url, "", 0.0)) if url else running_server(*options)
    console, measured = Console(stderr=True), Measured()
    with context as server, Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        target = find_target(server.url.rstrip("/"), served_name, api_key)
        task = bar.add_task("bench serve", total=len(planned))

        async def run() -> None:
            await load(
                target, planned, measured, api_key=api_key, style=style, concurrency=concurrency, seed=seed,
                advance=lambda: bar.advance(task),
            )  # fmt: skip

        trio.run(run)
    report = Report("serve")
    measured.add_rows(report, f"{target.served_name}, {len(planned)} requests", slo)
    print_table(report.rows, f"{target.served_name}, {len(planned)} requests")
    for message in measured.first_errors.values():
        console.print(f"first of its kind: {message}", markup=False, highlight=False, soft_wrap=True)
    if json_path:
        report.write_json(json_path)
    return 0 if measured.finished else 1
