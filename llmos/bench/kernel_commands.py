"""The commands of benchmarks of the kernel: `llmos bench kernel`, `fair`, `grammar` and `switch`."""

from __future__ import annotations

import argparse
from typing import Any

from llmos.bench.conversations import DEFAULT_TRACE
from llmos.bench.options import add_json, add_runs, add_threads
from llmos.config import ConfigError
from llmos.log import configure_logging


def add_kernel(names: Any) -> None:
    """The options of `llmos bench kernel`."""
    kernel = names.add_parser("kernel", help="what the kernel costs, on a simulated device")
    add_json(kernel)
    add_runs(kernel)
    kernel.set_defaults(run=run_kernel_bench)


def run_kernel_bench(options: argparse.Namespace) -> int:
    """Measure the kernel's own cost."""
    from llmos.bench import kernel

    return kernel.main(json_path=options.json, num_runs=options.runs)


def add_fair(names: Any) -> None:
    """The options of `llmos bench fair`."""
    fair = names.add_parser("fair", help="tenants that compete: fair shares beside first come, first served")
    add = fair.add_argument
    add(
        "--device", choices=("all", "cpu", "sim"), default="all",
        help="the built-in model, a simulated GPU on a virtual clock, or both (default: all)",
    )  # fmt: skip
    add(
        "--cases", default="", metavar="LIST",
        help="of the simulated device, like overload,arena (default: all)",
    )  # fmt: skip
    add(
        "--only", default=None, metavar="LIST",
        help="cases; curve: light tenants at several loads beside a flood (default: both)",
    )  # fmt: skip
    add(
        "--light-loads", default="2,25,50,75,90", metavar="LIST",
        help="of the curve, in percent of a fair share (default: %(default)s)",
    )  # fmt: skip
    add_json(fair)
    add_runs(fair)
    fair.set_defaults(run=run_fair_bench)


def run_fair_bench(options: argparse.Namespace) -> int:
    """Measure what tenants get."""
    from llmos.bench import fair
    from llmos.bench.fair_curve import parse_loads
    from llmos.bench.sections import choose_sections

    sections = choose_sections(options.only, ("cases", "curve"))
    configure_logging("error", "console")  # a kernel runs in this process, and preempts a lot
    cases = [name.strip() for name in options.cases.split(",") if name.strip()]
    return fair.main(
        device=options.device, sections=sections, cases=cases, light_loads=parse_loads(options.light_loads),
        json_path=options.json, num_runs=options.runs,
    )  # fmt: skip


def add_grammar(names: Any) -> None:
    """The options of `llmos bench grammar`."""
    grammar = names.add_parser("grammar", help="what a grammar adds to a token, and a long one to others")
    grammar.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    add_json(grammar)
    add_runs(grammar, default=3)
    grammar.set_defaults(run=run_grammar_bench)


def run_grammar_bench(options: argparse.Namespace) -> int:
    """Measure what grammars cost."""
    from llmos.bench import grammar

    return grammar.main(is_quick=options.quick, num_runs=options.runs, json_path=options.json)


def add_switch(names: Any) -> None:
    """The options of `llmos bench switch`."""
    switch = names.add_parser("switch", help="ways to take a process's memory and to give it back")
    add = switch.add_argument
    add("--device", choices=["cpu", "cuda", "sim"], default="cpu", help="default: %(default)s")
    add_threads(switch)
    add("--trace", default=DEFAULT_TRACE, metavar="FILE", help="lengths of turns (default: %(default)s)")
    add("--seconds", type=float, default=15.0, help="of each run on a real device (default: %(default)g)")
    add(
        "--keep",
        metavar="FILE",
        default=None,
        help="add each run to a file; those that are there are not made",
    )
    add("--loads", default=None, metavar="LIST", help="on sim, like knee,above (default: all)")
    add("--conversations", type=int, default=300, help="on sim (default: %(default)s)")
    add("--contexts", default=None, metavar="LIST", help="no conversations: one switch, at 512,2048 tokens")
    add(
        "--tier", choices=["host", "disk"], default="host",
        help="on a real device: memory goes to a host area or to a swap file (default: %(default)s)",
    )  # fmt: skip
    add("--shape", default=None, help="random weights of this shape, like 160m, for a model")
    add("model", nargs="?", default=None, help="model folder (default: the built-in)")
    add_json(switch)
    add_runs(switch, default=3)
    switch.set_defaults(run=run_switch_bench)


def run_switch_bench(options: argparse.Namespace) -> int:
    """Measure context switches; a run is a round of all variants, or a seed on sim."""
    from llmos.bench import switch

    if options.conversations < 1 or options.seconds <= 0:
        raise ConfigError("conversations and seconds must be above 0")
    if options.shape and (options.model or options.device == "sim"):
        raise ConfigError("shape is for a real device, in place of a model")
    if options.contexts and options.device == "sim":
        raise ConfigError("contexts is for a real device")
    if options.tier != "host" and options.device == "sim":
        raise ConfigError("tier is for a real device: the simulated one has a host area")
    return switch.main(
        model=options.model, shape=options.shape, device=options.device, threads=options.threads,
        trace=options.trace,
        loads=options.loads, num_conversations=options.conversations, seconds=options.seconds,
        contexts=options.contexts, tier=options.tier, num_runs=options.runs,
        json_path=options.json, keep_path=options.keep,
    )  # fmt: skip
