"""Prometheus metrics of the kernel. Counters and gauges are read from statistics when scraped, not kept."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syscalls.memory import DeviceMemory
from syscalls.process import Usage
from syscalls.system import DeviceInfo, StatisticsInfo
from syscalls.tenant import TenantShare

SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS_BUCKETS = (1, 8, 32, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072)

MEMORY_USES = ("weights", "private", "shared", "ahead", "cached", "moving", "free")


class Metrics:
    """A registry of its own, so that two kernels in one test do not meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)

        def histogram(
            name: str, what: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()
        ) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=self._registry)

        self._queued = histogram("llmos_queue_seconds", "Spawn to first step.", SECONDS_BUCKETS)
        self._first_token = histogram("llmos_first_token_seconds", "Spawn to first token.", SECONDS_BUCKETS)
        self._total = histogram("llmos_process_seconds", "Spawn to exit.", SECONDS_BUCKETS, ("reason",))
        self._prompt = histogram("llmos_process_prompt_tokens", "Input tokens of a process.", TOKENS_BUCKETS)
        self._output = histogram("llmos_process_output_tokens", "Output tokens of a process.", TOKENS_BUCKETS)

    def observe_exit(self, reason: str, usage: Usage) -> None:
        """Account for one process that has ended."""
        self._queued.observe(usage.queued_seconds)
        if usage.first_token_seconds is not None:
            self._first_token.observe(usage.first_token_seconds)
        self._total.labels(reason).observe(usage.running_seconds)
        self._prompt.observe(usage.num_prompt_tokens)
        self._output.observe(usage.num_output_tokens)

    def render(
        self,
        statistics: StatisticsInfo,
        devices: tuple[DeviceInfo, ...],
        memory: tuple[DeviceMemory, ...] = (),
        shares: tuple[TenantShare, ...] = (),
    ) -> str:
        """The text exposition format. Safe in a thread: it touches only the histograms."""
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(statistics, devices))
        snapshot.register(_Usage(memory, shares))
        return generate_latest(snapshot).decode() + generate_latest(self._registry).decode()


class _Snapshot(Collector):
    def __init__(self, statistics: StatisticsInfo, devices: tuple[DeviceInfo, ...]) -> None:
        self._statistics = statistics
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        yield from self._totals()
        yield from self._uses()
        yield from self._caches()
        yield from self._maps()
        yield from self._swaps()

    def _totals(self) -> Iterable[Metric]:
        """Of all devices together."""
        now = self._statistics
        for name, what, value in (
            ("llmos_processes_spawned", "Processes spawned.", now.num_spawned),
            ("llmos_processes_exited", "Processes that have ended.", now.num_exited),
            ("llmos_preemptions", "Processes that lost their memory.", now.num_preemptions),
            ("llmos_prompt_tokens", "Input tokens computed.", now.num_prompt_tokens),
            ("llmos_cached_tokens", "Input tokens found in shared memory.", now.num_cached_tokens),
            ("llmos_output_tokens", "Tokens sampled.", now.num_output_tokens),
            ("llmos_steps", "Device steps.", now.num_steps),
        ):
            yield CounterMetricFamily(name, what, value=value)
        for name, what, gauge in (
            ("llmos_sessions", "Open syscall sessions.", now.num_sessions),
            ("llmos_processes", "Processes in the table, zombies included.", now.num_processes),
            ("llmos_processes_running", "Processes that take part in steps.", now.num_running),
            ("llmos_processes_waiting", "Processes in the run queues.", now.num_waiting),
            ("llmos_uptime_seconds", "Since boot.", now.uptime_seconds),
        ):
            yield GaugeMetricFamily(name, what, value=gauge)

    def _uses(self) -> Iterable[Metric]:
        """How full and how busy the devices are."""
        frames = GaugeMetricFamily("llmos_frames", "Physical frames.", labels=("device", "use"))
        for device in self._devices:
            used = device.num_frames - device.num_free_frames - device.num_cached_frames
            frames.add_metric((device.name, "used"), used)
            frames.add_metric((device.name, "cached"), device.num_cached_frames)
            frames.add_metric((device.name, "free"), device.num_free_frames)
        yield frames
        busy = CounterMetricFamily("llmos_device_busy_seconds", "Time at steps.", labels=("device",))
        for device in self._devices:
            busy.add_metric((device.name,), device.busy_seconds)
        yield busy

    def _caches(self) -> Iterable[Metric]:
        """What the prefix cache was good for."""
        yield from self._counters(
            "cache",
            ("llmos_cache_query_tokens", "Prompt tokens looked up in the prefix cache.", "num_query_tokens"),
            ("llmos_cache_hit_tokens", "Of those, found.", "num_hit_tokens"),
            ("llmos_cache_copied_pages", "Pages copied for the tokens they begin with.", "num_copied_pages"),
            ("llmos_cache_evicted_pages", "Pages given up.", "num_evicted_pages"),
        )
        pinned = GaugeMetricFamily(
            "llmos_cache_pinned_pages", "Pages of the prefix cache that outlast others.", labels=("device",)
        )
        for device in self._devices:
            if device.cache is not None:
                pinned.add_metric((device.name,), device.cache.num_pinned_pages)
        yield pinned

    def _maps(self) -> Iterable[Metric]:
        """How pages came to be mapped."""
        mapped = CounterMetricFamily(
            "llmos_mapped_pages", "Pages mapped beside steps, or in them.", labels=("device", "when")
        )
        seconds = CounterMetricFamily(
            "llmos_map_seconds",
            "Map calls beside steps, and waits for maps in them.",
            labels=("device", "when"),
        )
        for device in self._devices:
            if (maps := device.maps) is not None:
                mapped.add_metric((device.name, "beside"), maps.num_ahead)
                mapped.add_metric((device.name, "in_step"), maps.num_sync)
                seconds.add_metric((device.name, "beside"), maps.beside_seconds)
                seconds.add_metric((device.name, "in_step"), maps.wait_seconds)
        yield mapped
        yield seconds
        yield from self._counters(
            "maps",
            ("llmos_map_reused_pages", "Of mapped pages, found mapped from before.", "num_reused"),
            ("llmos_map_unused_pages", "Mapped beside steps, given back unused.", "num_unused"),
            ("llmos_map_late_pages", "Mapped beside steps, not done when needed.", "num_late"),
            ("llmos_unmapped_pages", "Pages unmapped.", "num_unmapped"),
            ("llmos_map_waiting_steps", "Steps that waited for a map.", "num_waiting_steps"),
        )

    def _swaps(self) -> Iterable[Metric]:
        """What went between tiers."""
        moved = CounterMetricFamily(
            "llmos_swapped_bytes", "Bytes copied to and from a tier.", labels=("device", "tier", "way")
        )
        for device in self._devices:
            for tier in device.swap.tiers if device.swap is not None else ():
                moved.add_metric((device.name, tier.name, "out"), tier.num_bytes_out)
                moved.add_metric((device.name, tier.name, "in"), tier.num_bytes_in)
        yield moved
        yield from self._counters(
            "swap",
            ("llmos_swap_clean_bytes", "Bytes not sent, because a copy was there.", "num_clean_bytes"),
            ("llmos_swap_faulty_pages", "Pages that were not what they should be.", "num_faulty_pages"),
            ("llmos_swap_dropped_pages", "Clean copies given up.", "num_dropped_pages"),
            (
                "llmos_swap_overtaking_copies",
                "Copies that ended before a step that was sent before them.",
                "num_copies_beside_steps",
            ),
        )

    def _counters(self, part: str, *counters: tuple[str, str, str]) -> Iterable[Metric]:
        """Counters by device, of those devices that have a part, such as a cache.

        Args:
            part: a field of DeviceInfo.
            counters: of each, its name, what it counts, and the field of the part.
        """
        for name, what, field in counters:
            counter = CounterMetricFamily(name, what, labels=("device",))
            for device in self._devices:
                if (found := getattr(device, part)) is not None:
                    counter.add_metric((device.name,), getattr(found, field))
            yield counter


class _Usage(Collector):
    """Bytes by use, and service by tenant."""

    def __init__(self, memory: tuple[DeviceMemory, ...], shares: tuple[TenantShare, ...]) -> None:
        self._memory = memory
        self._shares = shares

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        sizes = GaugeMetricFamily(
            "llmos_memory_bytes", "Memory by what it is used for.", labels=("device", "use")
        )
        for device in self._memory:
            for use in MEMORY_USES:
                sizes.add_metric((device.device, use), getattr(device, use))
            for tier in device.tiers:
                sizes.add_metric((device.device, tier.tier), tier.used)
        yield sizes
        for name, what, field in (
            ("llmos_tenant_prompt_tokens", "Prompt tokens computed for a tenant.", "num_prompt_tokens"),
            ("llmos_tenant_output_tokens", "Tokens sampled for a tenant.", "num_output_tokens"),
        ):
            counter = CounterMetricFamily(name, what, labels=("tenant",))
            for share in self._shares:
                counter.add_metric((share.tenant,), getattr(share, field))
            yield counter
        for name, what, field in (
            ("llmos_tenant_running", "Processes of a tenant that have a place.", "num_running"),
            ("llmos_tenant_waiting", "Processes of a tenant in the run queues.", "num_waiting"),
            ("llmos_tenant_resident_bytes", "Memory of a tenant's processes.", "num_resident_bytes"),
        ):
            gauge = GaugeMetricFamily(name, what, labels=("tenant",))
            for share in self._shares:
                gauge.add_metric((share.tenant,), getattr(share, field))
            yield gauge
