"""`llmos bench gateway`: what the way from the device to an HTTP client adds to each token.

Many streams of a simulated device, through the kernel and the gateway as processes of their own, to clients
that compare every token with what the device must have said. A token is late by the time from when the device
had it to when it came to its client; one inside a character counts from when the device had the one that
completes it, since before there is nothing to tell. For some seconds at a time the same processes are read
from the syscall socket, too: what comes later through the gateway than there, the gateway has added.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import attrs
import msgspec

from drivers.sim import SimModel
from llmos.bench.attackers import KINDS
from llmos.bench.lateness import Lateness, Spells, add_lateness_rows, explain_difference, find_lateness
from llmos.bench.report import Report
from llmos.bench.server import Server, running_server
from llmos.bench.socket_door import SocketDoor
from llmos.bench.stream_load import Stream, StreamLoad
from llmos.config import ConfigError
from llmos.openers import make_sim_model
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel

RAMP_SECONDS, WARM_SECONDS = 4.0, 2.0  # until all streams have begun, and then until what is measured begins
SETTLE_SECONDS = 10.0
MIB = 1 << 20
LARGE_BODY_BYTES = 1 * MIB  # decoded by a process of its own


@attrs.define
class Process:
    """One of the server's processes, as the operating system tells of it."""

    os_pid: int
    resident: list[int] = attrs.field(factory=list)  # bytes, once a second

    def note_memory(self) -> None:
        """Add a sample."""
        pages = int(Path(f"/proc/{self.os_pid}/statm").read_text().split()[1])
        self.resident.append(pages * 4096)

    def seconds(self) -> float:
        """Processor time since it started."""
        fields = Path(f"/proc/{self.os_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def num_files(self) -> int:
        """Open descriptors."""
        return len(list(Path(f"/proc/{self.os_pid}/fd").iterdir()))

    def growth(self) -> int:
        """Bytes by which the last third of the samples is over the first, by their medians."""
        third = max(1, len(self.resident) // 3)
        first, last = self.resident[:third], self.resident[-third:]
        return round(statistics.median(last) - statistics.median(first))


@attrs.define(kw_only=True)
class Outcome:
    """What came of one load."""

    streams: list[Stream]
    wrong: list[str]  # what is wrong with streams that are not as they must be
    lateness: Lateness  # of the tokens of the measured time
    kernel: Process
    gateway: Process
    kernel_seconds: float  # of processor time
    gateway_seconds: float
    num_files_left: int  # more than before, in both
    num_attacks: int

    @property
    def num_tokens(self) -> int:
        """Of all streams."""
        return sum(len(stream.tokens) for stream in self.streams)


def find_gateway(server: Server) -> int:
    """The pid of the kernel's child that is the gateway."""
    for children in Path(f"/proc/{server.os_pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if b"shell.gateway" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise ProcessLookupError("the server has no gateway")


def wait_until_ready(url: str) -> None:
    """Wait until a gateway has found its kernel and its model."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except urllib.error.URLError:
            time.sleep(0.05)
    raise TimeoutError(f"{url} does not become ready")


@contextmanager
def attacking(kind: str, url: str) -> Iterator[list[int]]:
    """Run attackers of a kind beside the block; afterwards the list has how often they began."""
    begun: list[int] = []
    if not kind:
        yield begun
        return
    command = [sys.executable, "-m", "llmos.bench.attackers", kind, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield begun
        finally:
            process.terminate()
        begun.append(int(process.communicate(timeout=60)[0]))


def send_large_body(url: str) -> None:
    """Have a gateway start its process for large bodies, which then stays."""
    body = msgspec.json.encode({"content": "a", "ignored": "a" * LARGE_BODY_BYTES})
    urllib.request.urlopen(urllib.request.Request(f"{url}/tokenize", body), timeout=60).close()


def measure(
    *, num_streams: int, seconds: float, step_ms: float, attack: str, ramp: float, is_realtime: bool = False
) -> Outcome:
    """Load a server of our own."""
    # A simulated device is part of the kernel, and so is the memory of the pages that it would keep.
    options = ["--device", "sim", "--sim-step-ms", str(step_ms), "--no-prefix-cache"]
    options += ["--realtime"] if is_realtime else []
    with running_server(*options) as server:
        wait_until_ready(server.url)
        with SyncClient(server.socket_path) as client:
            folder = Path(client.models()[0].path)
        model: SimModel = make_sim_model(msgspec.json.decode((folder / "config.json").read_bytes()))
        text = TextModel.open(folder)
        kernel, gateway = Process(server.os_pid), Process(find_gateway(server))
        send_large_body(server.url)
        num_files = kernel.num_files() + gateway.num_files()
        began = time.time()
        first, last = began + ramp + WARM_SECONDS, began + seconds

        def note(now: float) -> None:
            if first <= now <= last:
                kernel.note_memory()
                gateway.note_memory()

        spells, door = Spells.of(first, last), SocketDoor(server.socket_path)
        load = StreamLoad(
            url=server.url, num_streams=num_streams, ramp_seconds=ramp, on_second=note,
            door=door, is_beside=spells.is_beside,
        )  # fmt: skip
        before = kernel.seconds(), gateway.seconds()
        with closing(door), attacking(attack, server.url) as attacks:
            load.run(seconds)
        after = kernel.seconds(), gateway.seconds()
        with SyncClient(server.socket_path) as client:
            settled_by = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < settled_by:
                left = kernel.num_files() + gateway.num_files() - num_files - 1  # our own session
                if left <= 0 and client.statistics().num_processes == 0:
                    break
                time.sleep(0.1)
    whys = [
        stream.explain(model) or explain_difference(stream, door.told(stream.pid)) for stream in load.finished
    ]
    wrong = list(filter(None, whys))
    lateness = find_lateness(load.finished, text, spells, door.told)
    return Outcome(
        streams=load.finished, wrong=wrong, lateness=lateness, kernel=kernel, gateway=gateway,
        kernel_seconds=after[0] - before[0], gateway_seconds=after[1] - before[1],
        num_files_left=max(0, left), num_attacks=sum(attacks),
    )  # fmt: skip


def add_rows(report: Report, case: str, outcome: Outcome) -> None:
    """Write an outcome into a report."""

    def add(metric: str, value: float, unit: str, against: str = "itself", ratio: float = 1.0) -> None:
        report.add(case, metric, value, unit, against=against, ratio=ratio, runs=1)

    add_lateness_rows(report, case, outcome.lateness)
    num_right = len(outcome.streams) - len(outcome.wrong)
    add("streams, each token right", num_right, "streams", "all", num_right / max(1, len(outcome.streams)))
    add("tokens", outcome.num_tokens, "tokens")
    for name in ("kernel", "gateway"):
        seconds, process = getattr(outcome, f"{name}_seconds"), getattr(outcome, name)
        add(f"{name}, processor time", 1e6 * seconds / max(1, outcome.num_tokens), "us a token")
        if process.resident:
            grown, size = process.growth() / MIB, process.resident[0] / MIB
            add(f"{name}, memory grown", grown, "MiB", f"{size:.0f} MiB", size / (size + max(0.0, grown)))
    add("descriptors left", outcome.num_files_left, "files")
    if outcome.num_attacks:
        add("attacks", outcome.num_attacks, "begun")


def main(
    *, num_streams: int, seconds: float, step_ms: float, beside: Sequence[str], json_path: str | None,
    is_realtime: bool = False,
) -> int:  # fmt: skip
    """Measure, print a table, write the rows; 1 when a token was lost, wrong or out of order.

    Raises ConfigError: an option is out of range.
    """
    if unknown := [kind for kind in beside if kind not in ("nobody", *KINDS)]:
        raise ConfigError(f"--beside {unknown[0]} is none of nobody, {', '.join(KINDS)}")
    if num_streams < 1 or step_ms <= 0:
        raise ConfigError("--streams must be at least 1, and --step-ms above 0")
    if seconds <= RAMP_SECONDS + WARM_SECONDS:
        raise ConfigError(f"--seconds {seconds:g} is not above {RAMP_SECONDS + WARM_SECONDS:g}, the warm-up")
    report, wrong = Report("gateway"), []
    for kind in beside:
        attack = "" if kind == "nobody" else kind
        outcome = measure(
            num_streams=num_streams, seconds=seconds, step_ms=step_ms, attack=attack, ramp=RAMP_SECONDS,
            is_realtime=is_realtime,
        )  # fmt: skip
        case = f"{num_streams} streams, a step of {step_ms:g} ms, beside {kind}"
        add_rows(report, f"{case}, real time" if is_realtime else case, outcome)
        wrong += outcome.wrong
    report.print_table()
    for why in sorted(set(wrong)):
        print(f"wrong: {wrong.count(why)} streams: {why}", file=sys.stderr)
    if json_path:
        report.write_json(json_path)
    return 1 if wrong else 0
