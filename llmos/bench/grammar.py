"""`llmos bench grammar`: what a grammar adds to a token, and what a long one costs the neighbours."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import NamedTuple

import trio

from llmos.bench.child import Measured, MeasurementFailed, measuring
from llmos.bench.report import Report
from llmos.bench.server import running_server
from syscalls.client import Client, open_client
from syscalls.sampling import Sampling

PROMPT = tuple(range(300, 316))
QUIET_SECONDS = 1.0  # in which nothing else happens, before each grammar
NUM_TOKENS = 8  # of the process that brings the grammar


def long_schema(number: int, num_parts: int) -> str:
    """A JSON schema with many objects in it, another one for each number."""
    parts = {
        f"part {part} of {number}": {
            "type": "object",
            "properties": {
                "n": {"type": "integer", "minimum": part},
                "text": {"type": "string", "pattern": f"^[a-z]{{1,{3 + part % 9}}}$"},
                "choice": {"enum": [f"a{part}", "b", "c"]},
            },
            "required": ["n", "text"],
        }
        for part in range(num_parts)
    }
    schema = {"type": "object", "properties": parts, "required": list(parts)}
    return f"start: %json {json.dumps(schema)}"


def long_rules(number: int, num_parts: int) -> str:
    """As many rules in a row."""
    names = [f"r{part}" for part in range(num_parts)]
    rules = [
        f'{name}: "{number} word {part}" | /[a-z]{{{1 + part % 7}}}[0-9]+/' for part, name in enumerate(names)
    ]
    return "\n".join([f"start: {' '.join(names)}", *rules])


class Case(NamedTuple):
    """A grammar to bring."""

    name: str
    make: Callable[[int, int], str]
    num_parts: int


CASES = (
    Case("rules of 1 MB", long_rules, 19_500),
    Case("a schema of 0.3 MB", long_schema, 1400),
    Case("a schema of 0.2 KB", long_schema, 1),
)


class Stall(NamedTuple):
    """What a neighbour saw. Seconds."""

    quiet: float  # its longest wait for a token with nothing else there
    longest: float  # from when the grammar was brought until its process has ended
    first_token: float  # of the process that brought it, from spawn


async def measure_stall(client: Client, source: str) -> Stall:
    """Bring a grammar while a neighbour puts out tokens. Raises MeasurementFailed."""
    quiet, loud = [0.0], [0.0]
    gaps = quiet

    async def read_neighbour() -> None:
        last = None
        while True:  # the context is soon full
            (neighbour,) = (await client.spawn(PROMPT, ignore_eos=True, auto_reap=True)).pids
            async for _ in client.stream(neighbour):
                now = trio.current_time()
                if last is not None:
                    gaps.append(now - last)
                last = now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_neighbour)
        await trio.sleep(QUIET_SECONDS)
        gaps = loud
        began = trio.current_time()
        sampling = Sampling(temperature=1.0, seed=1, grammar=source)
        (pid,) = (await client.spawn(PROMPT, max_tokens=NUM_TOKENS, sampling=sampling)).pids
        await client.read(pid)
        first_token = trio.current_time() - began
        status = (await client.wait(pid)).status
        if status.reason == "error":
            raise MeasurementFailed(f"the grammar's process ended: {status.message}")
        nursery.cancel_scope.cancel()
    return Stall(max(quiet), max(loud), first_token)


async def measure_stalls(socket_path: str, case: Case, num_runs: int) -> list[Stall]:
    """One case, with another grammar each time."""
    async with open_client(socket_path) as client:
        return [await measure_stall(client, case.make(number, case.num_parts)) for number in range(num_runs)]


def add_stalls(report: Report, case: Case, stalls: list[Stall]) -> None:
    """Medians, as rows."""
    quiet, longest, first_token = (1e3 * statistics.median(column) for column in zip(*stalls, strict=True))
    name, runs = f"neighbours: {case.name}", len(stalls)
    against = f"with nothing brought: {quiet:.1f} ms"
    report.add(name, "longest wait", longest, "ms", against=against, ratio=quiet / longest, runs=runs)
    report.add(name, "its own first token", first_token, "ms", against="", ratio=1.0, runs=runs)


def main(*, is_quick: bool, num_runs: int, json_path: str | None) -> int:
    """Measure, print the table, write the rows."""
    report = Report("grammar")
    options = ["--steps", "2", "--vocabularies", "600"] if is_quick else []
    with measuring("drivers.bench.grammar", *options) as messages:
        for message in messages:
            if isinstance(message, Measured):
                report.add(**{name: getattr(message, name) for name in message.__struct_fields__})
    with running_server("--device", "cpu", "--threads", "1", gateway=False) as server:
        for case in CASES[-1:] if is_quick else CASES:
            add_stalls(report, case, trio.run(measure_stalls, server.socket_path, case, num_runs))
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
