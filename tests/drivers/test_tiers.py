"""Copies between tiers: frames come back bit for bit, faults name their slot, and nothing stays behind."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivers import areas as areas_module
from drivers import device_copies
from drivers.areas import open_swap_file
from drivers.arena import Arena
from drivers.cuda_arena import CudaArena
from drivers.host_arena import HostArena
from drivers.tiers import Tiers
from llmos.device import Copy, CopyDone, CopyFault, CopyPage, KVFormat, Map, Place, Segment
from native.checksum import crc32c
from native.cuda.device import CudaFault
from tests.fake_cuda import GRANULE, ILLEGAL_ADDRESS, OUT_OF_MEMORY, load_fake

FRAME = GRANULE
KV = KVFormat("fp32", (Segment("K", 256), Segment("V", 256)), FRAME, 256)
NUM_FRAMES, NUM_SPACES, NUM_PAGES = 16, 4, 4


def open_arena(kind: str) -> Arena:
    """An arena of NUM_FRAMES frames; that of CUDA on a stand-in, as if the process were new."""
    if kind == "host":
        return HostArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES)
    fake = load_fake()
    fake.reset()
    device, torch_device = fake.open(), torch.device("cpu")
    return CudaArena(KV, NUM_FRAMES, NUM_SPACES, NUM_PAGES, device=device, torch_device=torch_device)


def close(arena: Arena) -> None:
    """Close it; on the stand-in nothing is left, and no copy went through memory that was not pinned."""
    arena.close()
    if isinstance(arena, CudaArena):
        arena._frames.device.close()
        assert not any(load_fake().count_live())
        assert load_fake().count().unpinned == 0


@pytest.fixture(params=["host", "cuda"])
def arena(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Arena]:
    """Each kind of arena; buffers for copies hold two frames."""
    monkeypatch.setattr(device_copies, "BUFFER_BYTES", 2 * FRAME)
    arena = open_arena(request.param)
    yield arena
    close(arena)


@pytest.fixture
def tiers(arena: Arena, tmp_path: Path) -> Iterator[Tiers]:
    """Ten slots in the host area and eight in the swap file, not quite eleven and nine."""
    tiers = Tiers(arena, 11 * FRAME - 1, 9 * FRAME - 1, str(tmp_path))
    yield tiers
    tiers.close()


def carry_out(tiers: Tiers, source: Place, target: Place, checksums: tuple[int, ...] = ()) -> CopyDone:
    """One copy from beginning to end."""
    if (done := tiers.begin(Copy(7, source, target, checksums))) is None:
        assert select.select([tiers], [], [], 60)[0]
        tiers.wait()
        (done,) = tiers.collect()
    assert done.id == 7
    assert tiers.num_running == 0
    return done


def device(*slots: int) -> Place:
    return Place("device", slots)


def host(*slots: int) -> Place:
    return Place("host", slots)


def disk(*slots: int) -> Place:
    return Place("disk", slots)


def view(arena: Arena, asid: int, vpn: int) -> list[torch.Tensor]:
    """A mapped page's frames, one for each segment."""
    start = arena.page_index(asid, vpn) * FRAME
    return [segment[start : start + FRAME] for segment in arena.segments]


def write(arena: Arena, asid: int, vpn: int, value: int) -> bytes:
    """Fill a mapped page with bytes of its own; returns them, frame after frame."""
    data = b""
    for segment, frame in enumerate(view(arena, asid, vpn)):
        frame.copy_(((torch.arange(FRAME) * (value + 2 * segment) + value) % 251).to(torch.uint8))
        data += bytes(frame.numpy())
    return data


def read(arena: Arena, asid: int, vpn: int) -> bytes:
    """What a mapped page holds."""
    return b"".join(bytes(frame.numpy()) for frame in view(arena, asid, vpn))


def test_a_page_goes_out_and_comes_back_elsewhere(arena: Arena, tiers: Tiers, tmp_path: Path) -> None:
    """Device, host, disk, file, and back into frames of another space: the same bits at each station."""
    assert (tiers.num_host_slots, tiers.num_disk_slots) == (10, 8)
    arena.reserve(0)
    arena.map(Map(0, 0, (3, 9)))
    arena.map(Map(0, 1, (4, 10)))
    pages = [write(arena, 0, vpn, 5 + vpn) for vpn in range(2)]
    frames = [pages[0][:FRAME], pages[1][:FRAME], pages[0][FRAME:], pages[1][FRAME:]]  # 3, 4, 9, 10
    checksums = tuple(map(crc32c, frames))
    path = str(tmp_path / "image")
    assert carry_out(tiers, device(3, 4, 9, 10), host(2, 3, 0, 7)).checksums == ()
    write(arena, 0, 0, 99)  # what was copied is not what is there now
    done = carry_out(tiers, host(2, 3, 0, 7), disk(5, 6, 7, 0), checksums)
    assert done.checksums == checksums
    done = carry_out(tiers, disk(5, 6, 7, 0), Place("file", (1, 2, 3, 4), path), checksums)
    assert (done.checksums, done.faults) == (checksums, ())
    assert Path(path).read_bytes() == bytes(FRAME) + b"".join(frames)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    source = Place("file", (1, 2, 3, 4), path)
    done = carry_out(tiers, source, device(15, 0, 1, 14), checksums)
    assert (done.checksums, done.faults) == ((), ())
    arena.reserve(1)
    arena.map(Map(1, 0, (15, 1)))
    arena.map(Map(1, 1, (0, 14)))
    assert [read(arena, 1, vpn) for vpn in range(2)] == pages
    assert done.seconds > 0


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["host", "cuda"]),
    moves=st.lists(
        st.tuples(st.sampled_from(["host", "disk"]), st.permutations(range(NUM_FRAMES)), st.booleans()),
        min_size=1,
        max_size=4,
    ),
    piece_bytes=st.sampled_from([0, 16000]),
)
def test_frames_keep_their_bits_however_they_travel(
    kind: str, moves: list[tuple[str, list[int], bool]], piece_bytes: int
) -> None:
    """All pages of a space leave, in any order, and come back to any frames; some are mapped in between."""
    arena = open_arena(kind)
    tiers = Tiers(arena, NUM_FRAMES * FRAME, NUM_FRAMES * FRAME, None, piece_bytes)
    arena.reserve(0)
    pages, where = [], [(2 * vpn, 2 * vpn + 1) for vpn in range(NUM_PAGES)]
    for vpn, frames in enumerate(where):
        arena.map(Map(0, vpn, frames))
        pages.append(write(arena, 0, vpn, vpn + 1))
    for tier, order, is_mapped in moves:
        slots = order[: 2 * NUM_PAGES]
        out = device(*(frame for frames in where for frame in frames))
        assert not carry_out(tiers, out, Place(tier, tuple(slots))).faults
        targets = order[::-1][: 2 * NUM_PAGES]
        assert not carry_out(tiers, Place(tier, tuple(slots)), device(*targets)).faults
        where = [(targets[2 * vpn], targets[2 * vpn + 1]) for vpn in range(NUM_PAGES)]
        if is_mapped:  # else the frames leave again as they came
            for vpn, frames in enumerate(where):
                arena.map(Map(0, vpn, frames))
            assert [read(arena, 0, vpn) for vpn in range(NUM_PAGES)] == pages
    for vpn, frames in enumerate(where):
        arena.map(Map(0, vpn, frames))
    assert [read(arena, 0, vpn) for vpn in range(NUM_PAGES)] == pages
    tiers.close()
    close(arena)


def test_a_page_that_arrived_is_shared_and_copied_like_others(arena: Arena, tiers: Tiers) -> None:
    """Frames that come in under the numbers of an old page replace it, and copy-on-write finds them."""
    arena.reserve(0)
    arena.map(Map(0, 0, (3, 9)))
    old = write(arena, 0, 0, 1)
    carry_out(tiers, device(3, 9), host(0, 1))
    arena.map(Map(0, 1, (4, 10)))
    new = write(arena, 0, 1, 2)
    carry_out(tiers, device(4, 10), host(2, 3))
    carry_out(tiers, host(2, 3), device(3, 9))  # the page of 3 and 9 was given up
    arena.copy_page(CopyPage((3, 9), (5, 6)))
    arena.map(Map(0, 2, (5, 6)))
    arena.map(Map(0, 0, (3, 9)))
    assert read(arena, 0, 2) == read(arena, 0, 0) == new
    carry_out(tiers, host(0, 1), device(3, 9))
    arena.map(Map(0, 0, (3, 9)))
    assert read(arena, 0, 0) == old
    assert read(arena, 0, 2) == new


def test_faults_name_the_tier_the_slot_and_the_limit(arena: Arena, tiers: Tiers, tmp_path: Path) -> None:
    """A slot that is not there is at fault alone, and lists that do not match as a whole; tiers go on."""
    path = str(tmp_path / "nothing")
    for source, target, checksums, faults in (
        (device(0, 16), host(0, 1), (), {1: "device slot 16 is outside the 16"}),
        (device(0, 1), host(0, 10), (), {1: "host slot 10 is outside the 10"}),
        (device(0, 1, 2), disk(-1, 8, 3), (), {0: "disk slot -1 is outside the 8", 1: "disk slot 8"}),
        (device(0, 1, 2), host(4, 5, 4), (), {2: "host slot 4 is in the copy twice"}),
        (host(0, 1), host(2, 0), (), {1: "host slot 0 is in the copy twice"}),
        (device(0, 1), host(0), (), {0: "2 slots of device to 1 of host", 1: "2 slots"}),
        (device(0), host(0, 1), (), {0: "1 slots of device to 2 of host", 1: "1 slots"}),
        (device(0, 1), host(0, 1), (1,), {0: "2 slots of device with 1 checksums", 1: "2 slots"}),
        (Place("file", (0,), path), host(0), (), {0: f"No such file or directory: '{path}'"}),
        (host(0), Place("file", (0,), str(tmp_path)), (), {0: "Is a directory"}),
        (host(0), Place("file", (-1,), path), (), {0: f"file {path} slot -1 is outside"}),
        (host(0), Place("tape", (0,)), (), {0: "there is no tier 'tape'"}),  # type: ignore[arg-type]
        (disk(7), device(0), (), {0: "disk slot 7 to device slot 0: the file ends before it"}),
        (
            host(0, 1),
            device(0, 1),
            (crc32c(bytes(FRAME)), 5),
            {1: "host slot 1 to device slot 1: its checksum"},
        ),
    ):
        done = carry_out(tiers, source, target, checksums)
        assert [fault.index for fault in done.faults] == list(faults), (source, target)
        for fault in done.faults:
            assert faults[fault.index] in fault.message
            is_bad = "its checksum" in fault.message or "the file ends" in fault.message
            assert fault.is_source == is_bad  # what lies there is at fault, and not the copy
    assert not Path(path).exists()
    assert carry_out(tiers, host(), device()) == CopyDone(7, 0.0)
    assert carry_out(tiers, device(0, 1), device(2, 3)).faults == ()


def test_a_pipe_does_not_hold_the_driver_up(tiers: Tiers, tmp_path: Path) -> None:
    """A path that is no regular file is refused, though opening it would wait for a reader."""
    os.mkfifo(tmp_path / "pipe")
    place = Place("file", (0,), str(tmp_path / "pipe"))
    for source, target in ((place, host(0)), (host(0), place)):
        (fault,) = carry_out(tiers, source, target).faults
        assert fault.message == f"{tmp_path / 'pipe'} is no regular file"


def test_without_lower_tiers_there_are_no_slots(arena: Arena) -> None:
    """An area of no bytes, or of less than a slot, is none; files can be had all the same."""
    tiers = Tiers(arena, FRAME - 1, 0)
    assert (tiers.num_host_slots, tiers.num_disk_slots) == (0, 0)
    for place in (host(0), disk(0)):
        (fault,) = carry_out(tiers, device(0), place).faults
        assert fault == CopyFault(0, f"{place.tier} slot 0 is outside the 0 there are")
    tiers.close()


def test_a_swap_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is seen in its folder, on file systems with nameless files and on those without."""
    refused = []
    real_open = os.open

    def open_without_tmpfile(path: str, flags: int, *mode: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            refused.append(path)
            raise OSError(95, "Operation not supported")
        return real_open(path, flags, *mode, **more)

    for is_refused in (False, True):
        if is_refused:
            monkeypatch.setattr(areas_module.os, "open", open_without_tmpfile)
        fd = open_swap_file(str(tmp_path))
        assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert os.fstat(fd).st_nlink == 0
        assert list(tmp_path.iterdir()) == []
        os.close(fd)
    assert refused == [str(tmp_path)]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_swap_file(str(tmp_path / "nowhere"))


def test_the_swap_file_grows_as_it_is_written(arena: Arena, tmp_path: Path) -> None:
    """A limit that no disk holds costs nothing, and a slot far out leaves a hole before it."""
    tiers = Tiers(arena, 0, 1 << 50, str(tmp_path))
    assert tiers.num_disk_slots == (1 << 50) // FRAME
    assert not carry_out(tiers, device(0), disk(1 << 20)).faults
    assert not carry_out(tiers, disk(1 << 20), device(1), (crc32c(bytes(FRAME)),)).faults
    tiers.close()


def test_nothing_is_left_open(arena: Arena, tmp_path: Path) -> None:
    """Closing with copies in flight gives back threads, files and memory; a refused folder leaves nothing."""

    def use() -> None:
        tiers = Tiers(arena, 10 * FRAME, 10 * FRAME, str(tmp_path), 64)
        for i in range(8):
            tiers.begin(Copy(i, device(*range(10)), Place("file", tuple(range(10)), str(tmp_path / f"{i}"))))
        tiers.close()
        tiers.close()
        with pytest.raises(FileNotFoundError):
            Tiers(arena, FRAME, FRAME, str(tmp_path / "nowhere"))

    use()
    before = set(os.listdir("/proc/self/fd")), set(os.listdir("/proc/self/task"))
    for _ in range(5):
        use()
    assert set(os.listdir("/proc/self/fd")) == before[0]
    deadline = time.monotonic() + 60
    while not set(os.listdir("/proc/self/task")) <= before[1]:  # a thread that was joined goes a moment later
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_checks_are_made_whatever_way_a_copy_takes(arena: Arena, tiers: Tiers) -> None:
    """Out of the device and in to it, straight or not: a slot whose checksum differs is at fault alone."""
    arena.reserve(0)
    arena.map(Map(0, 0, (0, 1)))
    data = write(arena, 0, 0, 3)
    good = [crc32c(data[:FRAME]), crc32c(data[FRAME:])]
    for source, target in (
        (device(0, 1), host(0, 1)), (device(0, 1), disk(0, 1)), (host(0, 1), device(4, 5)),
        (disk(0, 1), device(6, 7)),
    ):  # fmt: skip
        done = carry_out(tiers, source, target, (good[0], good[1] ^ 1))
        assert [fault.index for fault in done.faults] == [1], (source, target)
        assert "checksum" in done.faults[0].message
        assert done.faults[0].is_source
        assert not carry_out(tiers, source, target, tuple(good)).faults


@pytest.fixture
def on_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiers]:
    """Tiers of the stand-in alone."""
    monkeypatch.setattr(device_copies, "BUFFER_BYTES", 2 * FRAME)
    arena = open_arena("cuda")
    yield Tiers(arena, 8 * FRAME, 8 * FRAME, str(tmp_path))
    load_fake().reset()


def test_a_copy_that_the_driver_refuses_is_at_fault_alone(on_stand_in: Tiers) -> None:
    """Its slots name the call; copies beside it, and later ones, are good."""
    fake, tiers = load_fake(), on_stand_in
    fake.fail("cuMemcpyDtoHAsync_v2", OUT_OF_MEMORY, after=1)  # of three pieces the second one
    done = carry_out(tiers, device(0, 1, 2, 3, 4), disk(0, 1, 2, 3, 4))
    assert [fault.index for fault in done.faults] == [2, 3]
    assert [bool(checksum) for checksum in done.checksums] == [True, True, False, False, True]
    assert done.faults[0].message == (
        "device slot 2 to disk slot 2: cuMemcpyDtoHAsync_v2: CUDA_ERROR_OUT_OF_MEMORY"
    )
    assert not carry_out(tiers, device(0, 1, 2, 3, 4), disk(0, 1, 2, 3, 4)).faults


def test_a_device_that_is_beyond_use_is_no_fault_of_a_slot(on_stand_in: Tiers) -> None:
    """The driver has to end: neither is it told to go on, nor are slots blamed."""
    load_fake().fail("cuMemcpyDtoHAsync_v2", ILLEGAL_ADDRESS)
    with pytest.raises(CudaFault, match="ILLEGAL_ADDRESS"):
        carry_out(on_stand_in, device(0), host(0))
    with pytest.raises(CudaFault, match="ILLEGAL_ADDRESS"):
        on_stand_in.begin(Copy(8, device(1), host(1)))


def test_many_copies_share_a_few_buffers(on_stand_in: Tiers) -> None:
    """More pieces than there are buffers, both ways at once: each copy ends once, with its own bits."""
    tiers, arena = on_stand_in, on_stand_in.arena
    arena.reserve(0)
    pages = []
    for vpn in range(NUM_PAGES):
        arena.map(Map(0, vpn, (2 * vpn, 2 * vpn + 1)))
        pages.append(write(arena, 0, vpn, vpn + 1))
    for frame in range(8):
        assert tiers.begin(Copy(frame, device(frame), disk(frame))) is None
    assert tiers.begin(Copy(8, device(*range(8)), host(*range(8)))) is None
    assert tiers.num_running == 9
    tiers.wait()
    assert sorted(done.id for done in tiers.collect()) == list(range(9))
    tiers.begin(Copy(9, disk(*range(8)), device(*range(8, 16))))
    tiers.wait()
    assert [done.faults for done in tiers.collect()] == [()]
    for vpn in range(NUM_PAGES):
        arena.map(Map(0, vpn, (8 + 2 * vpn, 9 + 2 * vpn)))
        assert read(arena, 0, vpn) == pages[vpn]
    tiers.close()
    close(arena)
