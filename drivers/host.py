"""A driver's process: `python -m drivers.host --fd N --kind cpu --name cpu:0 --threads 1`.

Reads messages from an inherited socket and answers them, one after the other, until it is told to stop or
the kernel is gone. Copies run and grammars are compiled beside that, and are answered when they have ended;
so are steps, on a device that does not wait for the host.
Exit codes: 0 stopped or kernel gone, 2 the kernel sent garbage; anything else is a crash.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from drivers.copy_desk import CopyDesk
from drivers.link import KernelLink, LinkError
from llmos.device import (
    DRIVER_ABI,
    Compile,
    Copy,
    Forget,
    FromDriver,
    Hello,
    Load,
    Progress,
    Step,
    StopDriver,
)

if TYPE_CHECKING:
    from drivers.backend import Backend
    from drivers.encoder.engine import EncoderEngine

PROGRESS_SECONDS = 0.1  # at most one Progress in so long, and the last one


class ProgressReporter:
    """Passes load progress on, not more often than somebody can read it."""

    def __init__(self, link: KernelLink) -> None:
        self._link = link
        self._next = 0.0

    def __call__(self, done_bytes: int, total_bytes: int, what: str) -> None:
        """Report that `done_bytes` are loaded, up to and with tensor `what`."""
        if time.monotonic() >= self._next or done_bytes == total_bytes:
            self._next = time.monotonic() + PROGRESS_SECONDS
            self._link.send(Progress(done_bytes, total_bytes, what))


def serve(link: KernelLink, backend: Backend, name: str, encoder: EncoderEngine | None = None) -> None:
    """Say Hello, then carry out messages in order until StopDriver or the end of the stream.

    Args:
        link: to the kernel.
        backend: the device.
        name: of the device.
        encoder: what runs steps, of a device that only makes vectors; None: an `Engine` on the backend.

    Raises:
        LinkError: the kernel sent garbage.
        Exception: the device is beyond use.
    """
    from drivers.engine import Engine

    engine = encoder or Engine(backend)
    desk = CopyDesk(link, engine)
    hello = Hello(
        abi=DRIVER_ABI,
        kind=backend.kind,
        name=name,
        description=backend.describe(),
        memory_bytes=backend.memory_bytes,
        num_threads=backend.num_threads,
        os_pid=os.getpid(),
    )
    link.send(hello)
    while True:
        # a step that waits to be launched behind another one comes before answers: the device is not to idle
        if not (engine.wants_step and link.wait_message((), 0.0)):
            if not _send_all(link, engine.collect()):
                break
            if engine.is_busy and not link.wait_message(*engine.wait_for()):
                continue
        is_read = True
        match link.receive():
            case Step() as step:
                engine.begin_grammars(link.take_compiles())  # beside this very step
                is_read = _send_all(link, desk.begin_copies(step.id))
                with desk.open(step.id):
                    answers = engine.begin_step(step)
                is_read = is_read and _send_all(link, answers)
            case Compile() as order:
                engine.begin_grammars([order])
            case Forget(id):
                engine.forget_grammar(id)
            case Copy() as copy:
                desk.note_copy()
                done = engine.begin_copy(copy)
                is_read = done is None or link.send(done)
            case Load() as load:  # what it takes the memory of must have ended
                is_read = _send_all(link, engine.finish())
                is_read = is_read and link.send(engine.load(load, ProgressReporter(link)))
            case StopDriver():
                _send_all(link, engine.finish())
                break
            case None:
                break
        if not is_read:
            break
    desk.close()
    engine.close()
    backend.close()


def _send_all(link: KernelLink, answers: Sequence[FromDriver]) -> bool:
    """Send some messages. False when the kernel is gone."""
    return all(link.send(answer) for answer in answers)


def open_backend(kind: str, name: str, num_threads: int, cpus: tuple[int, ...]) -> Backend:
    """Make the backend; torch is imported here, once the environment tells it how many threads to use."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads or len(cpus or os.sched_getaffinity(0)))
    if kind == "cuda":
        from drivers.cuda import CudaDriver

        index = name.rpartition(":")[2]
        return CudaDriver(int(index) if index.isdigit() else 0, max(1, num_threads))
    from drivers.cpu import CpuDriver

    return CpuDriver(num_threads, cpus)


def open_encoder() -> EncoderEngine:
    """Make the engine of a device that only makes vectors; it runs on the processor."""
    from drivers.encoder.engine import EncoderEngine

    return EncoderEngine()


def main(arguments: list[str] | None = None) -> int:
    """Run a driver; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="drivers.host", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the kernel")
    parser.add_argument("--kind", choices=("cpu", "cuda", "encoder"), required=True)
    parser.add_argument("--name", required=True, help="device name, cpu:0")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch; 0: one for each processor")
    parser.add_argument("--cpus", default="", help="processors to run on, 0,1")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the kernel decides when a driver ends
    cpus = tuple(int(cpu) for cpu in options.cpus.split(",") if cpu)
    link = KernelLink(socket.socket(fileno=options.fd))
    try:
        backend = open_backend(options.kind, options.name, options.threads, cpus)
        serve(link, backend, options.name, open_encoder() if options.kind == "encoder" else None)
    except LinkError as error:
        print(f"driver {options.name}: {error}", file=sys.stderr)
        return 2
    finally:
        link.close()
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking torch down takes 0.4 s, and all that outlives a process is closed
