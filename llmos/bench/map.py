"""`llmos bench map`: do steps wait for memory to be mapped?

A VMM for each way of mapping plans the same decode steps, and one driver runs them in turn, step by step, so
that whatever else the machine does falls on all. A shape is decoded three times over: on memory that nobody
has used, on memory that was used elsewhere, and in spaces that come back to the asids they had.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, get_args

import msgspec
from attrs import define, field
from rich.progress import track

from llmos.bench.report import Report
from llmos.config import ConfigError, num_cores
from llmos.device import (
    LENGTH,
    Bind,
    CopyPage,
    Edit,
    Failed,
    FromDriver,
    Load,
    Loaded,
    Map,
    Progress,
    Release,
    Reserve,
    Row,
    Sampling,
    Step,
    StepDone,
    StopDriver,
    ToDriver,
    encode_message,
    from_driver_decoder,
)  # fmt: skip
from llmos.errors import LlmosError
from llmos.kernel.driver_link import DRIVER_ENVIRONMENT
from llmos.mm.address_space import AddressSpace
from llmos.mm.mapper import MappingMode
from llmos.mm.vmm import VMM

MODES: tuple[MappingMode, ...] = get_args(MappingMode)
PASSES = ("memory never used", "memory used before", "spaces reused")
FRAME_KIB = (64, 128, 256, 512, 1024, 2048)
SHAPES = {"base": ("base", 32, 256), "160m": ("160m", 16, 256)}  # name, processes that decode, steps of each
MAX_SYNC_SHARE = 0.01  # of decode steps


class MeasurementFailed(LlmosError):
    """The driver refused a load, or a step."""


class CallTimes(msgspec.Struct, frozen=True):
    """See drivers/bench/map.py."""

    frame_bytes: int
    map_call: float
    map_call_p99: float
    first_touch: float
    map_and_populate: float


class Farewell(msgspec.Struct, frozen=True):
    """What the driver says in the end."""

    calls: list[CallTimes]
    num_ahead: int  # pages that were mapped ahead of need by system calls
    num_waits: int  # of these, not done when a row or another edit needed them


@define(eq=False)
class Driver:
    """The child's end of a blocking line."""

    line: socket.socket
    process: subprocess.Popen[bytes]
    farewell: Farewell | None = None

    def ask(self, message: ToDriver) -> FromDriver:
        """Send a message and wait for what is no progress report. Blocks."""
        self.line.sendall(encode_message(message))
        while isinstance(answer := self.receive(), Progress):
            pass
        return answer

    def receive(self) -> FromDriver:
        """The next message. Blocks. Raises MeasurementFailed when the driver is gone."""
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        message: FromDriver = from_driver_decoder.decode(self._read(size))
        return message

    def _read(self, size: int) -> bytes:
        data = self.line.recv(size, socket.MSG_WAITALL)
        if len(data) < size:
            raise MeasurementFailed("the driver ended early")
        return data

    def load(self, shape: str, frame_bytes: int | None, max_spaces: int, max_len: int, pool: int) -> Loaded:
        """Load a shape with new memory. Raises MeasurementFailed."""
        answer = self.ask(Load(shape, shape, "w8a8", "fp16", pool, frame_bytes, max_spaces, max_len, 8192))
        if not isinstance(answer, Loaded):
            assert isinstance(answer, Failed)
            raise MeasurementFailed(answer.message)
        return answer

    def run(self, edits: Sequence[Edit], rows: Sequence[Row]) -> float:
        """Run a step; the seconds that the driver took. Raises MeasurementFailed."""
        done = self.ask(Step(0, tuple(edits), tuple(rows)))
        assert isinstance(done, StepDone)
        if done.faults:
            raise MeasurementFailed(done.faults[0].message)
        return done.seconds


@contextmanager
def running_driver(num_threads: int, frames: Sequence[int] = ()) -> Iterator[Driver]:
    """Start the child, say goodbye in the end."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "drivers.bench.map", "--fd", str(theirs.fileno())]
    command += ["--threads", str(num_threads), "--frames", *map(str, frames)]
    with theirs:
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            env=os.environ | DRIVER_ENVIRONMENT,
        )
    driver = Driver(ours, process)
    try:
        driver.receive()  # Hello
        yield driver
        ours.sendall(encode_message(StopDriver()))
        driver.farewell = msgspec.json.decode(process.communicate()[0], type=Farewell)
    finally:
        ours.close()
        process.kill()  # of no effect where it has ended
        process.wait()


class DecodeStep(NamedTuple):
    """One step under one way of mapping."""

    seconds: float
    waits: bool  # for a map
    maps_ahead: bool


@define(eq=False)
class Decoder:
    """Processes that decode under one way of mapping, with a share of the driver's memory."""

    vmm: VMM
    first_asid: int
    first_pfn: int
    spaces: list[AddressSpace] = field(factory=list)
    lengths: list[int] = field(factory=list)

    def edits(self) -> list[Edit]:
        """What the VMM has queued, in the driver's numbers."""
        moved: list[Edit] = []
        for edit in self.vmm.take_edits():
            match edit:
                case Map(asid, vpn, pfns, is_ahead):
                    pfns = tuple(pfn + self.first_pfn for pfn in pfns)
                    moved.append(Map(asid + self.first_asid, vpn, pfns, is_ahead))
                case Reserve(asid) | Release(asid):
                    moved.append(type(edit)(asid + self.first_asid))
                case Bind() | CopyPage():
                    raise AssertionError(edit)
        return moved

    def open(self, driver: Driver, prompts: Sequence[int]) -> None:
        """Open a space for each prompt and compute it."""
        self.spaces = [self.vmm.open_space("bench", range(length)) for length in prompts]
        self.lengths = list(prompts)
        rows = []
        for space, length in zip(self.spaces, prompts, strict=True):
            self.vmm.grow(space, 0, length)
            rows.append(Row(self.first_asid + space.asid, 0, (1,) * length, True))
        binds = [Bind(row.asid, Sampling(), row.tokens, len(row.tokens)) for row in rows]
        driver.run([*self.edits(), *binds], rows)

    def step(self, driver: Driver) -> DecodeStep:
        """Decode one token of each."""
        before = self.vmm.statistics().maps
        for index, (space, length) in enumerate(zip(self.spaces, self.lengths, strict=True)):
            self.vmm.grow(space, length, length + 1)
            self.lengths[index] += 1
        after = self.vmm.statistics().maps
        rows = [
            Row(self.first_asid + s.asid, n - 1, (), True)
            for s, n in zip(self.spaces, self.lengths, strict=True)
        ]
        num_sync = after.num_sync - before.num_sync
        seconds = driver.run(self.edits(), rows)
        num_ahead = after.num_ahead - before.num_ahead
        waits = num_sync > after.num_reused - before.num_reused
        return DecodeStep(seconds, waits, num_ahead > 0)

    def close(self, driver: Driver) -> None:
        """End all of them."""
        for space in self.spaces:
            self.vmm.close_space(space)
        driver.run(self.edits(), [])


Times = dict[tuple[str, str], list[DecodeStep]]  # by pass and mode


def decode_in_turn(driver: Driver, shape: str, num_rows: int, num_steps: int) -> Times:
    """Decode with a driver's new memory, all passes and modes; steps of the modes take turns."""
    longest = num_steps + 256
    loaded = driver.load(shape, None, 6 * num_rows, longest, 64 << 20)
    kv = loaded.kv
    num_frames = (num_rows + 1) * kv.num_pages(longest) * kv.frames_per_page
    driver.load(shape, kv.frame_bytes, 6 * num_rows, longest, len(MODES) * num_frames * kv.frame_bytes)
    prompts = [64 + index * kv.tokens_per_page // num_rows for index in range(num_rows)]
    times: Times = {}
    decoders: list[Decoder] = []
    for number, name in enumerate(PASSES):
        if number < 2:  # other asids than those that have the memory mapped
            decoders = [
                Decoder(
                    VMM(kv, num_frames, num_rows, longest, prefix_cache=False, mapping=mode),
                    (2 * index + number) * num_rows,
                    index * num_frames,
                )
                for index, mode in enumerate(MODES)
            ]
        for decoder in decoders:
            decoder.open(driver, prompts)
        for step in range(num_steps):
            for turn in range(len(MODES)):
                index = (step + turn) % len(MODES)
                times.setdefault((name, MODES[index]), []).append(decoders[index].step(driver))
        for decoder in decoders:
            decoder.close(driver)
    return times


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def report_modes(report: Report, shape: str, num_rows: int, runs: Sequence[Times]) -> None:
    """Rows on waiting, and on step times, of every pass: medians over runs of each run's percentiles."""
    for name in PASSES:
        case = f"{shape}, {num_rows} rows decode: {name}"
        found: dict[tuple[str, float], float] = {}
        for mode in MODES:
            for share in (0.5, 0.99):
                found[mode, share] = statistics.median(
                    percentile([step.seconds for step in times[name, mode]], share) for times in runs
                )
            steps = [step.waits for times in runs for step in times[name, mode]]
            share = sum(steps) / len(steps)
            if mode != "premapped":
                report.add(
                    case, f"steps that wait for a map, {mode}", 100 * share, "%",
                    against="limit 1 %", ratio=MAX_SYNC_SHARE / max(share, 1 / len(steps)), runs=len(runs),
                )  # fmt: skip
        for mode in ("ahead", "sync"):
            for share, metric in ((0.5, "P50"), (0.99, "P99")):
                # each run's ratio, so that a run on a busy machine counts as one
                ratio = statistics.median(
                    percentile([step.seconds for step in times[name, "premapped"]], share)
                    / percentile([step.seconds for step in times[name, mode]], share)
                    for times in runs
                )
                report.add(
                    case, f"{metric} step, {mode}", 1e3 * found[mode, share], "ms",
                    against="premapped", ratio=ratio, runs=len(runs),
                )  # fmt: skip

        for mode, what in (("sync", "a wait for a map"), ("ahead", "a map ahead")):
            # beside the premapped step of the same tokens, which ran just before it or after it
            pairs = [
                (step.seconds, other.seconds)
                for times in runs
                for step, other in zip(times[name, mode], times[name, "premapped"], strict=True)
                if (step.waits if mode == "sync" else step.maps_ahead)
            ]
            if pairs:
                report.add(
                    case, f"{what} adds, median of {len(pairs)} steps",
                    1e6 * statistics.median(mine - other for mine, other in pairs), "us",
                    against="premapped", ratio=statistics.median(other / mine for mine, other in pairs),
                    runs=len(runs),
                )  # fmt: skip


def report_frames(report: Report, driver: Driver, shape: str, num_rows: int, num_runs: int) -> None:
    """Rows on sizes of frames: step time in turns of whole loads, and memory that processes do not use."""
    num_steps, longest = 48, 512
    medians: dict[int, list[float]] = {kib: [] for kib in FRAME_KIB}
    waste: dict[int, float] = {}
    tokens: dict[int, int] = {}
    for _ in range(num_runs):
        for kib in FRAME_KIB:
            loaded = driver.load(shape, kib << 10, num_rows, longest, num_rows << 24)
            kv = loaded.kv
            decoder = Decoder(VMM(kv, loaded.num_frames, num_rows, longest, prefix_cache=False), 0, 0)
            lengths = [150 + 7 * index % 200 for index in range(num_rows)]
            decoder.open(driver, lengths)
            medians[kib].append(statistics.median(decoder.step(driver).seconds for _ in range(num_steps)))
            page_bytes = kv.page_bytes
            token_bytes = sum(segment.bytes_per_token for segment in kv.segments)
            held = sum(space.num_pages for space in decoder.spaces) * page_bytes
            waste[kib] = (held - sum(decoder.lengths) * token_bytes) / num_rows
            tokens[kib] = kv.tokens_per_page
            decoder.close(driver)
    chosen = driver.load(shape, None, num_rows, longest, num_rows << 24).kv.frame_bytes >> 10
    for kib in FRAME_KIB:
        case = f"{shape}, {num_rows} rows decode: frames of {kib} KiB, {tokens[kib]} tokens"
        ratio = statistics.median(
            mine / other for mine, other in zip(medians[chosen], medians[kib], strict=True)
        )
        report.add(
            case, "median step", 1e3 * statistics.median(medians[kib]), "ms",
            against=f"{chosen} KiB, the default", ratio=ratio, runs=num_runs,
        )  # fmt: skip
        report.add(
            case, "memory without tokens, per process", waste[kib] / 1024, "KiB",
            against=f"{chosen} KiB, the default", ratio=waste[chosen] / waste[kib], runs=num_runs,
        )  # fmt: skip


def report_calls(report: Report, farewell: Farewell) -> None:
    """Rows on maps ahead of need that came late, and on system calls."""
    late = farewell.num_waits / max(1, farewell.num_ahead)
    report.add(
        f"{farewell.num_ahead:,} pages mapped ahead, in all of these",
        "not done when needed", 100 * late, "%",
        against="limit 1 %", ratio=MAX_SYNC_SHARE / max(late, 1 / max(1, farewell.num_ahead)), runs=1,
    )  # fmt: skip
    for times in farewell.calls:
        case = f"one frame of {times.frame_bytes >> 10} KiB that has memory"
        for metric, seconds in (
            ("map, median", times.map_call),
            ("map, P99", times.map_call_p99),
            ("first touch of all of it", times.first_touch),
            ("map and populate, in the background", times.map_and_populate),
        ):
            report.add(
                case, metric, 1e6 * seconds, "us",
                against="map and touch", ratio=(times.map_call + times.first_touch) / seconds, runs=1,
            )  # fmt: skip


def choose_shapes(listed: str) -> list[str]:
    """The models that a list names. Raises ConfigError."""
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in SHAPES:
            raise ConfigError(f"shape {name!r} is not one of {', '.join(SHAPES)}")
    return names


def main(
    *, shapes: Sequence[str], threads: int | None, num_runs: int, is_quick: bool, json_path: str | None
) -> int:
    """Measure, print the table, write the rows."""
    report = Report("map")
    cases = (("tiny", 4, 160),) if is_quick else tuple(SHAPES[shape] for shape in shapes)
    sizes = [kib << 10 for kib in FRAME_KIB]
    with running_driver(threads or num_cores(), sizes) as driver:
        for shape, num_rows, num_steps in cases:
            runs = [
                decode_in_turn(driver, shape, num_rows, num_steps)
                for _ in track(range(num_runs), description=f"bench map {shape}", transient=True)
            ]
            report_modes(report, shape, num_rows, runs)
        shape, num_rows, _ = cases[0]
        report_frames(report, driver, shape, num_rows, num_runs)
    assert driver.farewell is not None
    report_calls(report, driver.farewell)
    report.print_table()
    if json_path:
        report.write_json(json_path)
    return 0
