"""The gateway's own counters, in the Prometheus format. Labels are bounded: no request id, no client path."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from shell.gateway.users import UserMetrics
from shell.gateway.vllm_metrics import VllmMetrics
from shell.gateway.waits import Waits
from syscalls.system import DeviceInfo

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class TokenGaps(Collector):
    """A histogram of what comes with every token: to count into it takes a tenth of a Histogram's time."""

    def __init__(self) -> None:
        self._counts = [0] * (len(TOKEN_BUCKETS) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, count: int) -> None:
        """Count gaps of one length that are so long together."""
        self._counts[bisect_left(TOKEN_BUCKETS, seconds / count)] += count
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        bounds = [*map(floatToGoString, TOKEN_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        text = "Between tokens of one choice; tokens that arrive together share the time since the last"
        yield HistogramMetricFamily("llmos_gateway_inter_token_seconds", text, buckets, self._sum)


class Metrics:
    """Counters and histograms of one gateway. Children are looked up once and kept."""

    def __init__(self, vllm: VllmMetrics | None = None, max_users: int = 0) -> None:
        self.vllm = vllm  # the same under vLLM's names, where the operator wants it
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "llmos_gateway_requests", "HTTP requests answered", ["endpoint", "status"], registry=self.registry
        )
        self._durations = Histogram(
            "llmos_gateway_request_seconds",
            "Request to end of response",
            ["endpoint"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "llmos_gateway_requests_in_flight", "Generation requests being served", registry=self.registry
        )
        self.first_token = Histogram(
            "llmos_gateway_time_to_first_token_seconds",
            "Request to first sampled token",
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        gaps = TokenGaps()
        self.registry.register(gaps)
        self.observe_tokens = gaps.observe  # the time since the last tokens, and how many were read together
        self.prompt_tokens = Counter("llmos_gateway_prompt_tokens", "Prompt tokens", registry=self.registry)
        self.completion_tokens = Counter(
            "llmos_gateway_completion_tokens", "Sampled tokens", registry=self.registry
        )
        self.waits = Waits()  # which the live page tells
        self.users = UserMetrics(self.registry, max_users) if max_users else None
        self._children: dict[tuple[str, int], Counter] = {}
        self._duration_children: dict[str, Histogram] = {}
        self._rendering = threading.Lock()

    def observe_request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        key = (endpoint, status)
        if key not in self._children:
            self._children[key] = self._requests.labels(endpoint, str(status))
        if endpoint not in self._duration_children:
            self._duration_children[endpoint] = self._durations.labels(endpoint)
        self._children[key].inc()
        self._duration_children[endpoint].observe(seconds)

    def render(self, devices: tuple[DeviceInfo, ...] = ()) -> bytes:
        """Return the exposition text. Blocks for a millisecond or so: call it in a thread."""
        with self._rendering:
            text = generate_latest(self.registry)
            return text + self.vllm.render(devices) if self.vllm is not None else text
