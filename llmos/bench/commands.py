"""`llmos bench NAME`: the options of each benchmark, and what starts it.

A benchmark is imported when it is started: the other commands need not wait for its imports.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from llmos.bench.conversations import DEFAULT_TRACE
from llmos.config import ConfigError, field_types
from llmos.log import configure_logging


def add_bench(commands: Any) -> None:
    """One command for each benchmark."""
    bench = commands.add_parser("bench", help="measure, and print a table")
    names = bench.add_subparsers(dest="name", required=True)
    for add in (
        add_kernel, add_workload, add_serve, add_gateway, add_cpu, add_gpu, add_transfer, add_map, add_fair,
        add_page, add_grammar, add_switch,
    ):  # fmt: skip
        add(names)


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


def add_kernel(names: Any) -> None:
    """The options of `llmos bench kernel`."""
    kernel = names.add_parser("kernel", help="what the kernel costs, on a simulated device")
    add_json(kernel)
    add_runs(kernel)
    kernel.set_defaults(run=run_kernel_bench)


def run_kernel_bench(options: argparse.Namespace) -> int:
    """Measure the kernel's own cost."""
    from llmos.bench import kernel

    check_runs(options)
    return kernel.main(json_path=options.json, num_runs=options.runs)


def add_workload(names: Any) -> None:
    """The options of `llmos bench workload`."""
    workload = names.add_parser("workload", help="prefill, decode and a served mix, through the HTTP door")
    add = workload.add_argument
    add("--url", default=None, help="measure this OpenAI-compatible server, not llmos")
    for name in ("weights", "kv"):
        add(f"--{name}", choices=number_formats(name), default="auto", help="as of llmos up")
    add(
        "--workloads", default="A,B,C", metavar="LIST",
        help="which, and B1, B8, B32 of B (default: %(default)s)",
    )  # fmt: skip
    add_threads(workload)
    add("--jsonl", action="store_true", help="print JSON lines that compare servers")
    add("model", nargs="?", default=None, help="model folder (default: the built-in)")
    add_json(workload)
    add_runs(workload)
    workload.set_defaults(run=run_workload_bench)


def number_formats(name: str) -> list[str]:
    """What a field of Config that names a number format may be."""
    kind = field_types()[name].type
    if isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    assert isinstance(kind, msgspec.inspect.LiteralType)
    return sorted(map(str, kind.values))


def run_workload_bench(options: argparse.Namespace) -> int:
    """Measure a server."""
    from llmos.bench import workload

    check_runs(options)
    return workload.main(
        model=options.model, url=options.url, weights=options.weights, kv=options.kv,
        threads=options.threads, workloads=workload.choose_workloads(options.workloads),
        num_runs=options.runs, jsonl=options.jsonl, json_path=options.json,
    )  # fmt: skip


def add_serve(names: Any) -> None:
    """The options of `llmos bench serve`."""
    serve = names.add_parser("serve", help="requests that arrive over time, at any OpenAI-compatible server")
    add = serve.add_argument
    add("--url", default=None, help="load this OpenAI-compatible server, not llmos")
    add("--model", dest="served_name", default=None, metavar="NAME", help="to ask for (default: its first)")
    add("--api-key", default=None, metavar="KEY", help="a bearer token (default with --url: $OPENAI_API_KEY)")
    kinds = ("tokens", "text", "chat")
    add("--prompts", default=kinds[0], choices=kinds, help="ids, words, or a chat of words (default: ids)")
    add("--plain", action="store_true", help="send OpenAI's own fields alone: answers may end early")
    add("--trace", default=None, metavar="FILE", help="CSV of TIMESTAMP, ContextTokens, GeneratedTokens")
    add("--speed", type=float, default=None, metavar="X", help="play the trace so many times faster")
    add(
        "--rate", type=float, default=None, metavar="R", help="mean requests/s; inf: all at once (default: 1)"
    )
    add("--burstiness", type=float, default=None, metavar="B", help="gamma gaps; 1: Poisson, less: bursts")
    add("--input-tokens", default=None, metavar="N|MEAN:SIGMA", help="fixed or lognormal (default: 128)")
    add("--output-tokens", default=None, metavar="N|MEAN:SIGMA", help="fixed or lognormal (default: 32)")
    add("--requests", type=int, default=None, metavar="N", help="so many (default: 64)")
    add("--seconds", type=float, default=None, metavar="S", help="those that arrive in this time")
    add("--concurrency", type=int, default=None, metavar="N", help="most at once; others wait")
    add("--slo-ttft-ms", type=float, default=None, metavar="MS", help="goodput: limit of time to first token")
    add("--slo-tbt-ms", type=float, default=None, metavar="MS", help="goodput: limit of a request's mean gap")
    add("--seed", type=int, default=0, help="of lengths, arrivals and prompts (default: %(default)s)")
    add("folder", nargs="?", default=None, help="model folder of llmos (default: the built-in)")
    add_json(serve)
    serve.set_defaults(run=run_serve_bench)


def run_serve_bench(options: argparse.Namespace) -> int:
    """Load a server."""
    from llmos.bench import serve
    from llmos.bench.arrivals import plan_requests
    from llmos.bench.ask import Prompts, Style

    planned = plan_requests(
        trace=options.trace, speed=options.speed, rate=options.rate, burstiness=options.burstiness,
        input_tokens=options.input_tokens, output_tokens=options.output_tokens,
        num_requests=options.requests, seconds=options.seconds, seed=options.seed,
    )  # fmt: skip
    return serve.main(
        planned, folder=options.folder, url=options.url, served_name=options.served_name,
        api_key=options.api_key or (os.environ.get("OPENAI_API_KEY") if options.url else None),
        style=Style(Prompts(options.prompts), options.plain), concurrency=options.concurrency,
        seed=options.seed, slo=serve.Slo(options.slo_ttft_ms, options.slo_tbt_ms), json_path=options.json,
    )  # fmt: skip


def add_gateway(names: Any) -> None:
    """The options of `llmos bench gateway`."""
    gateway = names.add_parser("gateway", help="what the way to an HTTP client adds to each token")
    add = gateway.add_argument
    add("--streams", type=int, default=256, metavar="N", help="at once (default: %(default)s)")
    add("--seconds", type=float, default=60.0, help="of each case (default: %(default)g)")
    add("--step-ms", type=float, default=50.0, help="of the device (default: %(default)g)")
    add(
        "--beside", default="nobody,slowloris,bodies,idle", metavar="LIST",
        help="who else is there (default: %(default)s)",
    )  # fmt: skip
    add_json(gateway)
    gateway.set_defaults(run=run_gateway_bench)


def run_gateway_bench(options: argparse.Namespace) -> int:
    """Measure the way from the device to HTTP clients."""
    from llmos.bench import gateway

    return gateway.main(
        num_streams=options.streams,
        seconds=options.seconds,
        step_ms=options.step_ms,
        beside=options.beside.split(","),
        json_path=options.json,
    )


def add_cpu(names: Any) -> None:
    """The options of `llmos bench cpu`."""
    cpu = names.add_parser("cpu", help="the kernels of device cpu, against the machine's own peaks")
    add = cpu.add_argument
    add("--only", default=None, metavar="LIST", help="sections, like gemm,decode (default: all)")
    add("--threads", type=int, default=None, metavar="N", help="most threads (default: all cores)")
    add("--quick", action="store_true", help="one tiny case of each kind, to see that it works")
    add_json(cpu)
    add_runs(cpu)
    cpu.set_defaults(run=run_cpu_bench)


def run_cpu_bench(options: argparse.Namespace) -> int:
    """Measure the kernels of device cpu."""
    from llmos.bench import cpu

    check_runs(options)
    return cpu.main(
        only=options.only, threads=options.threads, num_runs=options.runs, is_quick=options.quick,
        json_path=options.json,
    )  # fmt: skip


def add_gpu(names: Any) -> None:
    """The options of `llmos bench gpu`."""
    gpu = names.add_parser("gpu", help="checks, then kernels, steps, memory and serving on a GPU")
    add = gpu.add_argument
    add("--only", default=None, metavar="LIST", help="sections, like checks,step (default: all)")
    add("--rehearse", action="store_true", help="every part once, tiny, without a GPU: no measurements")
    add_json(gpu)
    gpu.set_defaults(run=run_gpu_bench)


def run_gpu_bench(options: argparse.Namespace) -> int:
    """Measure a GPU."""
    from llmos.bench import gpu

    return gpu.main(only=options.only, is_rehearsal=options.rehearse, json_path=options.json)


def add_transfer(names: Any) -> None:
    """The options of `llmos bench transfer`."""
    transfer = names.add_parser("transfer", help="copies between tiers of memory, against one large copy")
    transfer.add_argument("--folder", default=None, metavar="DIR", help="of the files (default: temporary)")
    transfer.add_argument("--quick", action="store_true", help="a few bytes of each kind")
    add_json(transfer)
    add_runs(transfer)
    transfer.set_defaults(run=run_transfer_bench)


def run_transfer_bench(options: argparse.Namespace) -> int:
    """Measure copies between tiers."""
    from llmos.bench import transfer

    check_runs(options)
    return transfer.main(
        folder=options.folder, num_runs=options.runs, is_quick=options.quick, json_path=options.json
    )


def add_map(names: Any) -> None:
    """The options of `llmos bench map`."""
    mapping = names.add_parser("map", help="do steps wait for memory to be mapped")
    add_threads(mapping)
    add = mapping.add_argument
    add("--shapes", default="base,160m", metavar="LIST", help="of models (default: %(default)s)")
    add("--quick", action="store_true", help="a tiny model, to see that it works")
    add_json(mapping)
    add_runs(mapping)
    mapping.set_defaults(run=run_map_bench)


def run_map_bench(options: argparse.Namespace) -> int:
    """Measure mapping ahead of need against mapping in time and beforehand."""
    from llmos.bench import map as mapping

    check_runs(options)
    if options.threads is not None and options.threads < 1:
        raise ConfigError(f"threads is {options.threads}; at least 1")
    return mapping.main(
        shapes=mapping.choose_shapes(options.shapes),
        threads=options.threads,
        num_runs=options.runs,
        is_quick=options.quick,
        json_path=options.json,
    )


def add_fair(names: Any) -> None:
    """The options of `llmos bench fair`."""
    fair = names.add_parser("fair", help="tenants that compete: fair shares beside first come, first served")
    fair.add_argument(
        "--device", choices=("all", "cpu", "sim"), default="all",
        help="the built-in model, a simulated GPU on a virtual clock, or both (default: all)",
    )  # fmt: skip
    fair.add_argument(
        "--cases", default="", metavar="LIST",
        help="of the simulated device, like overload,arena (default: all)",
    )  # fmt: skip
    fair.add_argument(
        "--only", default=None, metavar="LIST",
        help="cases; curve: light tenants at several loads beside a flood (default: both)",
    )  # fmt: skip
    fair.add_argument(
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

    check_runs(options)
    sections = choose_sections(options.only, ("cases", "curve"))
    configure_logging("error", "console")  # a kernel runs in this process, and preempts a lot
    cases = [name.strip() for name in options.cases.split(",") if name.strip()]
    return fair.main(
        device=options.device, sections=sections, cases=cases, light_loads=parse_loads(options.light_loads),
        json_path=options.json, num_runs=options.runs,
    )  # fmt: skip


def add_page(names: Any) -> None:
    """The options of `llmos bench page`."""
    page = names.add_parser("page", help="the live page with a thousand processes: bytes, processor, browser")
    page.add_argument("--quick", action="store_true", help="a few processes, to see that it works")
    add_json(page)
    add_runs(page, default=3)
    page.set_defaults(run=run_page_bench)


def run_page_bench(options: argparse.Namespace) -> int:
    """Measure the live page."""
    from llmos.bench import page

    check_runs(options)
    return page.main(json_path=options.json, num_runs=options.runs, is_quick=options.quick)


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

    check_runs(options)
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
    add("--shape", default=None, help="random weights of this shape, like 160m, for a model")
    add("model", nargs="?", default=None, help="model folder (default: the built-in)")
    add_json(switch)
    add_runs(switch, default=3)
    switch.set_defaults(run=run_switch_bench)


def run_switch_bench(options: argparse.Namespace) -> int:
    """Measure context switches; a run is a round of all variants, or a seed on sim."""
    from llmos.bench import switch

    check_runs(options)
    if options.conversations < 1 or options.seconds <= 0:
        raise ConfigError("conversations and seconds must be above 0")
    if options.shape and (options.model or options.device == "sim"):
        raise ConfigError("shape is for a real device, in place of a model")
    if options.contexts and options.device == "sim":
        raise ConfigError("contexts is for a real device")
    return switch.main(
        model=options.model, shape=options.shape, device=options.device, threads=options.threads,
        trace=options.trace,
        loads=options.loads, num_conversations=options.conversations, seconds=options.seconds,
        contexts=options.contexts, num_runs=options.runs, json_path=options.json, keep_path=options.keep,
    )  # fmt: skip
