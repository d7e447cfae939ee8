"""The transfer engine agrees with slots copied one by one, whatever the ends, and touches nothing else."""

from __future__ import annotations

import errno
import os
import resource
import select
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from native.checksum import crc32c
from native.transfer import (
    CHECKSUM,
    END_OF_FILE,
    Ended,
    File,
    Memory,
    Transfer,
    TransferEngine,
    explain_error,
)  # fmt: skip

# of a slot: below a cache line, no multiple of one, a page, more than one stretch of a thread
SLOT_BYTES = (1, 100, 4096, 70_000)


class Place:
    """Slots of one kind of end, filled with bytes that tell them apart."""

    def __init__(self, kind: str, num_slots: int, slot_bytes: int, seed: int, closing: ExitStack) -> None:
        self.slot_bytes = slot_bytes
        whole = bytearray(
            b"".join(bytes([(seed + 37 * i) % 256]) * (slot_bytes - 1) + bytes([i]) for i in range(num_slots))
        )
        self.shadow = bytearray(whole)  # what it should hold
        self.end: Memory | File
        if kind == "memory":
            self._memory = whole
            self.end = Memory(whole)
        else:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the others
            closing.enter_context(file)
            file.write(whole)
            file.flush()
            self.end = File(file.fileno())

    def read(self) -> bytearray:
        """What it holds."""
        if isinstance(self.end, File):
            return bytearray(os.pread(self.end.fd, len(self.shadow) + 1, 0))
        return self._memory

    def slot(self, index: int) -> bytes:
        """What a slot should hold."""
        return bytes(self.shadow[index * self.slot_bytes : (index + 1) * self.slot_bytes])

    def put(self, index: int, data: bytes) -> None:
        """Say what a slot should hold."""
        self.shadow[index * self.slot_bytes : (index + 1) * self.slot_bytes] = data


@pytest.fixture
def engine() -> Iterator[TransferEngine]:
    """Two threads, of which two jobs have the attention at a time."""
    with TransferEngine(2, 2) as engine:
        yield engine


def run(engine: TransferEngine, transfer: Transfer) -> Ended:
    """Carry one job out."""
    id_ = engine.submit(transfer)
    engine.wait()
    (ended,) = engine.collect()
    assert ended.id == id_
    return ended


@st.composite
def slot_lists(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """How many slots there are, and which go where: runs of some length, in any order."""
    num_slots = draw(st.integers(1, 24))
    sources = draw(st.lists(st.integers(0, num_slots - 1), max_size=num_slots))
    targets = draw(st.permutations(range(num_slots)))[: len(sources)]
    if draw(st.booleans()):  # adjacent at both ends
        start = draw(st.integers(0, num_slots - 1))
        sources = list(range(start, num_slots))
        targets = list(range(num_slots - start))
    return num_slots, sources, targets


@settings(max_examples=120)
@given(
    kinds=st.tuples(st.sampled_from(["memory", "file"]), st.sampled_from(["memory", "file"])),
    slot_bytes=st.sampled_from(SLOT_BYTES),
    lists=slot_lists(),
    piece_bytes=st.sampled_from([0, 33, 4096, 1 << 20]),
    bad=st.sets(st.integers(0, 23)),
    is_checked=st.booleans(),
)
def test_every_slot_arrives(
    kinds: tuple[str, str],
    slot_bytes: int,
    lists: tuple[int, list[int], list[int]],
    piece_bytes: int,
    bad: set[int],
    is_checked: bool,
) -> None:
    """Between any two ends, in runs or pieces: the slots named are copied, all others stay as they were.

    Checksums are those of the slots, and a slot that has not the expected one is at fault alone.
    """
    num_slots, sources, targets = lists
    piece_bytes = 4096 if piece_bytes == 33 and slot_bytes > 4096 else piece_bytes
    with ExitStack() as closing, TransferEngine() as engine:
        source = Place(kinds[0], num_slots, slot_bytes, 1, closing)
        target = Place(kinds[1], num_slots, slot_bytes, 101, closing)
        true = [crc32c(source.slot(slot)) for slot in sources]
        expected = [checksum ^ (i in bad) for i, checksum in enumerate(true)]
        ended = run(
            engine,
            Transfer(
                source=source.end, target=target.end, slot_bytes=slot_bytes, source_slots=sources,
                target_slots=targets, expected=expected if is_checked else (), wants_checksums=True,
                piece_bytes=piece_bytes,
            ),
        )  # fmt: skip
        faulty = {i for i in bad if i < len(sources)} if is_checked else set()
        assert ended.errors == dict.fromkeys(sorted(faulty), CHECKSUM)
        assert ended.checksums == tuple(true)
        assert ended.seconds >= 0
        assert source.read() == source.shadow
        found = target.read()
        for i, (source_slot, target_slot) in enumerate(zip(sources, targets, strict=True)):
            if i in faulty:  # means nothing, but must not hide what is beside it
                start = target_slot * slot_bytes
                found[start : start + slot_bytes] = target.slot(target_slot)
            else:
                target.put(target_slot, source.slot(source_slot))
        assert found == target.shadow


@pytest.mark.parametrize("target_kind", ["memory", "file"])
@pytest.mark.parametrize("piece_bytes", [0, 1000])
def test_a_flipped_bit_and_a_truncated_file(
    engine: TransferEngine, target_kind: str, piece_bytes: int
) -> None:
    """What has changed on disk, and what is no longer there, is at fault slot by slot; the rest arrives."""
    with ExitStack() as closing:
        source = Place("file", 12, 4096, 1, closing)
        target = Place(target_kind, 12, 4096, 101, closing)
        slots = [3, 4, 5, 6, 7, 8, 9, 10]
        expected = [crc32c(source.slot(slot)) for slot in slots]
        assert isinstance(source.end, File)
        os.pwrite(source.end.fd, bytes([source.slot(5)[9] ^ 16]), 5 * 4096 + 9)
        os.ftruncate(source.end.fd, 9 * 4096 + 100)
        ended = run(
            engine,
            Transfer(
                source=source.end, target=target.end, slot_bytes=4096, source_slots=slots,
                target_slots=slots, expected=expected, piece_bytes=piece_bytes,
            ),
        )  # fmt: skip
        assert ended.errors == {2: CHECKSUM, 6: END_OF_FILE, 7: END_OF_FILE}
        assert [explain_error(error) for error in ended.errors.values()][:2] == [
            "its checksum is not what it should be", "the file ends before it"
        ]  # fmt: skip
        found = target.read()
        for slot in (3, 4, 6, 7, 8):
            assert found[slot * 4096 : (slot + 1) * 4096] == source.slot(slot)
        assert found[: 3 * 4096] == target.shadow[: 3 * 4096]
        assert found[11 * 4096 :] == target.shadow[11 * 4096 :]


def test_a_full_disk(engine: TransferEngine) -> None:
    """Every slot that finds no room says so; a disk that is never full enough is emulated by /dev/full."""
    data = os.urandom(5 * 4096)
    with open("/dev/full", "wb") as full:
        ended = run(
            engine,
            Transfer(
                source=Memory(data), target=File(full.fileno()), slot_bytes=4096,
                source_slots=range(5), target_slots=range(5),
            ),
        )  # fmt: skip
    assert ended.errors == dict.fromkeys(range(5), errno.ENOSPC)
    assert explain_error(errno.ENOSPC) == "No space left on device"


@pytest.mark.parametrize("is_out", [True, False])
def test_more_slots_than_one_call_takes(engine: TransferEngine, is_out: bool) -> None:
    """Neighbours of a file that are all over the memory arrive in several calls."""
    with ExitStack() as closing:
        source = Place("memory" if is_out else "file", 200, 16, 1, closing)
        target = Place("file" if is_out else "memory", 200, 16, 101, closing)
        backwards = range(199, -1, -1)
        assert not run(
            engine,
            Transfer(
                source=source.end, target=target.end, slot_bytes=16, source_slots=range(200),
                target_slots=backwards,
            ),
        ).errors  # fmt: skip
        assert [target.read()[i * 16 : i * 16 + 16] for i in backwards] == [
            source.slot(i) for i in range(200)
        ]


@settings(max_examples=60)
@given(
    slot_bytes=st.sampled_from(SLOT_BYTES),
    lists=slot_lists(),
    limit=st.floats(0, 24),
    is_out=st.booleans(),
    piece_bytes=st.sampled_from([0, 4096]),
)
def test_a_file_that_ends_or_must_not_grow(
    slot_bytes: int, lists: tuple[int, list[int], list[int]], limit: float, is_out: bool, piece_bytes: int
) -> None:
    """Slots below the end of a file, or below the limit on its size, are whole; all others are at fault."""
    num_slots, sources, targets = lists
    num_bytes = int(limit * slot_bytes)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as closing, TransferEngine() as engine:
        memory = Place("memory", num_slots, slot_bytes, 1, closing)
        file = Place("file", num_slots, slot_bytes, 101, closing)
        source, target = (memory, file) if is_out else (file, memory)
        assert isinstance(file.end, File)
        os.ftruncate(file.end.fd, min(num_bytes, num_slots * slot_bytes))
        transfer = Transfer(
            source=source.end, target=target.end, slot_bytes=slot_bytes, source_slots=sources,
            target_slots=targets, piece_bytes=piece_bytes,
        )  # fmt: skip
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]) if is_out else before)
        try:
            ended = run(engine, transfer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        ends = [(slot + 1) * slot_bytes for slot in (targets if is_out else sources)]
        error = errno.EFBIG if is_out else END_OF_FILE
        assert ended.errors == {i: error for i, end in enumerate(ends) if end > num_bytes}
        found = target.read()
        for i, (source_slot, target_slot) in enumerate(zip(sources, targets, strict=True)):
            if i not in ended.errors:
                start = target_slot * slot_bytes
                assert found[start : start + slot_bytes] == source.slot(source_slot)


def test_a_file_that_is_closed_or_cannot_be_written(engine: TransferEngine) -> None:
    """Errors of the system are those of the slots, and the engine goes on."""
    data, into = os.urandom(8192), bytearray(8192)
    with tempfile.TemporaryFile() as file:
        reading = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
    for end in ("read only", "closed"):
        if end == "closed":
            os.close(reading)
        ended = run(
            engine,
            Transfer(
                source=Memory(data), target=File(reading), slot_bytes=4096, source_slots=[0, 1],
                target_slots=[0, 1],
            ),
        )  # fmt: skip
        assert ended.errors == {0: errno.EBADF, 1: errno.EBADF}, end
    ended = run(
        engine,
        Transfer(
            source=Memory(data), target=Memory(into), slot_bytes=8192, source_slots=[0], target_slots=[0]
        ),
    )
    assert not ended.errors
    assert into == data


def test_the_event_tells_when_to_collect(engine: TransferEngine) -> None:
    """The descriptor polls as readable when a job has ended, until everything is collected."""
    data, into = os.urandom(1 << 20), bytearray(1 << 20)
    assert not select.select([engine], [], [], 0)[0]
    assert engine.collect() == []
    ids = [
        engine.submit(
            Transfer(
                source=Memory(data), target=Memory(into), slot_bytes=1 << 16, source_slots=[i],
                target_slots=[i],
            )
        )
        for i in range(16)
    ]  # fmt: skip
    ended: list[int] = []
    while len(ended) < 16:
        assert select.select([engine], [], [], 60)[0]
        ended += [job.id for job in engine.collect()]
    assert sorted(ended) == ids
    assert not select.select([engine], [], [], 0)[0]
    assert into == data
    empty = Transfer(source=Memory(data), target=Memory(into), slot_bytes=1, source_slots=[], target_slots=[])
    assert run(engine, empty) == Ended(17, 0.0, (), {})


def test_a_small_job_passes_a_large_one() -> None:
    """One thread takes turns: what came second and is short ends first, unless jobs come one by one."""
    data, into = bytes(32 << 20), bytearray(32 << 20)
    for max_active, order in ((2, [2, 1]), (1, [1, 2])):
        with TransferEngine(1, max_active) as engine:
            large = Transfer(
                source=Memory(data), target=Memory(into), slot_bytes=1 << 16, source_slots=range(511),
                target_slots=range(511), piece_bytes=1024,
            )  # fmt: skip
            small = Transfer(
                source=Memory(data), target=Memory(into), slot_bytes=1 << 16, source_slots=[511],
                target_slots=[511],
            )  # fmt: skip
            engine.submit(large)
            engine.submit(small)
            engine.wait()
            assert [ended.id for ended in engine.collect()] == order


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_the_end_with_jobs_in_flight(is_cancelled: bool) -> None:
    """Closing finishes what there is; cancelling before gives up what has not begun, and says which slots."""
    num_jobs, num_slots = 40, 16
    data = os.urandom(num_slots << 16)
    into = [bytearray(num_slots << 16) for _ in range(num_jobs)]
    engine = TransferEngine(2, 3)
    ids = [
        engine.submit(
            Transfer(
                source=Memory(data), target=Memory(memory), slot_bytes=1 << 16, source_slots=range(num_slots),
                target_slots=range(num_slots), piece_bytes=512,
            )
        )
        for memory in into
    ]  # fmt: skip
    if is_cancelled:
        engine.cancel()
        engine.wait()
        ended = {job.id: job for job in engine.collect()}
        assert sorted(ended) == ids
        assert len(ended[ids[-1]].errors) == num_slots
        for id_, memory in zip(ids, into, strict=True):
            assert set(ended[id_].errors.values()) <= {errno.ECANCELED}
            for slot in set(range(num_slots)) - set(ended[id_].errors):
                assert memory[slot << 16 : (slot + 1) << 16] == data[slot << 16 : (slot + 1) << 16]
    engine.close()
    engine.close()
    assert engine.num_jobs == 0
    if not is_cancelled:
        assert all(memory == data for memory in into)


def test_nothing_is_left_behind() -> None:
    """Engines that were used, even one that was closed in the middle, leave no thread and no descriptor."""
    before = set(os.listdir("/proc/self/fd")), set(os.listdir("/proc/self/task"))
    for _ in range(5):
        with TransferEngine(3) as engine:
            data, into = bytes(1 << 22), bytearray(1 << 22)
            for _ in range(10):
                engine.submit(
                    Transfer(
                        source=Memory(data), target=Memory(into), slot_bytes=1 << 22, source_slots=[0],
                        target_slots=[0],
                    )
                )  # fmt: skip
    assert set(os.listdir("/proc/self/fd")) == before[0]
    assert set(os.listdir("/proc/self/task")) <= before[1]  # threads of others may have ended


@pytest.mark.parametrize("niceness", [0, 7])
def test_threads_are_as_nice_as_they_are_told(niceness: int) -> None:
    """It comes on top of the program's own, which stays as it was; a thread sets it before its first job."""
    before, own = set(os.listdir("/proc/self/task")), os.getpriority(os.PRIO_PROCESS, 0)
    with TransferEngine(1, niceness=niceness) as engine:
        data, into = bytes(10), bytearray(10)
        transfer = Transfer(
            source=Memory(data), target=Memory(into), slot_bytes=10, source_slots=[0], target_slots=[0]
        )
        run(engine, transfer)
        (thread,) = set(os.listdir("/proc/self/task")) - before
        assert os.getpriority(os.PRIO_PROCESS, int(thread)) == min(19, own + niceness)
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_what_makes_no_sense_is_refused(engine: TransferEngine) -> None:
    """Slots outside the memory, lists that do not match, memory that is read only, and a closed engine."""
    data, into = bytes(100), bytearray(100)

    def attempt(
        source: object, target: object, sources: list[int], targets: list[int], **more: object
    ) -> None:
        values = {"slot_bytes": 10} | more
        engine.submit(
            Transfer(
                source=Memory(source), target=Memory(target), source_slots=sources, target_slots=targets,
                **values,
            )
        )  # type: ignore[arg-type]  # fmt: skip

    for sources, targets, more, named in (
        ([10], [0], {}, "source slots 10 to 10 are outside the 10"),
        ([0], [-1], {}, "target slots -1 to -1"),
        ([0, 1], [0], {}, "2 slots to 1"),
        ([0], [0], {"expected": [1, 2]}, "with 2 checksums"),
        ([0], [0], {"slot_bytes": 0}, "slots of 0 bytes"),
    ):
        with pytest.raises(ValueError, match=named):
            attempt(data, into, sources, targets, **more)  # type: ignore[arg-type]
    with pytest.raises((ValueError, BufferError)):
        attempt(data, data, [0], [0])
    with pytest.raises(ValueError, match="0 threads"):
        TransferEngine(0)
    engine.close()
    with pytest.raises(ValueError, match="closed"):
        attempt(data, into, [0], [0])
    assert into == bytes(100)


class FenceMachine(RuleBasedStateMachine):
    """Jobs in flight over one pool of memory, a second one, and a file, under the kernel's promise.

    No slot that is being read is written, and none that is being written is touched. Everything else may be
    copied and scribbled over at any time; nothing is read or written outside the slots of a job.
    """

    NUM_SLOTS, SLOT = 20, 3 * 4096

    def __init__(self) -> None:
        super().__init__()
        self.closing = ExitStack()
        self.engine = self.closing.enter_context(TransferEngine(2, 3))
        self.places = [
            Place(kind, self.NUM_SLOTS, self.SLOT, 7 * i + 1, self.closing)
            for i, kind in enumerate(("memory", "memory", "file"))
        ]
        self.in_flight: dict[int, tuple[int, list[int], int, list[int]]] = {}
        self.value = 0

    def fenced(self, place: int, *, against_reading: bool) -> set[int]:
        """Slots of a place that are being written; or also those that are being read."""
        found: set[int] = set()
        for source, sources, target, targets in self.in_flight.values():
            found |= set(targets) if target == place else set()
            found |= set(sources) if source == place and against_reading else set()
        return found

    # What is drawn must not depend on which jobs have ended by now: so wishes are drawn, and fences bar some.
    @rule(
        ends=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        sources=st.lists(st.integers(0, NUM_SLOTS - 1), unique=True, max_size=8),
        order=st.permutations(range(NUM_SLOTS)),
        piece=st.sampled_from([0, 700]),
    )
    def submit(self, ends: tuple[int, int], sources: list[int], order: list[int], piece: int) -> None:
        source, target = ends
        barred = self.fenced(source, against_reading=False)
        sources = [slot for slot in sources if slot not in barred]
        barred = self.fenced(target, against_reading=True) | (set(sources) if source == target else set())
        targets = [slot for slot in order if slot not in barred][: len(sources)]
        sources = sources[: len(targets)]
        id_ = self.engine.submit(
            Transfer(
                source=self.places[source].end, target=self.places[target].end, slot_bytes=self.SLOT,
                source_slots=sources, target_slots=targets, piece_bytes=piece,
                expected=[crc32c(self.places[source].slot(slot)) for slot in sources],
            )
        )  # fmt: skip
        self.in_flight[id_] = (source, sources, target, targets)
        for source_slot, target_slot in zip(sources, targets, strict=True):
            self.places[target].put(target_slot, self.places[source].slot(source_slot))

    @rule(place=st.integers(0, 2), slot=st.integers(0, NUM_SLOTS - 1))
    def scribble(self, place: int, slot: int) -> None:
        """The owner of a slot that is in no copy writes to it."""
        if slot in self.fenced(place, against_reading=True):
            return
        self.value += 1
        written = bytes([self.value % 256]) * self.SLOT
        end = self.places[place].end
        if isinstance(end, File):
            os.pwrite(end.fd, written, slot * self.SLOT)
        else:
            end.buffer[slot * self.SLOT : (slot + 1) * self.SLOT] = written
        self.places[place].put(slot, written)

    @rule()
    def collect(self) -> None:
        for ended in self.engine.collect():
            assert not ended.errors
            del self.in_flight[ended.id]

    @invariant()
    def what_is_not_being_written_is_as_it_should_be(self) -> None:
        for number, place in enumerate(self.places):
            found = place.read()
            assert len(found) == len(place.shadow)
            for slot in set(range(self.NUM_SLOTS)) - self.fenced(number, against_reading=False):
                start = slot * self.SLOT
                assert found[start : start + self.SLOT] == place.slot(slot), (number, slot)

    def teardown(self) -> None:
        self.engine.wait()
        self.collect()
        assert not self.in_flight
        assert all(place.read() == place.shadow for place in self.places)
        self.closing.close()


FenceMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestFences = FenceMachine.TestCase
