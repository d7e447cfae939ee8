"""The same values under vLLM's names, for dashboards and load tools that know only those.

Requests are counted by the gateway as they happen, each choice as one, as vLLM does. What is true of a moment
(running, waiting, memory, prefix cache, preemptions) is the kernel's, read when the page is asked for. Every
sample has `model_name`; no other label grows with the number of clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syscalls.process import Usage
from syscalls.system import DeviceInfo

# Bounds are seconds or tokens, close to vLLM's own, so that panels made for those look right.
FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    40.0,
)
BETWEEN_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
PHASE = (
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)

HISTOGRAMS: tuple[tuple[str, str, Sequence[float]], ...] = (
    ("vllm:time_to_first_token_seconds", "Request to first token.", FIRST_TOKEN),
    ("vllm:inter_token_latency_seconds", "Between tokens of a choice.", BETWEEN_TOKENS),
    ("vllm:e2e_request_latency_seconds", "Request to last token.", PHASE),
    ("vllm:request_queue_time_seconds", "Spawn to first step.", PHASE),
    ("vllm:request_prefill_time_seconds", "First step to first token.", PHASE),
    ("vllm:request_decode_time_seconds", "First token to last.", PHASE),
    ("vllm:request_prompt_tokens", "Prompt tokens of a request.", TOKENS),
    ("vllm:request_generation_tokens", "Sampled tokens of a request.", TOKENS),
)
FINISHED_REASONS = ("stop", "length", "abort", "error")


class VllmMetrics:
    """Counters and histograms under vLLM's names."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ["model_name"]
        self._histograms = {
            name: Histogram(name, what, labels, buckets=buckets, registry=self._registry)
            for name, what, buckets in HISTOGRAMS
        }
        self._prompt_tokens = Counter(
            "vllm:prompt_tokens", "Prompt tokens of requests.", labels, registry=self._registry
        )
        self._generation_tokens = Counter(
            "vllm:generation_tokens", "Sampled tokens.", labels, registry=self._registry
        )
        self._success = Counter(
            "vllm:request_success",
            "Requests that have ended, by how.",
            [*labels, "finished_reason"],
            registry=self._registry,
        )

    def open(self, model: str, num_prompt_tokens: int, started: float) -> RequestMetrics:
        """Begin to account for a choice; `started` is when its request arrived, on the run's clock."""
        return RequestMetrics(self, model, num_prompt_tokens, started)

    def observe(self, name: str, model: str, value: float) -> None:
        """Add a value to one of `HISTOGRAMS`, named without its prefix."""
        self._histograms[f"vllm:{name}"].labels(model).observe(value)

    def count_prompt(self, model: str, num_tokens: int) -> None:
        """Count the tokens of a prompt: once, however many choices it has."""
        self._prompt_tokens.labels(model).inc(num_tokens)

    def count_tokens(self, model: str, num_tokens: int) -> None:
        """Count tokens that were sampled."""
        self._generation_tokens.labels(model).inc(num_tokens)

    def count_end(self, model: str, reason: str) -> None:
        """Count a request that has ended; `reason` is one of `FINISHED_REASONS`."""
        self._success.labels(model, reason).inc()

    def render(self, devices: Iterable[DeviceInfo]) -> bytes:
        """Return the exposition text. Blocks for a millisecond or so: call it in a thread."""
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(tuple(devices)))
        return generate_latest(snapshot) + generate_latest(self._registry)


@attrs.define(eq=False)
class RequestMetrics:
    """One choice, from its spawn to its end. Times are seconds on the run's clock."""

    _metrics: VllmMetrics
    _model: str
    _num_prompt_tokens: int
    _started: float
    _first: float | None = None
    _last: float | None = None
    _num_tokens: int = 0

    def feed(self, now: float, num_tokens: int) -> None:
        """Take tokens that were read together: they share the time since the last."""
        if self._last is None:
            self._first = now
            self._metrics.observe("time_to_first_token_seconds", self._model, now - self._started)
        else:
            for _ in range(num_tokens):
                gap = (now - self._last) / num_tokens
                self._metrics.observe("inter_token_latency_seconds", self._model, gap)
        self._last = now
        self._num_tokens += num_tokens
        self._metrics.count_tokens(self._model, num_tokens)

    def end(self, now: float, reason: str, usage: Usage | None) -> None:
        """Account for the whole. `usage` is None where the kernel told none: the process was killed."""
        metrics, model = self._metrics, self._model
        metrics.count_end(model, reason)
        metrics.observe("e2e_request_latency_seconds", model, now - self._started)
        metrics.observe("request_prompt_tokens", model, self._num_prompt_tokens)
        metrics.observe("request_generation_tokens", model, self._num_tokens)
        if self._first is not None and self._last is not None:
            metrics.observe("request_decode_time_seconds", model, self._last - self._first)
        if usage is not None:
            metrics.observe("request_queue_time_seconds", model, usage.queued_seconds)
            if usage.first_token_seconds is not None:
                prefill = max(0.0, usage.first_token_seconds - usage.queued_seconds)
                metrics.observe("request_prefill_time_seconds", model, prefill)


def finished_reason(finish_reason: str | None, *, has_failed: bool) -> str:
    """Return vLLM's word for how a choice ended; one that nobody waited for is an "abort"."""
    if has_failed:
        return "error"
    if finish_reason is None:
        return "abort"
    return "length" if finish_reason == "length" else "stop"


class _Snapshot(Collector):
    def __init__(self, devices: tuple[DeviceInfo, ...]) -> None:
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        """See Collector. Devices that serve one model are one row."""
        by_model: dict[str, list[DeviceInfo]] = {}
        for device in self._devices:
            by_model.setdefault(device.model, []).append(device)
        labels = ("model_name",)
        running = GaugeMetricFamily("vllm:num_requests_running", "Take part in steps.", labels=labels)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "In the run queues.", labels=labels)
        used = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Used part of the frames, 0-1.", labels=labels)
        preempted = CounterMetricFamily("vllm:num_preemptions", "Lost their memory.", labels=labels)
        queries = CounterMetricFamily("vllm:prefix_cache_queries", "Tokens looked up.", labels=labels)
        hits = CounterMetricFamily("vllm:prefix_cache_hits", "Of those, found.", labels=labels)
        for model, devices in by_model.items():
            row = (model,)
            num_frames = sum(device.num_frames for device in devices)
            num_idle = sum(device.num_free_frames + device.num_cached_frames for device in devices)
            caches = [device.cache for device in devices if device.cache is not None]
            running.add_metric(row, sum(device.num_running for device in devices))
            waiting.add_metric(row, sum(device.num_waiting for device in devices))
            used.add_metric(row, 1 - num_idle / num_frames if num_frames else 0.0)
            preempted.add_metric(row, sum(device.num_preemptions for device in devices))
            queries.add_metric(row, sum(cache.num_query_tokens for cache in caches))
            hits.add_metric(row, sum(cache.num_hit_tokens for cache in caches))
        yield from (running, waiting, used, preempted, queries, hits)
