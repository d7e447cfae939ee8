"""Configuration: one struct; each field is an option of `llmos up` and a key of the TOML file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmos.errors import LlmosError


class ConfigError(LlmosError):
    """A key or value of the configuration is wrong; the message names it."""


Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator may set. Sizes carry their units in the name."""

    model: Annotated[str, Meta(description="Hugging Face folder, GGUF file, hub id, or 'builtin'")] = (
        "builtin"
    )
    name: Annotated[str | None, Meta(description="name clients use; default: the folder's")] = None
    weights: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "w8a8", "w4a8"],
        Meta(description="number format; auto: the fastest within max_divergence"),
    ] = "auto"
    kv: Annotated[
        Literal["auto", "fp32", "fp16", "bf16", "int8"],
        Meta(description="number format of keys and values; auto: the weights', fp16 beside integers"),
    ] = "auto"
    max_divergence: Annotated[
        float, Meta(ge=0, description="tolerance of weights = auto: nats of KL divergence per token")
    ] = 0.01
    quality_text: Annotated[
        str | None, Meta(description="text file that formats are measured on; default: one that comes along")
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda", "sim"], Meta(description="auto: cuda where it works, else cpu")
    ] = "auto"
    devices: Annotated[int, Meta(ge=1, le=64, description="number of devices")] = 1
    threads: Annotated[
        Positive | None, Meta(description="threads of one device; default: cores divided by devices")
    ] = None
    pin: Annotated[bool, Meta(description="keep each device's threads on processors of its own")] = False
    realtime: Annotated[
        bool,
        Meta(description="kernel and gateway go before what has ordinary priority, such as devices' threads"),
    ] = False
    embedding_model: Annotated[
        str | None, Meta(description="BERT-like encoder for embeddings, a folder or hub id, beside the model")
    ] = None
    embedding_name: Annotated[
        str | None, Meta(description="name clients use for the encoder; default: the folder's")
    ] = None
    listen: Annotated[str, Meta(description="HOST:PORT of the gateway; empty: none")] = "127.0.0.1:8000"
    socket: Annotated[str | None, Meta(description="path of the syscall socket")] = None
    pool_mib: Annotated[
        Positive | None, Meta(description="memory for frames, per device; default: by what is there")
    ] = None
    frame_kib: Annotated[
        Positive | None, Meta(description="size of a frame, a multiple of 4; default: by the model")
    ] = None
    max_model_len: Annotated[
        Positive | None, Meta(description="context limit in tokens; default: the checkpoint's")
    ] = None
    max_running: Annotated[int, Meta(ge=1, le=4096, description="processes in a step, per device")] = 256
    max_step_tokens: Annotated[int, Meta(ge=1, le=65_536, description="most tokens of a step")] = 512
    step_target_ms: Annotated[
        float, Meta(gt=0, description="prompts stretch a step in which others decode to this length, no more")
    ] = 100.0
    max_chunk_tokens: Annotated[
        Positive | None, Meta(description="most tokens of one process in a step; default: max_step_tokens")
    ] = None
    max_waiting: Annotated[int, Meta(ge=1, description="processes that may wait, per device")] = 4096
    policy: Annotated[
        Literal["fair", "fcfs", "rerank"],
        Meta(description="who is resident: by tokens served, who came first, or at random (an experiment)"),
    ] = "fair"
    fair_quantum: Annotated[
        float, Meta(gt=0, description="under policy = fair: tokens of service before anybody gives way")
    ] = 128.0
    tenant_weights: Annotated[
        str, Meta(description="shares under policy = fair, TENANT=WEIGHT,…; others have 1")
    ] = ""
    tenants: Annotated[str | None, Meta(description="TOML file of tenants: keys, users, weights, limits")] = (
        None
    )
    budget_file: Annotated[
        str | None,
        Meta(description="where tokens of budgets are counted; default: budgets.json in the state folder"),
    ] = None
    rerank_steps: Annotated[
        int, Meta(ge=1, description="under policy = rerank: steps between draws of priorities")
    ] = 25
    rerank_seed: Annotated[int, Meta(description="under policy = rerank: of what is drawn")] = 0
    rerank_pattern: Annotated[
        Literal["random", "markov"],
        Meta(description="under policy = rerank: everybody's priority changes, or some of them"),
    ] = "random"
    prefix_cache: Annotated[bool, Meta(description="keep ended processes' pages for sharing")] = True
    cache_policy: Annotated[
        Literal["cost", "lru"],
        Meta(description="which of those pages go first: cheap ones or old ones"),
    ] = "cost"
    pin_max_seconds: Annotated[
        float, Meta(ge=0, description="requests may have their pages outlast others for so long; 0: never")
    ] = 3600.0
    pin_mib: Annotated[
        NotNegative | None,
        Meta(description="pages that a tenant may pin so, per device; default: a quarter of the pool"),
    ] = None
    swap_mib: Annotated[
        NotNegative | None,
        Meta(
            description="host area that processes are swapped out to, per device; default: by what is there"
        ),
    ] = None
    swap_file_mib: Annotated[
        int, Meta(ge=0, description="swap file behind the host area, per device; 0: none")
    ] = 0
    swap_folder: Annotated[
        str | None, Meta(description="where the swap file lies; default: the folder for temporary files")
    ] = None
    swap_idle_seconds: Annotated[
        float, Meta(gt=0, description="who waits for input for so long is swapped out")
    ] = 30.0
    swap_reuse: Annotated[
        bool,
        Meta(description="keep copies of what was swapped in: next time only what is new is sent"),
    ] = True
    swap_piece_kib: Annotated[
        Positive | None, Meta(description="experiment: swap in pieces of this size; default: whole runs")
    ] = None
    image_folder: Annotated[
        str | None, Meta(description="where process images lie; default: images in the state folder")
    ] = None
    image_mib: Annotated[
        Positive | None, Meta(description="most that a tenant's images may take; default: what the disk has")
    ] = None
    preempt: Annotated[
        Literal["auto", "swap", "recompute"],
        Meta(description="how processes lose their memory; auto: the cheaper way"),
    ] = "auto"
    switching: Annotated[
        Literal["auto", "async", "sync"],
        Meta(description="do steps wait for swaps; auto: when that loses fewer tokens"),
    ] = "auto"
    mapping: Annotated[
        Literal["ahead", "sync", "premapped"],
        Meta(
            description="when pages are mapped: before they are needed; to compare, only then, or all at once"
        ),
    ] = "ahead"
    steps_in_flight: Annotated[
        int, Meta(ge=1, le=2, description="steps sent to a device ahead of its answers; 1: to compare")
    ] = 2
    step_timeout_seconds: Annotated[
        float, Meta(gt=0, description="a driver whose step takes longer is restarted")
    ] = 120.0
    shutdown_grace_seconds: Annotated[float, Meta(ge=0, description="time to finish on Ctrl-C")] = 30.0
    sampling_defaults: Annotated[
        Literal["model", "openai"], Meta(description="gateway: where absent sampling fields come from")
    ] = "model"
    tool_parser: Annotated[
        Literal["auto", "hermes", "llama3", "mistral", "mistral-named", "json"],
        Meta(description="gateway: how the model writes calls; auto: by its chat template"),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["auto", "think", "mistral", "none"],
        Meta(description="gateway: how the model marks its thoughts; auto: by its chat template"),
    ] = "auto"
    reasoning_field: Annotated[
        Literal["both", "reasoning_content", "reasoning"],
        Meta(description="gateway: fields of messages that hold thoughts"),
    ] = "both"
    allow_chat_template: Annotated[
        bool,
        Meta(description="gateway: requests may bring a chat template; it renders in a process of its own"),
    ] = False
    timings: Annotated[bool, Meta(description="gateway: every response tells where its time went")] = False
    priority_order: Annotated[
        Literal["high-first", "low-first"],
        Meta(description="gateway: which priority of a request is the more important one; vLLM: low-first"),
    ] = "high-first"
    metrics_compat: Annotated[
        Literal["none", "vllm"], Meta(description="gateway: whose names /metrics has besides our own")
    ] = "none"
    max_users: Annotated[
        int,
        Meta(
            ge=0, le=10_000,
            description="gateway: `user` of requests counts; so many have metrics of their own, 0: no effect",
        ),
    ] = 0  # fmt: skip
    model_load_wait_seconds: Annotated[
        float,
        Meta(ge=0, description="gateway: requests wait so long for a model that loads; 0: 503 at once"),
    ] = 0.0
    response_folder: Annotated[
        str | None, Meta(description="gateway: where stored responses lie; default: beside the socket")
    ] = None
    max_responses: Annotated[
        int, Meta(ge=1, le=1_000_000, description="gateway: responses stored at once; the oldest go first")
    ] = 1000
    response_ttl_seconds: Annotated[
        float, Meta(gt=0, description="gateway: a stored response is forgotten after so long")
    ] = 86_400.0
    max_body_mib: Annotated[int, Meta(ge=1, le=1024, description="gateway: largest request body")] = 64
    max_uploads_mib: Annotated[
        int | None, Meta(description="gateway: request bodies together; default: 8 of the largest")
    ] = None
    max_large_bodies: Annotated[
        int, Meta(ge=1, description="gateway: request bodies above 256 KiB at once, until they are decoded")
    ] = 128
    max_large_bodies_per_key: Annotated[int, Meta(ge=1, description="gateway: of these, by one key")] = 64
    body_timeout_seconds: Annotated[
        float, Meta(gt=0, description="gateway: for a body to arrive, besides its bytes at 16 KiB per second")
    ] = 60.0
    keep_alive_timeout_seconds: Annotated[
        float, Meta(gt=0, description="gateway: a connection without a whole request's headers is closed")
    ] = 75.0
    tls_cert: Annotated[str | None, Meta(description="gateway: PEM file, certificate and chain")] = None
    tls_key: Annotated[str | None, Meta(description="gateway: PEM file, the certificate's key")] = None
    insecure_no_keys: Annotated[
        bool, Meta(description="gateway: listen beyond loopback though no tenant has a key")
    ] = False
    alias: Annotated[
        str,
        Meta(description="gateway: more names of the model, NAME,…; NAME=MODEL where it is not the first"),
    ] = ""
    cors_origins: Annotated[
        str, Meta(description="gateway: web pages that may call it, https://HOST,…; *: all; empty: none")
    ] = ""
    sse_ping_interval: Annotated[
        float, Meta(ge=-1, description="gateway: seconds between keep-alives of a stream; -1: off")
    ] = 15.0
    send_timeout_seconds: Annotated[
        float, Meta(gt=0, description="gateway: a reader that stalls longer loses its processes")
    ] = 30.0
    sim_step_ms: Annotated[float, Meta(ge=0, description="time of a step on a simulated device")] = 10.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level logged")
    ] = "warning"
    log_format: Annotated[Literal["console", "json"], Meta(description="form of log lines")] = "console"


def field_types() -> dict[str, msgspec.inspect.Field]:
    """The fields of Config with their types and descriptions: the command line is made from these."""
    info = msgspec.inspect.type_info(Config)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.name: field for field in info.fields}


def load_config(path: str | None, overrides: dict[str, Any]) -> Config:
    """Read a TOML file, if given, and lay the command line's values over it.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = msgspec.toml.decode(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except msgspec.DecodeError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in values.items()} | overrides
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), values)) from error
    if config.frame_kib is not None and config.frame_kib % 4:
        raise ConfigError(f"frame_kib is {config.frame_kib}; it must be a multiple of 4")
    if config.listen:
        parse_listen(config.listen)
    parse_weights(config.tenant_weights)
    parse_aliases(config.alias)
    if config.max_uploads_mib is not None and config.max_uploads_mib < config.max_body_mib:
        raise ConfigError(f"max_uploads_mib must be at least max_body_mib, {config.max_body_mib}")
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("tls_cert and tls_key go together: one of them is not set")
    if config.pin:
        processors_of(config, config.devices - 1)
    return config


def _explain(complaint: str, values: dict[str, Any]) -> str:
    """Put msgspec's words in ours: the key, what it is, what it must be."""
    complaint = complaint.replace("Object contains unknown field", "unknown key")
    what, _, key = complaint.removesuffix("`").partition(" - at `$.")
    if not key:
        return complaint
    return f"{key} is {values.get(key)!r}: {what[0].lower()}{what[1:]}"


def threads_per_device(config: Config) -> int:
    """What is asked for, or a fair share of the processors."""
    return config.threads or max(1, num_cores() // config.devices)


def processors_of(config: Config, index: int) -> tuple[int, ...]:
    """The processors that a device's threads are pinned to; none unless `pin` is set.

    Raises:
        ConfigError: there are not enough.
    """
    if not config.pin:
        return ()
    threads = threads_per_device(config)
    usable = sorted(os.sched_getaffinity(0))
    if threads * config.devices > len(usable):
        raise ConfigError(
            f"pin is set, and {config.devices} devices of {threads} threads need {threads * config.devices} "
            f"processors; this process may use {len(usable)}"
        )
    return tuple(usable[index * threads : (index + 1) * threads])


def listens_beyond_loopback(listen: str) -> bool:
    """True when other machines may reach HOST:PORT; a name other than localhost may be anywhere."""
    host, _ = parse_listen(listen)
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def parse_listen(listen: str) -> tuple[str, int]:
    """Split HOST:PORT (or [V6]:PORT). Raises ConfigError."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"listen is {listen!r}; it must be HOST:PORT, like 127.0.0.1:8000")
    return host.strip("[]"), int(port)


def parse_weights(text: str) -> dict[str, float]:
    """Read TENANT=WEIGHT,… Raises ConfigError."""
    weights: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        tenant, _, number = part.strip().rpartition("=")
        try:
            weights[tenant] = float(number)
        except ValueError:
            tenant = ""
        if not tenant or not 1e-3 <= weights[tenant] <= 1e3:
            raise ConfigError(f"tenant_weights has {part.strip()!r}; it must be TENANT=WEIGHT, 0.001 to 1000")
    return weights


def parse_aliases(text: str) -> list[str]:
    """Read NAME,… or NAME=MODEL,… as the gateway's options. Raises ConfigError."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    names = [part.partition("=")[0] for part in given]
    for name, part in zip(names, given, strict=True):
        if not name or part.endswith("=") or names.count(name) > 1:
            raise ConfigError(f"alias has {part!r}; it must be NAME or NAME=MODEL, each name once")
    return given


def num_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
