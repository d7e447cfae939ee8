"""What the gateway was started with: one frozen value, read from the command line once."""

from __future__ import annotations

import argparse
import enum
import ipaddress
from collections.abc import Mapping, Sequence

import attrs

from shell.gateway.parsers.choose import AUTO, REASONING_MARKS, TOOL_PARSERS
from syscalls.process import MAX_NICE, MIN_NICE

MEBIBYTE = 1 << 20
POSITIVE = (
    "max_body_bytes", "max_large_bodies", "max_large_bodies_per_key", "max_in_flight", "send_timeout",
    "max_responses", "response_ttl", "body_timeout", "keep_alive_timeout",
)  # fmt: skip
REASONING_FIELDS = ("reasoning_content", "reasoning")


class SamplingDefaults(enum.StrEnum):
    """Where an absent sampling parameter takes its value from."""

    MODEL = "model"  # the model's generation_config.json, then OpenAI's
    OPENAI = "openai"  # temperature 1, everything else off


class PriorityOrder(enum.StrEnum):
    """Which `priority` of a request is the more important one."""

    HIGH_FIRST = "high-first"
    LOW_FIRST = "low-first"  # as vLLM has it


@attrs.frozen(kw_only=True)
class GatewayConfig:
    """The gateway's settings. Times are seconds, sizes are bytes."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one, told on ready_fd
    tls_cert: str | None = None  # PEM file of the certificate and its chain; set exactly when tls_key is
    tls_key: str | None = None
    insecure_no_keys: bool = False  # beyond loopback, serve also while the kernel has no keys
    aliases: Mapping[str, str | None] = attrs.field(factory=dict)  # whose name each is; None: the first model
    cors_origins: frozenset[str] = frozenset()  # web pages of these may call; "*": all
    socket_path: str | None = None  # the kernel's; None: the default place
    ready_fd: int | None = None
    life_fd: int | None = None  # its end of file means that whoever started us is gone
    sampling_defaults: SamplingDefaults = SamplingDefaults.MODEL
    priority_order: PriorityOrder = PriorityOrder.HIGH_FIRST
    tool_parser: str = AUTO  # a key of TOOL_PARSERS, or "auto": by the chat template
    reasoning_parser: str = AUTO  # a key of REASONING_MARKS, "auto", or "none"
    reasoning_field: str = "both"  # where thoughts go: "reasoning_content", "reasoning", or both
    allow_chat_template: bool = False  # requests may bring a template of their own
    response_folder: str | None = None  # of stored responses; None: beside the kernel's socket
    max_responses: int = 1000  # stored, by all tenants together; the oldest go first
    response_ttl: float = 86_400.0  # a stored response is forgotten after so long
    max_body_bytes: int = 64 * MEBIBYTE
    max_uploads_bytes: int | None = None  # all bodies together; None: eight of the largest
    max_large_bodies: int = 128  # above 256 KiB, on their way or waiting to be decoded
    max_large_bodies_per_key: int = 64
    body_timeout: float = 60.0  # for a body to arrive, besides its bytes at 16 KiB per second
    keep_alive_timeout: float = 75.0  # a connection may be without a whole request line and headers
    max_in_flight: int = 1024  # generation requests; beyond: 503 at once
    max_processes_per_request: int = 1024  # prompts times samples
    sse_ping_interval: float = 15.0  # negative: off
    send_timeout: float = 30.0  # a client that takes nothing for so long loses its processes
    shutdown_timeout: float = 30.0
    timings: bool = False  # where the time went, in every response
    max_users: int = 0  # whose `user` is a label of metrics; 0: the field of requests has no effect
    model_load_wait: float = 0.0  # seconds that a request waits for a model that loads
    metrics_compat: str = "none"  # "vllm": /metrics has vLLM's names, too
    realtime: bool = False  # run before what has ordinary priority
    log_level: str = "info"  # the least that is logged; requests are "info"
    log_format: str = "auto"  # "json", "console", or by whether stderr is a terminal

    def nice_of(self, priority: int) -> int:
        """Return the nice level for a request's `priority`; the way back is the same."""
        nice = priority if self.priority_order is PriorityOrder.LOW_FIRST else -priority
        return min(MAX_NICE, max(MIN_NICE, nice))

    @property
    def is_open_door(self) -> bool:
        """True when strangers reach the port, and nobody said that they may without a key."""
        return not (self.insecure_no_keys or is_loopback(self.host))

    @property
    def total_body_bytes(self) -> int:
        """What the bodies of all requests under way may have together."""
        return 8 * self.max_body_bytes if self.max_uploads_bytes is None else self.max_uploads_bytes

    @property
    def reasoning_fields(self) -> tuple[str, ...]:
        """The fields of messages and deltas that hold a thought."""
        return REASONING_FIELDS if self.reasoning_field == "both" else (self.reasoning_field,)

    @property
    def ping_interval_or_none(self) -> float | None:
        """The keep-alive interval, or None when it is off."""
        return self.sse_ping_interval if self.sse_ping_interval >= 0 else None


def split_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host stands in brackets. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def read_aliases(given: Sequence[str]) -> dict[str, str | None]:
    """Read NAME or NAME=MODEL, each name once. Raises ValueError."""
    aliases: dict[str, str | None] = {}
    for text in given:
        name, equals, model = text.partition("=")
        if not name or (equals and not model):
            raise ValueError(f"{text!r} is not NAME or NAME=MODEL")
        if name in aliases:
            raise ValueError(f"{name!r} is given twice")
        aliases[name] = model or None
    return aliases


def is_loopback(host: str) -> bool:
    """True when only this machine reaches `host`; a name other than localhost may be anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _make_parser() -> argparse.ArgumentParser:
    """The options of the command line; each is kept under the name of its field, but for `listen`."""
    default = GatewayConfig()
    parser = argparse.ArgumentParser(
        prog="python -m shell.gateway", description="OpenAI-compatible HTTP gateway"
    )
    add = parser.add_argument
    add(
        "--listen",
        default=f"{default.host}:{default.port}",
        metavar="HOST:PORT",
        help="port 0: any free port",
    )
    add(
        "--socket",
        dest="socket_path",
        metavar="PATH",
        help="the kernel's socket (default: $LLMOS_SOCKET or the user's own)",
    )
    add("--tls-cert", metavar="FILE", help="PEM file: certificate and chain; with --tls-key")
    add("--tls-key", metavar="FILE", help="PEM file: the certificate's key")
    add("--insecure-no-keys", action="store_true", help="beyond loopback, serve without keys too")
    add(
        "--alias", dest="aliases", action="append", default=[], metavar="NAME",
        help="of the model, or NAME=MODEL; repeatable",
    )  # fmt: skip
    add(
        "--cors-origin", dest="cors_origins", action="append", default=[], metavar="ORIGIN",
        help="https://HOST, or *; repeatable",
    )  # fmt: skip
    add("--ready-fd", type=int, metavar="N", help="write one line there once ready: the URL")
    add("--life-fd", type=int, metavar="N", help="drain when the other end of this pipe closes")
    add(
        "--sampling-defaults",
        choices=[d.value for d in SamplingDefaults],
        default=default.sampling_defaults.value,
    )
    add("--tool-parser", choices=[AUTO, *TOOL_PARSERS], default=default.tool_parser)
    add("--reasoning-parser", choices=[AUTO, "none", *REASONING_MARKS], default=default.reasoning_parser)
    add("--reasoning-field", choices=["both", *REASONING_FIELDS], default=default.reasoning_field)
    add("--allow-chat-template", action="store_true", help="requests may bring a template of their own")
    add("--response-folder", metavar="PATH", help="stored responses (default: beside the kernel's socket)")
    add("--max-responses", type=int, default=default.max_responses, help="stored at once")
    add("--response-ttl", type=float, default=default.response_ttl, help="seconds that a response is stored")
    add("--max-body-bytes", type=int, default=default.max_body_bytes)
    add("--max-uploads-bytes", type=int, metavar="N", help="all bodies together (default: 8 of the largest)")
    add(
        "--max-large-bodies",
        type=int,
        default=default.max_large_bodies,
        help="above 256 KiB, until decoded",
    )
    add("--max-large-bodies-per-key", type=int, default=default.max_large_bodies_per_key)
    add("--body-timeout", type=float, default=default.body_timeout, help="seconds for a slow body to arrive")
    add(
        "--keep-alive-timeout",
        type=float,
        default=default.keep_alive_timeout,
        help="seconds until the headers of the next request are whole",
    )
    add("--max-in-flight", type=int, default=default.max_in_flight, help="generation requests at once")
    add("--sse-ping-interval", type=float, default=default.sse_ping_interval, help="seconds; -1: off")
    add("--send-timeout", type=float, default=default.send_timeout, help="seconds a reader may stall")
    add(
        "--shutdown-timeout",
        type=float,
        default=default.shutdown_timeout,
        help="seconds to finish after SIGTERM",
    )
    add("--realtime", action="store_true", help="run before what has ordinary priority")
    add("--timings", action="store_true", help="tell in every response where its time went")
    add(
        "--priority-order",
        choices=[order.value for order in PriorityOrder],
        default=default.priority_order.value,
        help="which priority of a request is the more important one",
    )
    add(
        "--metrics-compat",
        choices=["none", "vllm"],
        default=default.metrics_compat,
        help="whose names /metrics has besides our own",
    )
    add(
        "--max-users",
        type=int,
        default=default.max_users,
        metavar="N",
        help="`user` of requests: a tenant's users take turns, N have counters of their own (0: no effect)",
    )
    add(
        "--model-load-wait",
        type=float,
        default=default.model_load_wait,
        metavar="SECONDS",
        help="requests wait so long for a model that loads (0: 503 at once)",
    )
    add("--log-level", choices=["debug", "info", "warning", "error"], default=default.log_level)
    add("--log-format", choices=["auto", "json", "console"], default=default.log_format)
    return parser


def parse_arguments(arguments: list[str]) -> GatewayConfig:
    """Read the command line. Leaves the process with status 2 and a message when it is wrong."""
    parser = _make_parser()
    given = parser.parse_args(arguments)
    try:
        host, port = split_address(given.listen)
    except ValueError as error:
        parser.error(f"--listen: {error}")
    try:
        aliases = read_aliases(given.aliases)
    except ValueError as error:
        parser.error(f"--alias: {error}")
    if (given.tls_cert is None) != (given.tls_key is None):
        parser.error("--tls-cert and --tls-key go together")
    for name in POSITIVE:
        if getattr(given, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0")
    if given.model_load_wait < 0:
        parser.error("--model-load-wait must be at least 0")
    if given.max_users < 0:
        parser.error("--max-users must be at least 0")
    if given.max_uploads_bytes is not None and given.max_uploads_bytes < given.max_body_bytes:
        parser.error(f"--max-uploads-bytes must be at least --max-body-bytes, {given.max_body_bytes}")
    values = vars(given) | {
        "host": host,
        "port": port,
        "aliases": aliases,
        "cors_origins": frozenset(given.cors_origins),
        "sampling_defaults": SamplingDefaults(given.sampling_defaults),
        "priority_order": PriorityOrder(given.priority_order),
        "shutdown_timeout": max(0.0, given.shutdown_timeout),
    }
    del values["listen"]
    return GatewayConfig(**values)
