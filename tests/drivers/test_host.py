"""A real driver process over a socketpair, with a tiny random checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_zoo import Memory, load_model, save_checkpoint

from drivers.link import KernelLink, LinkError
from llmos.device import (
    DRIVER_ABI,
    LENGTH,
    Bind,
    Copy,
    CopyDone,
    Edit,
    Failed,
    FromDriver,
    Hello,
    KVFormat,
    Load,
    Loaded,
    Map,
    Place,
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

ROOT = Path(__file__).parents[2]
PROMPT = tuple((7 * i + 3) % 131 for i in range(45))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of three layers."""
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(folder, "LlamaForCausalLM")
    return folder


class Driver:
    """The kernel's end of a driver process, blocking."""

    def __init__(self, *options: str) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(60)
        with theirs:
            command = [sys.executable, "-m", "drivers.host", "--fd", str(theirs.fileno()), *options]
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env=os.environ | {"LLMOS_DEBUG": "1"},
            )

    def send(self, message: ToDriver) -> None:
        """Send one message."""
        self.sock.sendall(encode_message(message))

    def receive(self) -> FromDriver:
        """Wait for the next message. Raises EOFError."""
        (size,) = LENGTH.unpack(self._read(LENGTH.size))
        return from_driver_decoder.decode(self._read(size))

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self.sock.recv(size - len(data))):
                raise EOFError
            data += more
        return data

    def load(self, path: Path, **changes: object) -> Loaded | Failed:
        """Load, and see that progress ends with everything."""
        values: dict[str, object] = {
            "path": str(path), "name": "tiny", "weights": "fp32", "kv": "auto",
            "pool_bytes": 1 << 20, "frame_bytes": 1 << 14, "max_spaces": 4, "max_model_len": 128,
            "max_step_tokens": 64,
        }  # fmt: skip
        self.send(Load(**(values | changes)))  # type: ignore[arg-type]
        last = None
        while isinstance(answer := self.receive(), Progress):
            last = answer
        assert isinstance(answer, Loaded | Failed)
        if isinstance(answer, Loaded):
            assert last is not None
            assert last.done_bytes == last.total_bytes > 0
        return answer

    def step(self, edits: tuple[Edit, ...] = (), rows: tuple[Row, ...] = ()) -> StepDone:
        """Run one step."""
        self.send(Step(1, edits, rows))
        answer = self.receive()
        assert isinstance(answer, StepDone)
        return answer

    def wait(self) -> int:
        """Wait for the process to end; returns its exit code."""
        return self.process.wait(timeout=120)

    def close(self) -> str:
        """Close the line, wait, and return what was written to stderr."""
        self.sock.close()
        _, errors = self.process.communicate(timeout=120)
        return errors


@pytest.fixture(scope="module")
def shared_driver() -> Iterator[Driver]:
    """One driver for the tests that leave it whole; each loads anew."""
    driver = open_driver()
    yield driver
    driver.close()


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A driver of one's own, that has said Hello."""
    driver = open_driver()
    yield driver
    driver.close()


def open_driver() -> Driver:
    """Start a driver and read its Hello."""
    driver = Driver("--kind", "cpu", "--name", "cpu:0", "--threads", "1")
    hello = driver.receive()
    assert isinstance(hello, Hello)
    assert (hello.abi, hello.kind, hello.name, hello.num_threads) == (DRIVER_ABI, "cpu", "cpu:0", 1)
    assert hello.os_pid == driver.process.pid
    assert hello.memory_bytes > 1 << 28
    return driver


def pages(asid: int, num_tokens: int, kv: KVFormat, first: int = 0) -> tuple[Edit, ...]:
    """Open a space and map enough pages, from frames `first` on, K and V apart."""
    count = kv.num_pages(num_tokens)
    return (
        Reserve(asid), *(Map(asid, vpn, (first + vpn, first + count + vpn)) for vpn in range(count))
    )  # fmt: skip


def expected_tokens(checkpoint: Path, num_tokens: int) -> tuple[int, ...]:
    """What the model says when it is run here, without a driver."""

    model = load_model(checkpoint, max_model_len=128)
    return tuple(Memory(model).generate(PROMPT, num_tokens)[0])


def test_a_driver_serves_and_stops(driver: Driver, checkpoint: Path) -> None:
    """Chunked prefill, decode rows sent before their token is known, then a polite stop with exit code 0."""
    loaded = driver.load(checkpoint)
    assert isinstance(loaded, Loaded)
    assert (loaded.model.vocab_size, loaded.model.max_model_len) == (131, 128)
    assert (loaded.kv.frame_bytes, loaded.num_frames) == (1 << 14, 64)
    assert loaded.kv.tokens_per_page < 45  # the prompt crosses pages
    bind = Bind(0, Sampling(logprobs=2), PROMPT, len(PROMPT))
    driver.send(Step(1, pages(0, 60, loaded.kv), (Row(0, 0, PROMPT[:20], False),)))
    driver.send(Step(2, (bind,), (Row(0, 20, PROMPT[20:], True),)))
    for i in range(7):
        driver.send(Step(3 + i, (), (Row(0, 45 + i, (), True),)))
    answers = [driver.receive() for _ in range(9)]
    assert [answer.id for answer in answers if isinstance(answer, StepDone)] == list(range(1, 10))
    done = [answer for answer in answers if isinstance(answer, StepDone)]
    assert not any(answer.faults for answer in done)
    assert done[0].tokens == (None,)
    tokens = tuple(answer.tokens[0] for answer in done[1:])
    assert tokens == expected_tokens(checkpoint, 8)
    for answer in done[1:]:
        assert answer.logprobs[0] is not None
        assert answer.logprobs[0].top_ids[0] == answer.tokens[0]
    assert all(answer.seconds > 0 for answer in done)
    driver.send(StopDriver())
    assert driver.wait() == 0


def test_failures_stay_where_they_are(shared_driver: Driver, checkpoint: Path) -> None:
    """A bad row faults alone and by name, however wrong it is; its neighbour's tokens are not disturbed."""
    loaded = shared_driver.load(checkpoint)
    assert isinstance(loaded, Loaded)
    edits = (*pages(0, 60, loaded.kv), Bind(0, Sampling(), PROMPT, 45))
    expected = expected_tokens(checkpoint, 8)
    good = shared_driver.step(edits, (Row(0, 0, PROMPT, True),))
    assert good.tokens == expected[:1]
    bad: list[tuple[tuple[Edit, ...], Row, str]] = [
        ((), Row(3, 0, (1,), True), "needs 1 pages, and 0 are mapped"),
        ((Reserve(1),), Row(1, 0, (), True), "no sampled token for position 0"),
        ((), Row(1, 0, (131,), True), "outside the vocabulary of 131"),
        ((), Row(1, 128, (1,), True), "context of 128"),
        ((Map(1, 0, (20, 64)),), Row(1, 0, (1,), True), "frame 64 is outside the 64"),
        ((Release(1), *pages(1, 8, loaded.kv, 20)), Row(1, 0, (1,), True), "no sampling parameters"),
    ]
    for position, (bad_edits, row, named) in enumerate(bad, 45):
        done = shared_driver.step(bad_edits, (row, Row(0, position, (), True)))
        assert done.tokens == (None, expected[position - 44])
        assert [fault.row for fault in done.faults] == [0]
        assert named in done.faults[0].message
    twice = shared_driver.step((), (Row(0, 51, (), True), Row(0, 51, (expected[6],), True)))
    assert [fault.message for fault in twice.faults] == ["space 0 has two rows in one step"]
    after = shared_driver.step((), (Row(0, 52, (), True),))
    assert "no sampled token" in after.faults[0].message
    copied = shared_driver.step((Bind(1, Sampling(), (1,), 1),), (Row(1, 0, (1,), True),))
    assert copied.faults == ()


def test_copies_run_beside_steps(shared_driver: Driver, checkpoint: Path) -> None:
    """Answers to copies come when they have ended, between those to steps, and disturb no token."""
    loaded = shared_driver.load(checkpoint, host_bytes=1 << 20, disk_bytes=1 << 20)
    assert isinstance(loaded, Loaded)
    assert (loaded.num_host_slots, loaded.num_disk_slots) == (64, 64)
    expected = expected_tokens(checkpoint, 8)
    edits = (*pages(0, 60, loaded.kv), Bind(0, Sampling(), PROMPT, 45))
    shared_driver.send(Step(1, edits, (Row(0, 0, PROMPT, True),)))
    count = 2 * loaded.kv.num_pages(60)
    frames, slots = tuple(range(count)), tuple(range(count))
    shared_driver.send(Copy(100, Place("device", frames), Place("host", slots)))
    for i in range(7):
        shared_driver.send(Step(2 + i, (), (Row(0, 45 + i, (), True),)))
    answers = [shared_driver.receive() for _ in range(9)]
    done = [answer for answer in answers if isinstance(answer, StepDone)]
    assert tuple(answer.tokens[0] for answer in done) == expected
    (copied,) = (answer for answer in answers if isinstance(answer, CopyDone))
    assert (copied.id, copied.faults) == (100, ())

    # what left behind the prompt is what the prompt left: a space of other frames goes on from there
    shared_driver.send(Copy(101, Place("host", slots), Place("disk", slots)))
    out = shared_driver.receive()
    assert isinstance(out, CopyDone)
    assert len(out.checksums) == count
    shared_driver.send(
        Copy(102, Place("disk", slots), Place("device", tuple(f + 20 for f in frames)), out.checksums)
    )
    back = shared_driver.receive()
    assert isinstance(back, CopyDone)
    assert back.faults == ()
    edits = (*pages(1, 60, loaded.kv, 20), Bind(1, Sampling(), (*PROMPT, expected[0]), 45))
    assert shared_driver.step(edits, (Row(1, 45, expected[:1], True),)).tokens == expected[1:2]
    shared_driver.send(Copy(103, Place("host", (0, 64)), Place("device", (0, 1))))
    wrong = shared_driver.receive()
    assert isinstance(wrong, CopyDone)
    assert [(fault.index, fault.message) for fault in wrong.faults] == [
        (1, "host slot 64 is outside the 64 there are")
    ]


@pytest.mark.parametrize("ending", ["stop", "load"])
def test_copies_end_before_what_takes_their_memory(driver: Driver, checkpoint: Path, ending: str) -> None:
    """A stop and a load wait for the copies sent before, and these are answered."""
    assert isinstance(driver.load(checkpoint, host_bytes=1 << 20, copy_piece_bytes=16), Loaded)
    for i in range(20):
        driver.send(Copy(i, Place("device", (i, i + 20)), Place("host", (i, i + 20))))
    if ending == "stop":
        driver.send(StopDriver())
        answers = [driver.receive() for _ in range(20)]
        assert driver.wait() == 0
    else:
        driver.send(Load(str(checkpoint / "nowhere"), "tiny", "fp32", "auto", 1 << 20, 1 << 14, 4, 128, 64))
        answers = [driver.receive() for _ in range(21)]
        assert isinstance(answers.pop(), Failed)
    assert sorted(answer.id for answer in answers if isinstance(answer, CopyDone)) == list(range(20))
    assert not any(answer.faults for answer in answers if isinstance(answer, CopyDone))


def test_a_refused_load_names_the_folder_and_leaves_a_driver_that_works(
    shared_driver: Driver, checkpoint: Path, tmp_path: Path
) -> None:
    """Bad paths and limits are Failed with the name of the thing; the next load is good."""
    for path, changes, named in (
        (tmp_path / "nowhere", {}, str(tmp_path / "nowhere")),
        (tmp_path, {}, "config.json"),
        (checkpoint, {"weights": "fp8"}, "fp8"),
        (checkpoint, {"max_model_len": 100_000}, "100000"),
        (checkpoint, {"frame_bytes": 64}, "cannot hold one token"),
        (checkpoint, {"frame_bytes": 5000}, "not a multiple"),
        (checkpoint, {"pool_bytes": 20_000}, "too small"),
        (checkpoint, {"disk_bytes": 1 << 20, "disk_folder": str(tmp_path / "nowhere")}, "nowhere"),
    ):
        answer = shared_driver.load(path, **changes)
        assert isinstance(answer, Failed), changes
        assert named in answer.message
    assert isinstance(shared_driver.load(checkpoint), Loaded)


def test_memory_is_chosen_when_nobody_says_how_much(shared_driver: Driver, checkpoint: Path) -> None:
    """Without sizes, the pool holds every space at its longest or a share of memory, and fits."""
    loaded = shared_driver.load(checkpoint, pool_bytes=None, frame_bytes=None)
    assert isinstance(loaded, Loaded)
    assert loaded.num_frames == 4 * loaded.kv.num_pages(128) * 2
    large = shared_driver.load(checkpoint, pool_bytes=16 << 30, frame_bytes=None)
    assert isinstance(large, Loaded)
    assert large.kv.frame_bytes > loaded.kv.frame_bytes
    assert large.num_frames == (16 << 30) // large.kv.frame_bytes


def test_the_end_of_the_line_ends_the_driver(driver: Driver) -> None:
    """When the kernel dies, so does its driver, in peace; a Ctrl-C alone does not end it."""
    os.kill(driver.process.pid, signal.SIGINT)
    driver.sock.shutdown(socket.SHUT_WR)
    assert driver.wait() == 0


@pytest.mark.parametrize(
    ("garbage", "named"),
    [
        (LENGTH.pack(1 << 30), "1073741824 bytes; the limit"),
        (LENGTH.pack(3) + b"\xc1\xc1\xc1", "undecodable message of 3 bytes"),
    ],
)
def test_garbage_ends_the_driver_with_a_word(driver: Driver, garbage: bytes, named: str) -> None:
    """What is no message ends the driver with code 2 and the reason on stderr."""
    driver.sock.sendall(garbage)
    assert driver.wait() == 2
    assert named in driver.close()


def test_kill_is_seen_as_the_end_of_the_stream(driver: Driver, checkpoint: Path) -> None:
    """After SIGKILL the kernel reads EOF, with steps in flight too."""
    loaded = driver.load(checkpoint)
    assert isinstance(loaded, Loaded)
    driver.send(Step(1, pages(0, 60, loaded.kv), (Row(0, 0, PROMPT, False),)))
    driver.process.kill()
    with contextlib.suppress(ConnectionResetError):
        while driver.sock.recv(1 << 16):
            pass
    assert driver.wait() == -signal.SIGKILL


def test_the_link_splits_messages_and_notices_the_end() -> None:
    """Messages arrive whole however the stream is cut, and a stream that ends in one is an end."""
    ours, theirs = socket.socketpair()
    with ours:
        link = KernelLink(theirs)
        data = encode_message(Step(1, (Reserve(0),), ())) + encode_message(StopDriver())
        ours.sendall(data[:7])
        ours.sendall(data[7:])
        assert link.receive() == Step(1, (Reserve(0),), ())
        assert link.receive() == StopDriver()
        ours.sendall(encode_message(StopDriver()) + data[:9])
        assert link.receive() == StopDriver()
        ours.shutdown(socket.SHUT_WR)
        assert link.receive() is None
        link.close()


def test_the_link_refuses_a_length_before_it_reads_the_payload() -> None:
    """A huge length is an error at once: nobody waits for the bytes."""
    ours, theirs = socket.socketpair()
    with ours:
        link = KernelLink(theirs)
        ours.sendall(LENGTH.pack(0xFFFFFFFF))
        with pytest.raises(LinkError, match="4294967295"):
            link.receive()
    assert not link.send(Failed("nobody reads this"))
    link.close()
