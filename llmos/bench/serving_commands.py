"""The commands of benchmarks that load a server: `llmos bench workload`, `serve`, `gateway` and `page`."""

from __future__ import annotations

import argparse
import os
from typing import Any

import msgspec

from llmos.bench.options import add_json, add_runs, add_threads
from llmos.config import field_types


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
    add("--realtime", action="store_true", help="of a server with that option")
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
        is_realtime=options.realtime,
        json_path=options.json,
    )


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

    return page.main(json_path=options.json, num_runs=options.runs, is_quick=options.quick)
