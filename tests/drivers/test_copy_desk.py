"""The copy desk: copies that are begun and answered while a step runs."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

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


class CopyingEngine:
    """The part of an engine that copies, over real memory; there is no model."""

    steps_hold_up = True

    def __init__(self) -> None:
        self.arena = HostArena(KV, num_frames=8, max_spaces=2, pages_per_space=2)
        self.tiers = Tiers(self.arena, host_bytes=8 * KV.frame_bytes)

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
    kernel.settimeout(30)
    engine = CopyingEngine()
    with kernel, theirs:
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
    size = LENGTH.unpack(kernel.recv(LENGTH.size, socket.MSG_WAITALL))[0]
    return from_driver_decoder.decode(kernel.recv(size, socket.MSG_WAITALL))


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
            desk._thread.join(30)
