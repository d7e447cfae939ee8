"""Copies between a GPU and main memory agree with dictionaries of frames and slots, however late they run."""

from __future__ import annotations

import mmap
import os
import select
import threading
from collections.abc import Iterator

import pytest
from attrs import define
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from native.cuda import pinned as pinned_module
from native.cuda.copier import CudaCopier, CudaCopy
from native.cuda.device import CudaFault, CudaRefused
from native.cuda.paging import CudaPool
from native.cuda.pinned import PinnedArea
from tests.fake_cuda import GRANULE, ILLEGAL_ADDRESS, OUT_OF_MEMORY, FakeCuda, load_fake

NUM_FRAMES, NUM_SLOTS = 6, 10


@define(eq=False, slots=False)
class Machine:
    """A device with a pool, and an area of main memory that is pinned three slots at a time."""

    fake: FakeCuda

    def __attrs_post_init__(self) -> None:
        self.fake.reset()
        self.fake.be_lazy()
        self.device = self.fake.open()
        self.pool = CudaPool(self.device, NUM_FRAMES, GRANULE)
        self.memory = mmap.mmap(-1, NUM_SLOTS * GRANULE)
        self.area = PinnedArea(self.device, self.memory, GRANULE)
        self.copier = CudaCopier(self.pool)

    def copy(self, is_out: bool, pfns: list[int], slots: list[int], piece_bytes: int = 0) -> CudaCopy:
        """Begin a copy."""
        copy = CudaCopy(is_out=is_out, pfns=pfns, area=self.area, slots=slots, piece_bytes=piece_bytes)
        self.copier.submit(copy)
        return copy

    def finish(self) -> list[CudaCopy]:
        """Wait for all copies."""
        self.copier.wait()
        return self.copier.collect()

    def slot(self, slot: int) -> tuple[int, int]:
        """The first and the last byte of a slot."""
        return self.memory[slot * GRANULE], self.memory[(slot + 1) * GRANULE - 1]

    def fill(self, pfn: int, value: int) -> None:
        """A kernel writes to a frame, some time."""
        self.fake.launch_fill(self.pool.address(pfn), GRANULE, value)

    def close(self) -> None:
        """Nothing is left."""
        self.copier.close()
        self.copier.close()
        self.area.close()
        self.area.close()
        self.memory.close()  # BufferError while somebody points into it
        self.pool.close()
        self.device.close()
        assert not any(self.fake.count_live())


class CopierMachine(RuleBasedStateMachine):
    """Kernels write late, copies of both directions run beside them."""

    @initialize(slots_per_piece=st.sampled_from([1, 3, 100]))
    def open(self, slots_per_piece: int) -> None:
        self.kept_piece_bytes = pinned_module.PIECE_BYTES
        pinned_module.PIECE_BYTES = slots_per_piece * GRANULE
        self.machine = Machine(load_fake())
        self.frames = dict.fromkeys(range(NUM_FRAMES), 0)
        self.slots = dict.fromkeys(range(NUM_SLOTS), 0)
        self.busy_frames: set[int] = set()  # of copies that were not collected
        self.busy_slots: set[int] = set()

    @rule(pfn=st.integers(0, NUM_FRAMES - 1), value=st.integers(0, 255))
    def write(self, pfn: int, value: int) -> None:
        if pfn not in self.busy_frames:
            self.machine.fill(pfn, value)
            self.frames[pfn] = value

    @rule(
        is_out=st.booleans(),
        pfns=st.permutations(range(NUM_FRAMES)),
        slots=st.permutations(range(NUM_SLOTS)),
        in_order=st.booleans(),
        count=st.integers(1, NUM_FRAMES),
        piece_bytes=st.sampled_from([0, 40000, GRANULE]),
    )
    def copy(
        self, is_out: bool, pfns: list[int], slots: list[int], in_order: bool, count: int, piece_bytes: int
    ) -> None:
        pfns = [pfn for pfn in pfns if pfn not in self.busy_frames][:count]
        slots = [slot for slot in slots if slot not in self.busy_slots][: len(pfns)]
        pfns = pfns[: len(slots)]
        if in_order:
            pfns, slots = sorted(pfns), sorted(slots)
        if pfns:
            self.machine.copy(is_out, pfns, slots, piece_bytes)
            self.busy_frames |= set(pfns)
            self.busy_slots |= set(slots)
            for pfn, slot in zip(pfns, slots, strict=True):
                if is_out:
                    self.slots[slot] = self.frames[pfn]
                else:
                    self.frames[pfn] = self.slots[slot]

    @rule()
    def finish(self) -> None:
        ended = self.machine.finish()
        assert all(copy.error is None for copy in ended)
        assert {pfn for copy in ended for pfn in copy.pfns} == self.busy_frames
        self.busy_frames, self.busy_slots = set(), set()
        for slot, value in self.slots.items():
            assert self.machine.slot(slot) == (value, value)

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            self.copy(True, list(range(NUM_FRAMES)), list(range(NUM_SLOTS)), False, NUM_FRAMES, 0)
            self.finish()
            self.copy(True, list(range(NUM_FRAMES)), list(range(NUM_SLOTS)), False, NUM_FRAMES, 0)
            self.finish()
            assert self.machine.fake.count().unpinned == 0
            self.machine.close()
            pinned_module.PIECE_BYTES = self.kept_piece_bytes


CopierMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=20)
TestCopier = CopierMachine.TestCase


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine that was just started."""
    monkeypatch.setattr(pinned_module, "PIECE_BYTES", 3 * GRANULE)
    machine = Machine(load_fake())
    yield machine
    machine.copier.close() if machine.fake.count().contexts else None
    machine.fake.reset()


def test_memory_is_pinned_as_it_is_used(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Three slots at a time, once; a refusal to pin leaves a copy that works, and is told once."""
    for slots, num_pinned in (([0], 1), ([1, 2], 1), ([2, 3], 2)):
        machine.copy(True, list(range(len(slots))), slots)
        assert [copy.error for copy in machine.finish()] == [None]
        assert machine.fake.count().pinned == num_pinned
    assert capsys.readouterr().err == ""
    machine.fill(4, 9)
    for slot in (6, 6, 9):
        machine.fake.fail("cuMemHostRegister_v2", OUT_OF_MEMORY)  # the next time
        machine.copy(True, [4], [slot])
        assert [copy.error for copy in machine.finish()] == [None]
        assert machine.slot(slot) == (9, 9)
    assert (machine.fake.count().pinned, machine.fake.count().unpinned) == (2, 3)
    (told,) = capsys.readouterr().err.splitlines()
    assert "copies there are slower: cuMemHostRegister_v2" in told
    machine.close()


def test_a_refusal_is_of_one_copy(machine: Machine) -> None:
    """It names the call; copies before and after it are good, and what was launched of it is over."""
    machine.fill(1, 5)
    machine.copy(True, [0, 2], [0, 2])
    machine.finish()
    machine.fake.fail("cuMemcpyDtoHAsync_v2", OUT_OF_MEMORY, after=2)
    copies = [machine.copy(True, [pfn, pfn + 2], [2 * pfn, 2 * pfn + 1]) for pfn in range(3)]
    assert machine.finish() == copies
    assert [str(copy.error) for copy in copies] == [
        "None", "cuMemcpyDtoHAsync_v2: CUDA_ERROR_OUT_OF_MEMORY", "None"
    ]  # fmt: skip
    machine.fake.fail("cuEventCreate", OUT_OF_MEMORY)
    refused = machine.copy(False, [5], [0])
    machine.finish()
    assert isinstance(refused.error, CudaRefused)
    assert machine.fake.count().waiting == 0 or machine.device.synchronize() is None
    machine.close()


def test_a_fault_is_for_who_collects(machine: Machine) -> None:
    """A device that is beyond use is not taken for copies that failed."""
    machine.fake.fail("cuMemcpyHtoDAsync_v2", ILLEGAL_ADDRESS)
    machine.copy(False, [0], [0])
    with pytest.raises(CudaFault, match="cuMemcpyHtoDAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS"):
        machine.finish()
    with pytest.raises(CudaFault, match="cuMemcpyHtoDAsync_v2: CUDA_ERROR_ILLEGAL_ADDRESS"):
        machine.copy(False, [1], [1])
    machine.fake.reset()


def test_the_descriptor_tells_and_bad_numbers_are_refused(machine: Machine) -> None:
    """A poll sees the end of a copy; frames and slots that are not there begin none."""
    machine.copy(True, [3], [3])
    assert select.select([machine.copier], [], [], 60)[0]
    machine.finish()
    assert not select.select([machine.copier], [], [], 0)[0]
    for pfns, slots in (([6], [0]), ([0], [NUM_SLOTS]), ([0], [-1]), ([0, 1], [0])):
        with pytest.raises(ValueError, match=r"frame 6 is outside|frames, slots"):
            machine.copy(True, pfns, slots)
    machine.close()


def test_nothing_is_left_open() -> None:
    """Threads, descriptors and pinned memory go, with copies under way too."""
    before = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    for _ in range(3):
        machine = Machine(load_fake())
        for slot in range(NUM_SLOTS):
            machine.copy(True, [slot % 3], [slot])
        machine.close()
    assert len(os.listdir("/proc/self/fd")) == before[0]
    assert set(threading.enumerate()) <= before[1]  # idle threads of other tests may end meanwhile
