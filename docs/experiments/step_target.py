"""What the target length of steps does to those who decode while prompts arrive.

Some processes decode all the time; prompts arrive one after the other, each when the one before has its first
token. Rounds alternate between servers of one model that differ in step_target_ms alone.

python docs/experiments/step_target.py MODEL [--weights w8a8] [--targets 50 100 1e6] [--rounds 3]
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import trio

from llmos.bench.server import Server, running_server
from llmos.bench.workload import percentile
from syscalls.client import Client, open_client

NUM_LISTENERS, LISTENER_PROMPT = 8, 64
NUM_PROMPTS, PROMPT_TOKENS = 6, 480


class Round(msgspec.Struct):
    """One round on one server: times between tokens of those who listen, and of prompts to their first."""

    gaps: list[float]
    first: list[float]


async def measure(server: Server, seed: str) -> tuple[Round, float]:
    """Run one round; with it how much longer than at load steps take by now."""
    result = Round([], [])
    rng = random.Random(seed)
    async with open_client(server.socket_path) as client, trio.open_nursery() as nursery:
        (model,) = await client.models()

        def prompt(num_tokens: int) -> tuple[int, ...]:
            return tuple(rng.randrange(300, model.vocab_size) for _ in range(num_tokens))

        started: list[trio.Event] = []
        for _ in range(NUM_LISTENERS):
            started.append(trio.Event())
            nursery.start_soon(listen, client, prompt(LISTENER_PROMPT), started[-1], result.gaps)
        for event in started:
            await event.wait()
        result.gaps.clear()
        for _ in range(NUM_PROMPTS):
            began = time.perf_counter()
            (pid,) = (await client.spawn(prompt(PROMPT_TOKENS), max_tokens=1, ignore_eos=True)).pids
            await client.wait(pid)
            result.first.append(time.perf_counter() - began)
        (device,) = await client.devices()
        assert device.step_cost is not None
        nursery.cancel_scope.cancel()
    return result, device.step_cost.correction


async def listen(client: Client, prompt: tuple[int, ...], started: trio.Event, gaps: list[float]) -> None:
    """Decode until cancelled, and note the time between tokens."""
    (pid,) = (await client.spawn(prompt, max_tokens=1500, ignore_eos=True, auto_reap=True)).pids
    before = None
    async for output in client.stream(pid):
        now = time.perf_counter()
        if before is not None:
            gaps += [(now - before) / len(output.tokens)] * len(output.tokens)
        before = now
        if len(output.tokens):
            started.set()


def rounds(servers: dict[float, Server], num_rounds: int) -> Iterator[tuple[float, Round, float]]:
    """Measure every server in turn, so that the machine's other work falls on all alike."""
    for i, (target, server) in itertools.product(range(num_rounds), servers.items()):
        yield target, *trio.run(measure, server, f"{i}")


def main() -> None:
    """Print a line for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--weights", default="w8a8")
    parser.add_argument("--targets", type=float, nargs="+", default=[50, 100, 1e6])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with ExitStack() as stack:
        servers = {
            target: stack.enter_context(
                running_server(
                    "--model", options.model, "--weights", options.weights, "--device", "cpu",
                    "--step-target-ms", str(target), "--no-prefix-cache", gateway=False,
                )
            )
            for target in options.targets
        }  # fmt: skip
        found: dict[float, list[tuple[Round, float]]] = {target: [] for target in servers}
        for target, result, correction in rounds(servers, options.rounds):
            found[target].append((result, correction))
    for target, results in found.items():
        gaps = [percentile(result.gaps, 99) for result, _ in results]
        usual = [statistics.median(result.gaps) for result, _ in results]
        first = [statistics.median(result.first) for result, _ in results]
        corrections = " ".join(f"{correction:.2f}" for _, correction in results)
        print(
            f"target {target:g} ms: between tokens P99 {1e3 * statistics.median(gaps):.0f} ms, "
            f"median {1e3 * statistics.median(usual):.0f} ms; "
            f"a prompt's first token {statistics.median(first):.2f} s; correction {corrections}"
        )


if __name__ == "__main__":
    main()
