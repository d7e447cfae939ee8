"""`llmos bench NAME`: a command for each benchmark, with its options and what starts it.

A benchmark is imported when it is started: the other commands need not wait for its imports.
"""

from __future__ import annotations

from typing import Any

from llmos.bench.device_commands import add_cpu, add_gpu, add_map, add_transfer
from llmos.bench.kernel_commands import add_fair, add_grammar, add_kernel, add_switch
from llmos.bench.serving_commands import add_gateway, add_page, add_serve, add_workload


def add_bench(commands: Any) -> None:
    """One command for each benchmark."""
    bench = commands.add_parser("bench", help="measure, and print a table")
    names = bench.add_subparsers(dest="name", required=True)
    for add in (
        add_kernel, add_workload, add_serve, add_gateway, add_cpu, add_gpu, add_transfer, add_map, add_fair,
        add_page, add_grammar, add_switch,
    ):  # fmt: skip
        add(names)
