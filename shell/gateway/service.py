"""The gateway's parts, as its endpoints see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from urllib.parse import parse_qsl

import attrs
import msgspec
import trio

from shell.gateway.admission import Admission
from shell.gateway.body_reader import BodyReader
from shell.gateway.catalog import Catalog
from shell.gateway.config import GatewayConfig
from shell.gateway.exchange import Exchange, Receive, Scope, Send
from shell.gateway.kernel_link import KernelLink
from shell.gateway.metrics import Metrics
from shell.gateway.response_record import ResponseStore
from shell.gateway.response_runs import ResponseRuns
from shell.gateway.sessions import Sessions
from shell.gateway.uploads import Uploads
from shell.gateway.vllm_metrics import VllmMetrics
from syscalls.client import Client
from syscalls.paths import default_socket_path

NUM_TEXT_THREADS = 2
INLINE_CHARACTERS = 2000  # encoding so little costs less than the way to a thread and back

R = TypeVar("R")


@attrs.frozen(eq=False)
class Service:
    """One gateway: configuration, sessions with the kernel, models, counters, admission."""

    config: GatewayConfig
    link: KernelLink
    sessions: Sessions
    catalog: Catalog
    metrics: Metrics
    admission: Admission
    responses: ResponseRuns
    uploads: Uploads
    bodies: BodyReader
    _text_limiter: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(NUM_TEXT_THREADS))

    async def do_text_work(self, num_characters: int, work: Callable[[], R]) -> R:
        """Run rendering or encoding: in place when it is short, else in a thread that can be abandoned."""
        if num_characters <= INLINE_CHARACTERS:
            await trio.lowlevel.checkpoint()
            return work()
        return await trio.to_thread.run_sync(work, limiter=self._text_limiter, abandon_on_cancel=True)


def make_service(config: GatewayConfig) -> Service:
    """Wire the parts together; nothing runs yet."""
    metrics = Metrics(VllmMetrics() if config.metrics_compat == "vllm" else None, config.max_users)
    link = KernelLink(config.socket_path)
    admission = Admission(config.max_in_flight, metrics)
    folder = config.response_folder or f"{config.socket_path or default_socket_path()}.responses"
    store = ResponseStore(Path(folder).expanduser(), config.max_responses, config.response_ttl)
    responses = ResponseRuns(link, store, metrics)
    uploads = Uploads(
        config.max_body_bytes,
        config.total_body_bytes,
        config.body_timeout,
        config.max_large_bodies,
        config.max_large_bodies_per_key,
    )
    return Service(
        config=config,
        link=link,
        sessions=Sessions(link, config.is_open_door),
        catalog=Catalog(link, config.aliases, config.model_load_wait),
        metrics=metrics,
        admission=admission,
        responses=responses,
        uploads=uploads,
        bodies=BodyReader(config.max_body_bytes),
    )


@attrs.define(eq=False)
class Endpoint(ABC):
    """One route's ASGI application. A subclass says its name and answers the exchange."""

    service: Service
    name = "other"
    is_public = False  # answers without a key, also where there are some
    # What `/openapi.json` says of it; nothing else reads these.
    query_struct: ClassVar[type[msgspec.Struct] | None] = None
    body_type: ClassVar[Any] = None  # of the JSON body
    answer_type: ClassVar[Any] = None  # of the JSON answer
    event_type: ClassVar[Any] = None  # of each event, where the answer may be a stream of them
    media_types: ClassVar[tuple[str, ...]] = ()  # of answers that no schema says more of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = cast("Exchange", scope["llmos.exchange"])
        exchange.endpoint = self.name
        exchange.path_params = scope["path_params"]
        exchange.query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if not self.is_public:
            await self.service.sessions.identify(exchange, scope["headers"])
        await self.answer(exchange)

    @abstractmethod
    async def answer(self, exchange: Exchange) -> None:
        """Send the response, or raise."""

    def client_of(self, exchange: Exchange) -> Client:
        """The session that a request acts through. Raises ApiError 503 without a kernel."""
        return exchange.client or self.service.link.client
