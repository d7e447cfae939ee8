"""Options that benchmarks have in common."""

from __future__ import annotations

import argparse

from llmos.config import ConfigError


def add_json(parser: argparse.ArgumentParser) -> None:
    """Where rows go besides the terminal."""
    parser.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")


def add_runs(parser: argparse.ArgumentParser, default: int = 7) -> None:
    """How often what is measured is repeated."""
    parser.add_argument(
        "--runs", type=int, default=default, metavar="N",
        help="repetitions; the median is reported (default: %(default)s)",
    )  # fmt: skip


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Threads of a device."""
    parser.add_argument("--threads", type=int, default=None, metavar="N", help="threads of the device")


def check_runs(options: argparse.Namespace) -> None:
    """Raise ConfigError when there is nothing to measure."""
    if options.runs < 1:
        raise ConfigError(f"runs is {options.runs}; at least 1")
