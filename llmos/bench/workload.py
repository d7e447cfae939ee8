"""`llmos bench workload`: three fixed workloads through the HTTP door of llmos or any OpenAI-like server.

A  prefill   one prompt of 512 tokens, one new token; tokens/s = 512 / time to first token
B  decode    1, 8, 32 sequences together, prompt 32, 64 new tokens; tokens/s after all have their first token
C  served    64 requests at t = 0, at most 16 together, prompts lognormal (mean 160, 16 to 512), outputs
             lognormal (mean 64, 8 to 160); time to first token counts from t = 0

Greedy; prompts are random token ids of fixed seeds, and no two share a prefix.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import msgspec
import trio
from rich.console import Console
from rich.progress import Progress

from llmos.bench.report import Report
from llmos.bench.server import Server, running_server
from llmos.bench.sse_client import RequestFailed, StreamTimes, fetch, stream_completion
from llmos.config import ConfigError
from llmos.errors import first_leaf

PREFILL_TOKENS = 512
DECODE_PROMPT_TOKENS, DECODE_TOKENS = 32, 64
BATCHES = (1, 8, 32)
NUM_SERVED, NUM_TOGETHER = 64, 16
FIRST_ID = 300  # below are special tokens and single bytes
MAX_MODEL_LEN = 1024

Numbers = dict[str, float]


def random_prompt(model: str, vocab_size: int, length: int, seed: str) -> list[int]:
    """Token ids that depend on the arguments alone."""
    rng = random.Random(f"{model}/{length}/{seed}")
    return [rng.randrange(min(FIRST_ID, vocab_size // 2), vocab_size) for _ in range(length)]


def served_lengths() -> list[tuple[int, int]]:
    """Prompt and output lengths of workload C."""
    rng = random.Random(0)

    def lognormal(mean: float, sigma: float, low: int, high: int) -> int:
        drawn = rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)
        return max(low, min(high, round(drawn)))

    return [(lognormal(160, 0.7, 16, 512), lognormal(64, 0.6, 8, 160)) for _ in range(NUM_SERVED)]


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between the two nearest ranks."""
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


class Target:
    """A server to measure, and the model it is asked for."""

    def __init__(self, url: str, served_name: str, prompt_name: str, vocab_size: int) -> None:
        self.url = url
        self.served_name = served_name
        self.prompt_name = prompt_name  # seeds the prompts: the same for every server of one comparison
        self.vocab_size = vocab_size

    def prompt(self, length: int, seed: str) -> list[int]:
        """A prompt of this comparison."""
        return random_prompt(self.prompt_name, self.vocab_size, length, seed)

    async def complete_all(
        self, requests: list[tuple[list[int], int]], num_together: int
    ) -> list[StreamTimes]:
        """Run requests, at most so many at once, and return their times in order."""
        results: dict[int, StreamTimes] = {}
        limit = trio.CapacityLimiter(num_together)
        failure: BaseException | None = None

        async def one(i: int) -> None:
            async with limit:
                results[i] = await stream_completion(self.url, self.served_name, *requests[i])

        try:
            async with trio.open_nursery() as nursery:
                for i in range(len(requests)):
                    nursery.start_soon(one, i)
                    await trio.lowlevel.checkpoint()  # in order: trio starts the tasks of one batch in any
        except* RequestFailed as group:
            failure = first_leaf(group)
        if failure is not None:
            raise failure
        return [results[i] for i in range(len(requests))]


async def measure_prefill(target: Target, run: int) -> Numbers:
    """Workload A."""
    prompt = target.prompt(PREFILL_TOKENS, f"A{run}")
    began = time.perf_counter()
    times = await stream_completion(target.url, target.served_name, prompt, 1)
    seconds = times.arrivals[0] - began
    return {"prefill_tok_s": PREFILL_TOKENS / seconds, "ttft_s": seconds}


async def measure_decode(target: Target, batch: int, run: int) -> Numbers:
    """Workload B."""
    requests = [
        (target.prompt(DECODE_PROMPT_TOKENS, f"B{batch}.{i}.{run}"), DECODE_TOKENS) for i in range(batch)
    ]
    began = time.perf_counter()
    streams = [times.arrivals for times in await target.complete_all(requests, batch)]
    all_started = max(arrivals[0] for arrivals in streams)
    end = max(arrivals[-1] for arrivals in streams)
    num_after = sum(arrival > all_started for arrivals in streams for arrival in arrivals)
    return {
        "decode_tok_s": num_after / (end - all_started) if end > all_started else 0.0,
        "total_tok_s": sum(map(len, streams)) / (end - began),
        "ttft_s": all_started - began,
    }


async def measure_served(target: Target, run: int) -> Numbers:
    """Workload C."""
    requests = [
        (target.prompt(length, f"C{i}.{run}"), num_tokens)
        for i, (length, num_tokens) in enumerate(served_lengths())
    ]
    began = time.perf_counter()
    streams = [times.arrivals for times in await target.complete_all(requests, NUM_TOGETHER)]
    end = max(arrivals[-1] for arrivals in streams)
    first = [arrivals[0] - began for arrivals in streams]
    gaps = [b - a for arrivals in streams for a, b in pairwise(arrivals)]
    return {
        "output_tok_s": sum(map(len, streams)) / (end - began),
        "wall_s": end - began,
        "ttft_p50_s": percentile(first, 50),
        "ttft_p99_s": percentile(first, 99),
        "tbt_p50_ms": 1e3 * percentile(gaps, 50),
        "tbt_p99_ms": 1e3 * percentile(gaps, 99),
    }


WORKLOADS: dict[str, tuple[str, int | None]] = {
    "A": ("prefill 512", None),
    **{f"B{batch}": (f"decode, batch {batch}", batch) for batch in BATCHES},
    "C": (f"served, {NUM_SERVED} requests, {NUM_TOGETHER} together", None),
}
METRICS = {  # key: metric, unit
    "prefill_tok_s": ("prefill", "tokens/s"),
    "decode_tok_s": ("decode", "tokens/s"),
    "total_tok_s": ("prefill and decode", "tokens/s"),
    "output_tok_s": ("output", "tokens/s"),
    "wall_s": ("duration", "s"),
    "ttft_s": ("time to first token", "s"),
    "ttft_p50_s": ("P50 TTFT", "s"),
    "ttft_p99_s": ("P99 TTFT", "s"),
    "tbt_p50_ms": ("P50 TBT", "ms"),
    "tbt_p99_ms": ("P99 TBT", "ms"),
}


def choose_workloads(listed: str) -> list[str]:
    """The keys of WORKLOADS that a list names: "B" stands for B1, B8 and B32. Raises ConfigError."""
    names = [name.strip().upper() for name in listed.split(",")]
    for name in names:
        if name not in {*WORKLOADS, "B"}:
            raise ConfigError(f"workload {name!r} is not one of {', '.join(WORKLOADS)} and B")
    return [workload for workload in WORKLOADS if workload in names or workload[0] in names]


async def measure(target: Target, workload: str, run: int) -> Numbers:
    """One run of one workload of WORKLOADS."""
    match workload[0]:
        case "A":
            return await measure_prefill(target, run)
        case "B":
            return await measure_decode(target, WORKLOADS[workload][1] or 1, run)
        case _:
            return await measure_served(target, run)


def measure_all(
    target: Target, workloads: list[str], num_runs: int, advance: Callable[[], None]
) -> dict[str, Numbers]:
    """Some of WORKLOADS, round by round so that the machine's drift falls on all alike; medians."""
    found: dict[str, list[Numbers]] = {workload: [] for workload in workloads}
    trio.run(measure_decode, target, 8, -1)  # warm: memory is touched, connections are made
    if any(
        workload[0] != "B" for workload in workloads
    ):  # else the model may be too short for so long a prompt
        trio.run(measure_prefill, target, -1)
    for run in range(num_runs):
        for workload, rows in found.items():
            rows.append(trio.run(measure, target, workload, run))
            advance()
    return {
        workload: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        for workload, rows in found.items()
    }


def describe(url: str, name: str | None, api_key: str | None = None) -> Target:
    """Ask a server for its model. Vocabulary: what it says, or 32,000 where it says nothing."""
    models = msgspec.json.decode(trio.run(fetch, url, "/v1/models", api_key))["data"]
    model = models[0]
    meta = model.get("meta") or {}
    vocab_size = meta.get("vocab_size") or meta.get("n_vocab") or 32_000  # n_vocab: llama.cpp's
    return Target(url, model["id"], name or model["id"], vocab_size)


def main(
    *, model: str | None, url: str | None, weights: str, kv: str, threads: int | None, workloads: list[str],
    num_runs: int, jsonl: bool, json_path: str | None,
) -> int:  # fmt: skip
    """Measure, print a table (or JSON lines for a comparison of servers), write the rows."""
    options = ["--weights", weights, "--kv", kv, "--no-prefix-cache"]
    if any(workload[0] != "B" for workload in workloads):
        options += ["--max-model-len", str(MAX_MODEL_LEN)]
    options += ["--model", model] if model else []
    options += ["--threads", str(threads)] if threads else []
    name = Path(model).name if model else None
    context = nullcontext(Server(url, "", 0.0)) if url else running_server("--device", "cpu", *options)
    console = Console(stderr=True)
    with context as server, Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        target = describe(server.url.rstrip("/"), name)
        task = bar.add_task("bench workload", total=num_runs * len(workloads))
        results = measure_all(target, workloads, num_runs, lambda: bar.advance(task))
    if jsonl:
        for workload, numbers in results.items():
            batch = WORKLOADS[workload][1]
            row: dict[str, object] = {"peer": "llmos", "model": target.prompt_name, "prec": weights}
            row |= {"kv": kv, "workload": workload[0], "reps": num_runs, **numbers}
            row |= {"batch": batch} if batch else {}
            print(msgspec.json.encode(row).decode())
        return 0
    report = Report("workload")
    for workload, numbers in results.items():
        formats = weights if kv == "auto" else f"{weights} kv {kv}"
        case = f"{target.prompt_name} {formats}, {WORKLOADS[workload][0]}"
        for key, value in numbers.items():
            metric, unit = METRICS[key]
            report.add(case, metric, value, unit, against="itself", ratio=1.0, runs=num_runs)
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
