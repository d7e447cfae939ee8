"""Device and system families: devices, models, events (dmesg), statistics (metrics), shutdown, ping."""

from __future__ import annotations

import msgspec

from syscalls.embedding import EmbeddingInfo


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Reply to calls that return nothing."""


class Devices(msgspec.Struct, frozen=True, tag="devices"):
    """List the devices. No errors."""


class FormatQuality(msgspec.Struct, frozen=True):
    """What a quantised format costs, against the model as it was published, over the tokens of a text."""

    kl_divergence: float  # nats per token, mean over positions
    top1_agreement: float  # share of positions where the most likely token is the same
    num_tokens: int
    text: str


class CacheInfo(msgspec.Struct, frozen=True):
    """A device's prefix cache: what ended processes computed, kept for others. Counters count from boot."""

    policy: str  # which pages go first: "cost", "lru"
    page_bytes: int
    tokens_per_page: int
    num_pages: int
    num_idle_pages: int  # of those, used by nobody at the moment
    num_queries: int
    num_hits: int  # queries that found something
    num_query_tokens: int
    num_hit_tokens: int  # of those, found: they were not computed again
    num_copied_pages: int  # for tokens at which a prompt left a page
    num_evicted_pages: int
    num_pinned_pages: int = 0  # of those there are: they outlast the others


class MapInfo(msgspec.Struct, frozen=True):
    """How pages came to be mapped on a device. Counters count pages, from boot."""

    num_ahead: int  # before they were needed, beside a step
    num_sync: int  # in the step that writes them
    num_reused: int  # of both, found mapped there from before: no system call
    num_unused: int  # of those ahead, given back before they were needed
    num_late: int = 0  # of those ahead, not done when a step needed them
    num_unmapped: int = 0
    num_waiting_steps: int = 0  # steps that waited for a map
    wait_seconds: float = 0.0  # that steps waited for maps
    beside_seconds: float = 0.0  # of maps that no step waited for


class TierInfo(msgspec.Struct, frozen=True):
    """One tier of memory below a device. Counters count from boot."""

    name: str  # "host", "disk"
    num_bytes: int
    num_free_bytes: int
    num_bytes_out: int  # written to it
    num_bytes_in: int  # read from it


class SwapInfo(msgspec.Struct, frozen=True):
    """What of a device's processes lies on lower tiers. Counters count from boot."""

    tiers: tuple[TierInfo, ...]
    num_copies_in_flight: int
    num_clean_bytes: int  # that went down without being sent, because a copy was there
    num_faulty_pages: int  # that could not be copied, or were not what they should be: computed again
    num_dropped_pages: int  # clean copies given up for those that were needed
    num_copies_beside_steps: int = 0  # that ended before a step that was sent before them


class StepCost(msgspec.Struct, frozen=True):
    """What a device's steps take, in seconds: correction * (base + the sum over what a step holds)."""

    base: float  # above all, reading the weights
    per_token: float  # computed
    per_row: float
    per_context_token: float  # keys read, summed over rows
    per_pair: float  # of a token computed and a key that it sees
    error: float  # the largest between a step that was measured at load and the fit, as a share of the step
    correction: float  # what steps have taken since, against the fit


class DeviceInfo(msgspec.Struct, frozen=True):
    """One device and what its kernel half knows of it."""

    name: str  # "cpu:0"
    kind: str  # "cpu", "cuda", "sim"
    description: str  # processor or board
    state: str  # "starting", "loading", "ready", "restarting", "sleeping", "empty", "failed"
    model: str
    dtype: str  # of the weights
    num_threads: int
    frame_bytes: int
    num_frames: int
    num_free_frames: int
    num_cached_frames: int  # kept for reuse, given up under pressure
    num_processes: int
    num_running: int
    num_waiting: int
    num_steps: int
    num_restarts: int
    driver_pid: int | None = None  # operating-system process id
    message: str = ""  # why it failed, or load progress
    kv_dtype: str = ""  # of keys and values
    kernels: str = ""  # what computes: "native-avx512", "torch", "sim"
    quality: FormatQuality | None = None  # of a quantised format
    cache: CacheInfo | None = None
    step_cost: StepCost | None = None  # None: not known
    num_output_tokens: int = 0
    swap: SwapInfo | None = None  # None: there is no tier below
    num_preemptions: int = 0
    maps: MapInfo | None = None  # None: there is no memory yet
    busy_seconds: float = 0.0  # that it was at a step, since boot


class DeviceList(msgspec.Struct, frozen=True, tag="device_list"):
    """Reply to `Devices`."""

    devices: tuple[DeviceInfo, ...]


class Models(msgspec.Struct, frozen=True, tag="models"):
    """List the models that are served. No errors."""


class Model(msgspec.Struct, frozen=True):
    """A served model. `path` holds its tokenizer and chat template, readable by clients on this machine."""

    name: str
    path: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    hash: str  # of the weights, hex
    num_parameters: int
    created: int  # seconds since the epoch when it was loaded
    fingerprint: str = ""  # equal for equal weights, dtype, kernels and build
    ready: bool = True
    generates: bool = True  # text; an encoder only makes vectors
    embedding: EmbeddingInfo | None = None  # None: it makes no vectors


class ModelList(msgspec.Struct, frozen=True, tag="model_list"):
    """Reply to `Models`; the first one is the default."""

    models: tuple[Model, ...]
    loading: tuple[str, ...] = ()  # names of those that are not there yet


class Events(msgspec.Struct, frozen=True, tag="events"):
    """Read the kernel's event ring from sequence number `since`. With `follow`, blocks until there is one.

    No errors; events that have left the ring are skipped, which a gap in `sequence` shows.
    """

    since: int = 0
    limit: int = 1000
    follow: bool = False


class Event(msgspec.Struct, frozen=True, array_like=True):
    """One line of dmesg."""

    sequence: int
    time: float  # seconds since the epoch
    level: str  # "info", "warning", "error"
    subsystem: str
    text: str
    pid: int | None = None


class EventList(msgspec.Struct, frozen=True, tag="event_list"):
    """Reply to `Events`."""

    events: tuple[Event, ...]


class Statistics(msgspec.Struct, frozen=True, tag="statistics"):
    """Read the kernel's counters; `exposition` adds them in the Prometheus text format. No errors."""

    exposition: bool = False


class StatisticsInfo(msgspec.Struct, frozen=True, tag="statistics_info"):
    """Reply to `Statistics`. Counters count from boot."""

    version: str
    uptime_seconds: float
    draining: bool
    num_sessions: int
    num_processes: int
    num_running: int
    num_waiting: int
    num_spawned: int
    num_exited: int
    num_preemptions: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_steps: int
    num_frames: int
    num_free_frames: int
    num_cached_frames: int
    num_tasks: int  # Trio tasks in the kernel
    num_open_files: int  # file descriptors of the kernel process
    exposition: str = ""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Drain and stop: nothing new is admitted, running processes get `grace_seconds` to finish.

    Errors: EPERM (administrators only).
    """

    grace_seconds: float = 30.0


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Answer `Done`: a round trip for measuring. No errors."""
