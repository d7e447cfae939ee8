"""A driver in a child, and processes that decode on it under one way of mapping: for `llmos bench map`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from attrs import define, field

from llmos.bench.child import MeasurementFailed
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
from llmos.kernel.driver_link import DRIVER_ENVIRONMENT
from llmos.mm.address_space import AddressSpace
from llmos.mm.vmm import VMM


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

    def run(self, edits: Sequence[Edit], rows: Sequence[Row]) -> StepDone:
        """Run a step. Raises MeasurementFailed."""
        done = self.ask(Step(0, tuple(edits), tuple(rows)))
        assert isinstance(done, StepDone)
        if done.faults:
            raise MeasurementFailed(done.faults[0].message)
        return done


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

    def open(self, driver: Driver, prompts: Sequence[int]) -> StepDone:
        """Open a space for each prompt and compute it, beside those that are open."""
        opened = [self.vmm.open_space("bench", range(length)) for length in prompts]
        self.spaces += opened
        self.lengths += prompts
        rows = []
        for space, length in zip(opened, prompts, strict=True):
            self.vmm.pager.grow(space, 0, length)
            rows.append(Row(self.first_asid + space.asid, 0, (1,) * length, True))
        binds = [Bind(row.asid, Sampling(), row.tokens, len(row.tokens)) for row in rows]
        return driver.run([*self.edits(), *binds], rows)

    def step(self, driver: Driver) -> DecodeStep:
        """Decode one token of each."""
        before = self.vmm.statistics().maps
        for index, (space, length) in enumerate(zip(self.spaces, self.lengths, strict=True)):
            self.vmm.pager.grow(space, length, length + 1)
            self.lengths[index] += 1
        after = self.vmm.statistics().maps
        rows = [
            Row(self.first_asid + s.asid, n - 1, (), True)
            for s, n in zip(self.spaces, self.lengths, strict=True)
        ]
        num_sync = after.num_sync - before.num_sync
        done = driver.run(self.edits(), rows)
        num_ahead = after.num_ahead - before.num_ahead
        waits = num_sync > after.num_reused - before.num_reused
        return DecodeStep(done.seconds, waits, num_ahead > 0)

    def close(self, driver: Driver, indices: Sequence[int] | None = None) -> None:
        """End some of them, by place, or all."""
        ended = set(range(len(self.spaces)) if indices is None else indices)
        for index in sorted(ended):
            self.vmm.close_space(self.spaces[index])
        self.spaces = [space for index, space in enumerate(self.spaces) if index not in ended]
        self.lengths = [length for index, length in enumerate(self.lengths) if index not in ended]
        driver.run(self.edits(), [])
