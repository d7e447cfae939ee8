"""The copy desk: copies that are begun and answered while a step runs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers import copy_desk
from drivers.copy_desk import CopyDesk
from drivers.host_arena import HostArena
from drivers.link import KernelLink, LinkError
from drivers.tiers import Tiers
from llmos.device import (
    LENGTH,
    Copy,
    CopyDone,
    FromDriver,
    KVFormat,
    Place,
    Segment,
    Step,
    encode_message,
    from_driver_decoder,
)  # fmt: skip

KV = KVFormat("bf16", (Segment("K", 64), Segment("V", 64)), 4096, 64)
NUM_PAGES = 4
Wait = Literal["nothing", "last", "this", "all"]  # the steps that a copy waits for, of those before it


class CopyingEngine:
    """The part of an engine that copies, over real memory; there is no model."""

    steps_hold_up = True

    def __init__(self) -> None:
        self.arena = HostArena(KV, num_frames=2 * NUM_PAGES, max_spaces=2, pages_per_space=2)
        self.tiers = Tiers(self.arena, host_bytes=128 * KV.frame_bytes)

    def copy_fds(self) -> tuple[int, ...]:
        return (self.tiers.fileno(),)

    def begin_copies(self, copies: list[Copy]) -> list[CopyDone]:
        done = [refused for copy in copies if (refused := self.tiers.begin(copy)) is not None]
        self.tiers.finish_small()
        return [*done, *self.tiers.collect()]


@contextmanager
def open_desk() -> Iterator[tuple[CopyDesk, KernelLink, socket.socket, CopyingEngine]]:
    """A desk, and the kernel's end of its line."""
    kernel, theirs = socket.socketpair()
    kernel.settimeout(120)
    engine = CopyingEngine()
    with kernel, theirs, pytest.MonkeyPatch.context() as patch:
        patch.setattr(copy_desk, "QUIET_SECONDS", 3600.0)  # however late a busy machine comes to the next
        link = KernelLink(theirs)
        desk = CopyDesk(link, engine)  # type: ignore[arg-type]
        try:
            yield desk, link, kernel, engine
        finally:
            desk.close()
            engine.tiers.close()
            engine.arena.close()


def receive(kernel: socket.socket) -> FromDriver:
    """The next answer; waits."""
    (size,) = LENGTH.unpack(receive_all(kernel, LENGTH.size))
    return from_driver_decoder.decode(receive_all(kernel, size))


def receive_all(kernel: socket.socket, num_bytes: int) -> bytes:
    """So many bytes, in however many pieces they come."""
    data = b""
    while len(data) < num_bytes:
        more = kernel.recv(num_bytes - len(data))
        assert more
        data += more
    return data


def copy_out(id: int, after: int | None) -> bytes:
    """A copy of the first page to the host area."""
    return encode_message(Copy(id, Place("device", (0, 1)), Place("host", (0, 1)), after=after))


def copy_in(id: int, after: int | None) -> bytes:
    """A copy of it back to another page."""
    return encode_message(Copy(id, Place("host", (0, 1)), Place("device", (4, 5)), after=after))


def test_copies_end_while_a_step_runs() -> None:
    """Out and in again before the step is over; what must wait for it keeps its place before the next."""
    with open_desk() as (desk, link, kernel, engine):
        memory = memoryview(engine.arena.memory).cast("B")
        memory[: 2 * KV.frame_bytes] = bytes(range(256)) * (2 * KV.frame_bytes // 256)
        desk.note_copy()
        for step_id in (5, 7):
            with desk.open(step_id):  # the step: it ends when the kernel has its answers
                kernel.sendall(encode_message(Step(step_id + 1, (), ())) + copy_in(3, after=step_id))
                kernel.sendall(copy_out(1, after=0))
                assert receive(kernel).id == 1  # type: ignore[union-attr]
                kernel.sendall(copy_in(2, after=step_id - 1))
                assert receive(kernel).id == 2  # type: ignore[union-attr]
            page = slice(4 * KV.frame_bytes, 6 * KV.frame_bytes)
            assert memory[page] == memory[: 2 * KV.frame_bytes]
            memory[page] = bytes(2 * KV.frame_bytes)
            assert link.receive() == Step(step_id + 1, (), ())
            assert [done.id for done in desk.begin_copies(step_id + 1)] == [3]
            assert memory[page] == memory[: 2 * KV.frame_bytes]
        memory.release()


COPIES = st.lists(
    st.tuples(st.integers(0, NUM_PAGES - 1), st.sampled_from(["nothing", "last", "this", "all"])), max_size=4
)


@given(plan=st.lists(st.tuples(st.integers(0, NUM_PAGES - 1), COPIES), max_size=8))
def test_each_copy_sees_the_steps_that_it_waits_for(plan: list[tuple[int, list[tuple[int, Wait]]]]) -> None:
    """Steps fill pages while copies of pages come: a copy has what was there after the steps it waits for.

    Those that need not wait for a step are answered while it runs, and no others; threads end, and
    descriptors are closed.
    """
    before = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    with open_desk() as (desk, link, kernel, engine):
        memory = memoryview(engine.arena.memory).cast("B")
        pages = [0] * NUM_PAGES  # what each is filled with: the model
        expected: dict[int, int] = {}  # by copy, whose slots are its own
        desk.note_copy()
        for step_id, (written, copies) in enumerate(plan, 1):
            early, late = [], []
            with desk.open(step_id):
                after = {"nothing": 0, "last": step_id - 1, "this": step_id, "all": None}
                for page, wait in copies:
                    id = len(expected)
                    is_early = wait in ("nothing", "last")
                    (early if is_early else late).append(id)
                    expected[id] = step_id if page == written and not is_early else pages[page]
                    source, target = (
                        Place("device", (2 * page, 2 * page + 1)),
                        Place("host", (2 * id, 2 * id + 1)),
                    )
                    kernel.sendall(encode_message(Copy(id, source, target, after=after[wait])))
                assert sorted(receive(kernel).id for _ in early) == early  # type: ignore[union-attr]
                frames = slice(2 * written * KV.frame_bytes, (2 * written + 2) * KV.frame_bytes)
                memory[frames] = bytes([step_id]) * (2 * KV.frame_bytes)
                pages[written] = step_id
            done = [each.id for each in desk.begin_copies(step_id + 1)]
            while len(done) + engine.tiers.num_running < len(late):
                copy = link.receive()  # one that waits for all that came before it
                assert isinstance(copy, Copy)
                assert copy.after is None
                done += [each.id for each in engine.begin_copies([copy])]
            engine.tiers.wait()
            done += [each.id for each in engine.tiers.collect()]
            assert sorted(done) == late
        for id, value in expected.items():
            source, target = Place("host", (2 * id, 2 * id + 1)), Place("device", (0, 1))
            engine.begin_copies([Copy(id, source, target)])
            engine.tiers.wait()
            engine.tiers.collect()
            assert set(memory[: 2 * KV.frame_bytes]) == {value}
        memory.release()
    assert set(threading.enumerate()) <= before[0]  # idle threads of other tests may end meanwhile
    assert len(os.listdir("/proc/self/fd")) == before[1]


def test_nobody_listens_where_nothing_is_copied() -> None:
    """Without a copy lately, a copy waits for the step, and for no other one behind it."""
    with open_desk() as (desk, link, kernel, _):
        with desk.open(5):
            kernel.sendall(encode_message(Step(6, (), ())) + copy_out(1, after=4))
            assert desk._thread is None
        assert link.receive() == Step(6, (), ())
        assert [done.id for done in desk.begin_copies(6)] == [1]
        with desk.open(6):
            kernel.sendall(copy_out(2, after=5))
            assert receive(kernel).id == 2  # type: ignore[union-attr]


def test_copies_in_turn_wait_for_theirs() -> None:
    """One without `after` is left to the driver, behind the step that came before it."""
    with open_desk() as (desk, link, kernel, _):
        desk.note_copy()
        with desk.open(5):
            kernel.sendall(copy_out(1, after=None) + copy_out(2, after=4))
            assert receive(kernel).id == 2  # type: ignore[union-attr]
        waiting = link.receive()
        assert isinstance(waiting, Copy)
        assert waiting.id == 1


def test_garbage_and_a_kernel_that_is_gone_are_for_the_driver() -> None:
    """What came while the step ran is raised when it is over; the end of the line is for `receive`."""
    with open_desk() as (desk, link, kernel, _):
        desk.note_copy()
        with desk.open(5):
            kernel.shutdown(socket.SHUT_WR)
        assert link.receive() is None
    with open_desk() as (desk, _, kernel, _):
        desk.note_copy()
        with pytest.raises(LinkError, match="3 bytes"), desk.open(5):  # noqa: PT012 - the step is the block
            kernel.sendall(b"\3\0\0\0abc")
            assert desk._thread is not None
            desk._thread.join(120)
