"""Options that benchmarks have in common."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A type of options: a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; at least 1")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    """Where rows go besides the terminal."""
    parser.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")


def add_runs(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """How often what is measured is repeated."""
    parser.add_argument(
        "--runs", type=count, default=default, metavar="N",
        help="repetitions; the median is reported (default: %(default)s)",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Threads of a device."""
    parser.add_argument("--threads", type=count, default=None, metavar="N", help="threads of the device")
