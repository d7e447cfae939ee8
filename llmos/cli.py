"""The `llmos` command: up, down, key, doctor, size, bench."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import msgspec
import trio

from llmos import doctor, size
from llmos.bench.conversations import DEFAULT_TRACE
from llmos.boot import Ready, serve
from llmos.config import Config, ConfigError, field_types, load_config
from llmos.device import Progress
from llmos.errors import LlmosError, first_leaf
from llmos.log import configure_logging
from llmos.notify import notify_manager
from llmos.params import VERSION
from llmos.tenants_file import make_key
from syscalls.client import ConnectionLost
from syscalls.errno import SyscallError
from syscalls.paths import default_socket_path
from syscalls.sync import SyncClient

EXIT_FAILED, EXIT_USAGE, EXIT_NO_SERVER = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 usage, 3 no server."""
    parser = argparse.ArgumentParser(prog="llmos", description="An operating system for LLM inference.")
    parser.add_argument("--version", action="version", version=f"llmos {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    add_up(commands)
    down = commands.add_parser("down", help="drain and stop the running kernel")
    down.add_argument("--socket", default=None, help="path of the syscall socket")
    down.add_argument("--grace", type=float, default=30.0, metavar="SECONDS", help="time to finish in")
    down.set_defaults(run=run_down)
    key = commands.add_parser("key", help="make a key for a tenant, and its lines of the tenants file")
    key.add_argument("name", metavar="TENANT")
    key.set_defaults(run=run_key)
    check = commands.add_parser("doctor", help="what devices, kernels and libraries are usable, and why not")
    check.add_argument("--json", action="store_true", help="one JSON object")
    check.set_defaults(run=lambda options: doctor.main(as_json=options.json))
    sizes = commands.add_parser("size", help="how much memory keys and values of a model take, by format")
    sizes.add_argument("model", nargs="?", default="builtin", help="folder, GGUF file or hub id")
    sizes.add_argument(
        "--context", type=int, default=None, metavar="N", help="tokens (default: all it takes)"
    )
    sizes.add_argument("--processes", type=int, default=1, metavar="N", help="at once (default: %(default)s)")
    sizes.set_defaults(run=lambda options: size.main(options.model, options.context, options.processes))
    add_bench(commands)
    options = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
        return code
    except (LlmosError, SyscallError) as error:
        print(f"llmos: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    except ConnectionLost as error:
        print(f"llmos: {error}", file=sys.stderr)
        return EXIT_NO_SERVER
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


# --- up --------------------------------------------------------------------------------------------------


def add_up(commands: Any) -> None:
    """One option for each field of Config."""
    up = commands.add_parser(
        "up", help="boot the kernel, its drivers and the gateway, and serve until Ctrl-C"
    )
    up.add_argument("--config", metavar="FILE.toml", default=None, help="read options from a TOML file")
    for name, field in field_types().items():
        description = ""
        kind = field.type
        if isinstance(kind, msgspec.inspect.Metadata):
            description = (kind.extra_json_schema or {}).get("description", "")
            kind = kind.type
        if isinstance(kind, msgspec.inspect.UnionType):
            kind = next(t for t in kind.types if not isinstance(t, msgspec.inspect.NoneType))
        option = "--" + name.replace("_", "-")
        default = "" if field.default is None or field.default == "" else f" (default: {field.default})"
        settings: dict[str, Any] = {"dest": name, "default": None, "help": description + default}
        match kind:
            case msgspec.inspect.BoolType():
                settings["action"] = argparse.BooleanOptionalAction
            case msgspec.inspect.LiteralType(values):
                settings["choices"] = sorted(values)
            case msgspec.inspect.IntType():
                settings |= {"type": int, "metavar": "N"}
            case msgspec.inspect.FloatType():
                settings |= {"type": float, "metavar": "X"}
            case _:
                settings["metavar"] = "TEXT"
        up.add_argument(option, **settings)
    up.add_argument(
        "--ready-fd", type=int, default=None, metavar="N",
        help="for programs: write one line of JSON to this open file descriptor when everything serves",
    )  # fmt: skip
    up.set_defaults(run=run_up)


def run_up(options: argparse.Namespace) -> int:
    """Boot and serve."""
    overrides = {n: v for n in Config.__struct_fields__ if (v := getattr(options, n)) is not None}
    config = load_config(options.config, overrides)
    configure_logging(config.log_level, config.log_format)
    ready_file = open_ready_file(options.ready_fd)
    kind = doctor.choose_device() if config.device == "auto" else config.device
    progress = LoadProgress()

    def on_ready(ready: Ready) -> None:
        progress.finish()
        door = f"{ready.url} · " if ready.url else ""
        print(
            f"llmos ready: {door}{ready.socket_path} · {ready.model} on {', '.join(ready.devices)} · "
            f"{ready.seconds:.1f} s",
            flush=True,
        )
        if ready_file is not None:
            with ready_file:
                ready_file.write(msgspec.json.encode(ready) + b"\n")
        notify_manager("READY=1")

    code = 0
    try:
        trio.run(serve, config, kind, on_ready, progress.show, strict_exception_groups=True)
    except* (LlmosError, OSError) as group:
        progress.finish()
        error = first_leaf(group)
        print(f"llmos: {error}", file=sys.stderr)
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return code


def open_ready_file(descriptor: int | None) -> BinaryIO | None:
    """What `--ready-fd` names, so that nothing boots where nobody can be told. Raises ConfigError."""
    if descriptor is None:
        return None
    try:
        return open(descriptor, "wb")
    except (OSError, ValueError) as error:
        raise ConfigError(f"ready_fd is {descriptor}; it cannot be written to: {error}") from None


class LoadProgress:
    """A progress bar on the terminal while models load; nothing where there is no terminal."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[int, int]] = {}
        self._shown = False

    def show(self, device: str, progress: Progress) -> None:
        """Redraw with one device's news."""
        self._done[device] = (progress.done_bytes, progress.total_bytes)
        if not sys.stderr.isatty():
            return
        done = sum(d for d, _ in self._done.values())
        total = sum(t for _, t in self._done.values()) or 1
        filled = 30 * done // total
        bar = f"[{'#' * filled}{'.' * (30 - filled)}] {done >> 20}/{total >> 20} MiB"
        print(f"\r\x1b[K{bar} {progress.what[:40]}", end="", file=sys.stderr, flush=True)
        self._shown = True

    def finish(self) -> None:
        """Clear the line."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


# --- down, bench -----------------------------------------------------------------------------------------


def run_down(options: argparse.Namespace) -> int:
    """Ask the kernel to drain, and wait until its socket is gone."""
    path = options.socket or str(default_socket_path())
    with SyncClient(path, name="llmos down") as client:
        with contextlib.suppress(
            ConnectionLost
        ):  # that is what we wait for: it lives until the kernel is gone
            client.shutdown(options.grace)
            while True:
                client.events(follow=True, since=2**62)
    print("llmos is down")
    return 0


def run_key(options: argparse.Namespace) -> int:
    """Print a fresh key, for the tenant alone, and what the kernel needs to know of it."""
    key, digest = make_key()
    print(f"# The key, shown this once: {key}")
    print(f"[tenant.{options.name}]")
    print(f'keys_sha256 = ["{digest}"]')
    return 0


def add_bench(commands: Any) -> None:
    """`llmos bench NAME`."""
    bench = commands.add_parser("bench", help="measure, and print a table")
    names = bench.add_subparsers(dest="name", required=True)
    kernel = names.add_parser("kernel", help="what the kernel costs, on a simulated device")
    workload = names.add_parser("workload", help="prefill, decode and a served mix, through the HTTP door")
    workload.add_argument("--url", default=None, help="measure this OpenAI-compatible server, not llmos")
    for name in ("weights", "kv"):
        workload.add_argument(
            f"--{name}", choices=number_formats(name), default="auto", help="as of llmos up"
        )
    workload.add_argument(
        "--workloads",
        default="A,B,C",
        metavar="LIST",
        help="which, and B1, B8, B32 of B (default: %(default)s)",
    )
    workload.add_argument("--threads", type=int, default=None, metavar="N", help="threads of the device")
    workload.add_argument("--jsonl", action="store_true", help="print JSON lines that compare servers")
    workload.add_argument("model", nargs="?", default=None, help="model folder (default: the built-in)")
    serve = names.add_parser("serve", help="requests that arrive over time, at any OpenAI-compatible server")
    add_serve_options(serve)
    gateway = names.add_parser("gateway", help="what the way to an HTTP client adds to each token")
    gateway.add_argument(
        "--streams", type=int, default=256, metavar="N", help="at once (default: %(default)s)"
    )
    gateway.add_argument("--seconds", type=float, default=60.0, help="of each case (default: %(default)g)")
    gateway.add_argument("--step-ms", type=float, default=50.0, help="of the device (default: %(default)g)")
    gateway.add_argument(
        "--beside",
        default="nobody,slowloris,bodies,idle",
        metavar="LIST",
        help="who else is there (default: %(default)s)",
    )
    gateway.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")
    gateway.set_defaults(run=run_gateway_bench)
    cpu = names.add_parser("cpu", help="the kernels of device cpu, against the machine's own peaks")
    cpu.add_argument("--only", default=None, metavar="LIST", help="sections, like gemm,decode (default: all)")
    cpu.add_argument(
        "--threads", type=int, default=None, metavar="N", help="most threads (default: all cores)"
    )
    cpu.add_argument("--quick", action="store_true", help="one tiny case of each kind, to see that it works")
    gpu = names.add_parser("gpu", help="checks, then kernels, steps, memory and serving on a GPU")
    gpu.add_argument("--only", default=None, metavar="LIST", help="sections, like checks,step (default: all)")
    gpu.add_argument(
        "--rehearse", action="store_true", help="every part once, tiny, without a GPU: no measurements"
    )
    gpu.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")
    transfer = names.add_parser("transfer", help="copies between tiers of memory, against one large copy")
    transfer.add_argument("--folder", default=None, metavar="DIR", help="of the files (default: temporary)")
    transfer.add_argument("--quick", action="store_true", help="a few bytes of each kind")
    mapping = names.add_parser("map", help="do steps wait for memory to be mapped")
    mapping.add_argument("--threads", type=int, default=None, metavar="N", help="threads of the device")
    mapping.add_argument(
        "--shapes", default="base,160m", metavar="LIST", help="of models (default: %(default)s)"
    )
    mapping.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    fair = names.add_parser("fair", help="tenants that compete: fair shares beside first come, first served")
    fair.add_argument(
        "--device",
        choices=("all", "cpu", "sim"),
        default="all",
        help="the built-in model, a simulated GPU on a virtual clock, or both (default: all)",
    )
    fair.add_argument(
        "--cases",
        default="",
        metavar="LIST",
        help="of the simulated device, like overload,arena (default: all)",
    )
    page = names.add_parser("page", help="the live page with a thousand processes: bytes, processor, browser")
    page.add_argument("--quick", action="store_true", help="a few processes, to see that it works")
    grammar = names.add_parser("grammar", help="what a grammar adds to a token, and a long one to others")
    grammar.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    switch = names.add_parser("switch", help="ways to take a process's memory and to give it back")
    switch.add_argument(
        "--device", choices=["cpu", "cuda", "sim"], default="cpu", help="default: %(default)s"
    )
    switch.add_argument("--threads", type=int, default=None, metavar="N", help="threads of the device")
    switch.add_argument(
        "--trace", default=DEFAULT_TRACE, metavar="FILE", help="lengths of turns (default: %(default)s)"
    )
    switch.add_argument(
        "--seconds", type=float, default=20.0, help="of each run on a real device (default: %(default)g)"
    )
    switch.add_argument(
        "--loads", default=None, metavar="LIST", help="on sim, like knee,above (default: all)"
    )
    switch.add_argument("--conversations", type=int, default=300, help="on sim (default: %(default)s)")
    switch.add_argument("--shape", default=None, help="random weights of this shape, like 160m, for a model")
    switch.add_argument("model", nargs="?", default=None, help="model folder (default: the built-in)")
    for parser in (kernel, workload, cpu, transfer, mapping, fair, page, grammar, switch):
        parser.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")
        parser.add_argument("--runs", type=int, default=7, help="repetitions; the median is reported")
    serve.add_argument("--json", metavar="FILE", default=None, help="also write one JSON object per row")
    serve.set_defaults(run=run_serve_bench)
    kernel.set_defaults(run=run_kernel_bench)
    workload.set_defaults(run=run_workload_bench)
    cpu.set_defaults(run=run_cpu_bench)
    gpu.set_defaults(run=run_gpu_bench)
    transfer.set_defaults(run=run_transfer_bench)
    mapping.set_defaults(run=run_map_bench)
    fair.set_defaults(run=run_fair_bench)
    page.set_defaults(run=run_page_bench, runs=3)
    grammar.set_defaults(run=run_grammar_bench, runs=3)
    switch.set_defaults(run=run_switch_bench, runs=3)


def add_serve_options(serve: argparse.ArgumentParser) -> None:
    """The options of `llmos bench serve`."""
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


def number_formats(name: str) -> list[str]:
    """What a field of Config that names a number format may be."""
    kind = field_types()[name].type
    if isinstance(kind, msgspec.inspect.Metadata):
        kind = kind.type
    assert isinstance(kind, msgspec.inspect.LiteralType)
    return sorted(map(str, kind.values))


def check_runs(options: argparse.Namespace) -> None:
    """Raise ConfigError when there is nothing to measure."""
    if options.runs < 1:
        raise ConfigError(f"runs is {options.runs}; at least 1")


def run_kernel_bench(options: argparse.Namespace) -> int:
    """Measure the kernel's own cost."""
    from llmos.bench import kernel  # here: the other commands need not wait for its imports

    check_runs(options)
    return kernel.main(json_path=options.json, num_runs=options.runs)


def run_workload_bench(options: argparse.Namespace) -> int:
    """Measure a server."""
    from llmos.bench import workload

    check_runs(options)
    return workload.main(
        model=options.model, url=options.url, weights=options.weights, kv=options.kv,
        threads=options.threads, workloads=workload.choose_workloads(options.workloads),
        num_runs=options.runs, jsonl=options.jsonl, json_path=options.json,
    )  # fmt: skip


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


def run_cpu_bench(options: argparse.Namespace) -> int:
    """Measure the kernels of device cpu."""
    from llmos.bench import cpu

    check_runs(options)
    return cpu.main(
        only=options.only, threads=options.threads, num_runs=options.runs, is_quick=options.quick,
        json_path=options.json,
    )  # fmt: skip


def run_gpu_bench(options: argparse.Namespace) -> int:
    """Measure a GPU."""
    from llmos.bench import gpu

    return gpu.main(only=options.only, is_rehearsal=options.rehearse, json_path=options.json)


def run_switch_bench(options: argparse.Namespace) -> int:
    """Measure context switches; a run is a round of all variants, or a seed on sim."""
    from llmos.bench import switch

    check_runs(options)
    if options.conversations < 1 or options.seconds <= 0:
        raise ConfigError("conversations and seconds must be above 0")
    if options.shape and (options.model or options.device == "sim"):
        raise ConfigError("shape is for a real device, in place of a model")
    return switch.main(
        model=options.model, shape=options.shape, device=options.device, threads=options.threads,
        trace=options.trace,
        loads=options.loads, num_conversations=options.conversations, seconds=options.seconds,
        num_runs=options.runs, json_path=options.json,
    )  # fmt: skip


def run_page_bench(options: argparse.Namespace) -> int:
    """Measure the live page."""
    from llmos.bench import page

    check_runs(options)
    return page.main(json_path=options.json, num_runs=options.runs, is_quick=options.quick)


def run_transfer_bench(options: argparse.Namespace) -> int:
    """Measure copies between tiers."""
    from llmos.bench import transfer

    check_runs(options)
    return transfer.main(
        folder=options.folder, num_runs=options.runs, is_quick=options.quick, json_path=options.json
    )


def run_grammar_bench(options: argparse.Namespace) -> int:
    """Measure what grammars cost."""
    from llmos.bench import grammar

    check_runs(options)
    return grammar.main(is_quick=options.quick, num_runs=options.runs, json_path=options.json)


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


def run_fair_bench(options: argparse.Namespace) -> int:
    """Measure what tenants get."""
    from llmos.bench import fair

    check_runs(options)
    configure_logging("error", "console")  # a kernel runs in this process, and preempts a lot
    cases = [name.strip() for name in options.cases.split(",") if name.strip()]
    return fair.main(device=options.device, cases=cases, json_path=options.json, num_runs=options.runs)


if __name__ == "__main__":
    sys.exit(main())
