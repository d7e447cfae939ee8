"""The measurements behind `llmos bench cpu`: `python -m drivers.bench.cpu`, JSON lines as in rows.py.

The kernel never loads torch and starts this as a process of its own, as it does with drivers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import msgspec

from drivers.bench.peaks import STREAM_BYTES
from drivers.bench.rows import Measured, Options, Plan, Started
from drivers.bench.sections import SECTIONS

QUICK_STREAM_BYTES = 1 << 20


def run(sections: Sequence[str], options: Options) -> Iterator[Plan | Started | Measured]:
    """Measure sections in order, case by case."""
    yield Plan(sum(1 for name in sections for _ in SECTIONS[name](options)))
    for name in sections:
        for case in SECTIONS[name](options):
            yield Started(case.name)
            yield from case.measure()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON object a line, as soon as it is known."""
    parser = argparse.ArgumentParser(prog="drivers.bench.cpu", description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one tiny case of each kind")
    given = parser.parse_args(arguments)
    stream_bytes = QUICK_STREAM_BYTES if given.quick else STREAM_BYTES
    for message in run(given.sections, Options(given.threads, given.runs, given.quick, stream_bytes)):
        print(msgspec.json.encode(message).decode(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
