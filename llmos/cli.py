"""The `llmos` command: up, down, key, doctor, size, bench."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import msgspec
import structlog
import trio

from llmos import doctor, size
from llmos.bench.commands import add_bench
from llmos.boot import Ready, serve
from llmos.config import Config, ConfigError, field_types, load_config
from llmos.device import Progress
from llmos.errors import LlmosError, first_leaf
from llmos.log import configure_logging
from llmos.notify import notify_manager
from llmos.params import VERSION
from llmos.tenants_file import make_key
from syscalls.client import ConnectionLost
from syscalls.descriptors import use_descriptors
from syscalls.errno import SyscallError
from syscalls.paths import default_socket_path
from syscalls.sync import SyncClient

log = structlog.get_logger("llmos")

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
    use_descriptors(lambda message: log.error("no_connections_taken", message=message))
    ready_file = open_ready_file(options.ready_fd)
    kind = doctor.choose_device() if config.device == "auto" else config.device
    progress = LoadProgress()

    def on_ready(ready: Ready) -> None:
        progress.finish()
        door = f"{ready.url} · " if ready.url else ""
        text = f"{ready.socket_path} · {ready.model} on {', '.join(ready.devices)} · {ready.seconds:.1f} s"
        with contextlib.suppress(OSError):  # nobody reads it, or the disk is full: no reason not to serve
            print(f"llmos ready: {door}{text}", flush=True)
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


# --- down, key ----------------------------------------------------------------------------------------


def run_down(options: argparse.Namespace) -> int:
    """Ask the kernel to drain, and wait until its socket is gone."""
    path = options.socket or str(default_socket_path())
    with SyncClient(path, name="llmos down") as client:
        with contextlib.suppress(ConnectionLost):  # what we wait for: the session lives as long as the kernel
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


if __name__ == "__main__":
    sys.exit(main())
