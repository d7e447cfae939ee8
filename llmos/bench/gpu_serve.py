"""How many tokens a second `llmos up --device cuda` serves: kernel, driver and all, with random weights."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import trio
from attrs import frozen

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


FULL = Served("1b", 32, 512, 128)
REHEARSAL = Served("tiny", 2, 4, 4)


def measure_rate(served: Served, *options: str, seconds: float) -> float:
    """Tokens a second of the fastest turn, from the first prompt's begin to the last token. Blocks.

    Raises:
        MeasurementFailed: the model could not be written, or a process did not end with its tokens.
        ServerDidNotStart: see standard error.
        TooSlowError: serving took longer than `seconds`.
    """
    with tempfile.TemporaryDirectory(prefix="llmos-bench-model-") as folder:
        command = [sys.executable, "-m", "drivers.bench.random_checkpoint", served.shape, folder]
        if code := subprocess.run(command, check=False).returncode:
            raise MeasurementFailed(f"{' '.join(command)} ended with {code}")
        with running_server("--model", folder, *options, gateway=False) as server:
            return trio.run(_measure, server.socket_path, served, seconds)


async def _measure(socket_path: str, served: Served, seconds: float) -> float:
    times = []
    with trio.fail_after(seconds):
        async with open_client(socket_path) as client:
            for turn in range(NUM_TURNS):
                began = time.perf_counter()
                async with trio.open_nursery() as nursery:
                    for number in range(served.num_prompts):
                        seed = 11 * number + 13 * turn
                        prompt = tuple((seed + 7 * place) % 500 for place in range(served.prompt_tokens))
                        nursery.start_soon(_run_one, client, prompt, served.output_tokens)
                times.append(time.perf_counter() - began)
    return served.num_prompts * served.output_tokens / min(times[1:])


async def _run_one(client: Client, prompt: tuple[int, ...], num_tokens: int) -> None:
    """A process from its spawn to its end. Raises MeasurementFailed."""
    (pid,) = (await client.spawn(prompt, max_tokens=num_tokens, ignore_eos=True)).pids
    count = 0
    async for output in client.stream(pid):
        count += len(output.tokens)
    status = await client.wait(pid)
    if count != num_tokens:
        raise MeasurementFailed(f"process {pid} ended with {count} tokens of {num_tokens}: {status}")
