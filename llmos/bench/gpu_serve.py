"""What `llmos up --device cuda` serves: kernel, driver and all, with random weights.

Tokens a second; and for how much of the time the device is at steps, which is all of it where what the kernel
does between two steps hides behind them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import trio
from attrs import field, frozen

from llmos.bench.child import MeasurementFailed
from llmos.bench.server import running_server
from syscalls.client import Client, open_client

NUM_TURNS = 3  # of which the first one warms up: kernels are compiled, and graphs are recorded
FULL_OPTIONS = ("--device", "cuda", "--no-prefix-cache")
REHEARSAL_OPTIONS = (*FULL_OPTIONS, "--pool-mib", "16", "--frame-kib", "64")


@frozen
class Served:
    """What is served."""

    shape: str  # of drivers.bench.random_model
    num_prompts: int  # at once
    prompt_tokens: int
    output_tokens: int
    busy_prompts: tuple[int, ...]  # at once, where it is asked how busy the device is
    busy_tokens: int  # out, for each of those


@frozen
class Result:
    """What came of it."""

    rate: float  # tokens a second of the fastest turn, from the first prompt's begin to the last token
    busy: dict[int, float] = field(factory=dict)  # by prompts at once: of the time, from 0 to 1


FULL = Served("1b", 32, 512, 128, (8, 32), 512)
REHEARSAL = Served("tiny", 2, 4, 4, (2,), 24)


def measure(served: Served, *options: str, seconds: float) -> Result:
    """Write a model, boot, and measure. Blocks.

    Args:
        served: what.
        options: of `llmos up`, beside the model.
        seconds: for all of it; then the server is told to end.

    Raises:
        MeasurementFailed: the model could not be written, or a process did not end with its tokens.
        ServerDidNotStart: see standard error.
        TooSlowError: there was not enough time.
    """
    final = time.monotonic() + seconds

    def left() -> float:
        return max(0.0, final - time.monotonic())

    with tempfile.TemporaryDirectory(prefix="llmos-bench-model-") as folder:
        command = [sys.executable, "-m", "drivers.bench.random_checkpoint", served.shape, folder]
        try:
            code = subprocess.run(command, check=False, timeout=left()).returncode
        except subprocess.TimeoutExpired:
            raise trio.TooSlowError from None
        if code:
            raise MeasurementFailed(f"{' '.join(command)} ended with {code}")
        with running_server("--model", folder, *options, gateway=False, start_seconds=left()) as server:
            return trio.run(_measure, server.socket_path, served, left)


async def _measure(socket_path: str, served: Served, left: Callable[[], float]) -> Result:
    times = []
    with trio.fail_after(left()):
        async with open_client(socket_path) as client:
            for turn in range(NUM_TURNS):
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for number in range(served.num_prompts):
                        prompt = _prompt(served, number, turn)
                        nursery.start_soon(_run_one, client, prompt, served.output_tokens)
                times.append(time.perf_counter() - began)
            rate = served.num_prompts * served.output_tokens / min(times[1:])
            busy = {count: await _measure_busy(client, served, count) for count in served.busy_prompts}
            return Result(rate, busy)


async def _measure_busy(client: Client, served: Served, count: int) -> float:
    """How much of the time the device is at steps, while so many processes all decode."""
    num_begun = 0
    begun, over = trio.Event(), trio.Event()

    async def look() -> tuple[float, float]:
        (device,) = await client.devices()
        return time.perf_counter(), device.busy_seconds

    async def run(prompt: tuple[int, ...]) -> None:
        await _run_one(client, prompt, served.busy_tokens, begin)
        over.set()

    def begin() -> None:
        nonlocal num_begun
        num_begun += 1
        if num_begun == count:
            begun.set()

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(run, _prompt(served, number, NUM_TURNS))
        await begun.wait()
        before = await look()
        await over.wait()
        after = await look()
    return (after[1] - before[1]) / (after[0] - before[0])


def _prompt(served: Served, number: int, turn: int) -> tuple[int, ...]:
    """One that no other number or turn has."""
    seed = 11 * number + 13 * turn
    return tuple((seed + 7 * place) % 500 for place in range(served.prompt_tokens))


async def _run_one(
    client: Client, prompt: tuple[int, ...], num_tokens: int, begin: Callable[[], None] = lambda: None
) -> None:
    """A process from its spawn to its end; `begin` is called at its first token. Raises MeasurementFailed."""
    (pid,) = (await client.spawn(prompt, max_tokens=num_tokens, ignore_eos=True)).pids
    count = 0
    async for output in client.stream(pid):
        if output.tokens and not count:
            begin()
        count += len(output.tokens)
    status = await client.wait(pid)
    if count != num_tokens:
        raise MeasurementFailed(f"process {pid} ended with {count} tokens of {num_tokens}: {status}")
