"""A whole kernel in a benchmark's own process, so that its counters can be looked at."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio

from llmos.boot import Ready, boot
from llmos.config import Config
from llmos.kernel.driver_host import OpenLink
from llmos.kernel.system import System


@asynccontextmanager
async def booted(
    config: Config, kind: str, open_link: Callable[[str], OpenLink] | None = None
) -> AsyncIterator[tuple[System, str]]:
    """Boot a kernel without a gateway, on a socket of its own; shut it down on the way out.

    Args:
        config: its `listen` and `socket` do not count.
        kind: of the device: "cpu", "cuda", "sim".
        open_link: of simulated devices that are not the usual one.

    Yields:
        The system, and the path of its socket.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-") as folder:
        config = msgspec.structs.replace(config, listen="", socket=str(Path(folder) / "llmos.sock"))
        async with trio.open_nursery() as nursery:
            started: tuple[System, Ready] = await nursery.start(
                partial(boot, config, kind, open_link=open_link)
            )
            system, ready = started
            yield system, ready.socket_path
            system.request_shutdown(0.0)


def settle_order() -> None:
    """Let tasks that are ready at one moment run in the same order in every run from here on.

    Trio draws that order; frameworks that want to repeat a run seed what it draws from.
    """
    trio._core._run._r.seed(0)
