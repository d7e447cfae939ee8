"""Many streams of a gateway at once, read by one plain loop: when each token came, and whether it was right.

The clients of a server are on other machines, and here they share its processors. So the loop does little
while tokens come, and reads what was said only when nobody says more. When something came, the system tells
(`arrival_stamp`): then it is enough to receive when all tokens of a step are there. Where its own clock
counts, the loop looks once a millisecond, which makes a token that late at most. A stream that follows
another begins at a random moment of a step: who asks knows nothing of steps.
"""

from __future__ import annotations

import gc
import heapq
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

import attrs
import msgspec

from drivers.sim import SimModel
from llmos.bench.arrival_stamp import ask_for_stamps, receive
from llmos.bench.socket_door import SocketDoor

RECEIVE_BYTES = 64 << 10
LOOK_SECONDS = 0.001  # between two looks at the sockets, while the loop's own clock counts
STAMPED_LOOK_SECONDS = 0.006  # likewise, while the system's does
MAX_STAMPED_LOOKS = 4  # at more and more sockets that have something, before it is received
PARSED_AT_ONCE = 16  # pieces between two looks
PARSED_AT_ONCE_STAMPED = 256  # likewise
MAX_PAUSE_SECONDS = 0.05  # between a stream's end and the beginning of the next


class Delta(msgspec.Struct):
    """What a chunk adds to a message."""

    content: str | None = None


class ChunkChoice(msgspec.Struct):
    """A chunk's only choice."""

    finish_reason: str | None = None
    token_ids: list[int] = []
    token_times: list[float] = []


class Failure(msgspec.Struct):
    """An error in the middle of a stream."""

    message: str


class Chunk(msgspec.Struct):
    """A stream's event, as far as it is looked at."""

    choices: list[ChunkChoice] = []
    prompt_token_ids: list[int] | None = None
    error: Failure | None = None


_decoder = msgspec.json.Decoder(Chunk)


@attrs.define(eq=False)
class Stream:
    """One streamed answer."""

    num_wanted: int  # tokens
    asked_at: float  # Unix time, like all times here
    prompt: list[int] = attrs.field(factory=list)  # as the gateway says that it is
    tokens: list[int] = attrs.field(factory=list)
    arrivals: list[float] = attrs.field(factory=list)  # of each token, by the system's clock if it tells
    reads: list[float] = attrs.field(factory=list)  # when we received each
    times: list[float] = attrs.field(factory=list)  # when the device had each
    is_done: bool = False  # [DONE] came
    failure: str = ""
    pid: int = 0  # of its process, once the gateway has said so
    _rest: bytes = b""

    def feed(self, at: float, data: bytes, read_at: float | None = None) -> None:
        """Take bytes that came at a time, and were received at another; lengths of chunks are passed over."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._take(at, at if read_at is None else read_at, _decoder.decode(line[6:]))
            elif line.startswith(b"data: [DONE]"):
                self.is_done = True
            elif line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
                self.failure = line.decode("latin-1").strip()
            elif line.startswith(b"x-llmos-pid: "):
                self.pid = int(line[13:])

    def _take(self, at: float, read_at: float, chunk: Chunk) -> None:
        if chunk.error is not None:
            self.failure = chunk.error.message
        if chunk.prompt_token_ids is not None:
            self.prompt = chunk.prompt_token_ids
        for choice in chunk.choices:
            self.tokens += choice.token_ids
            self.arrivals += [at] * len(choice.token_ids)
            self.reads += [read_at] * len(choice.token_ids)
            self.times += choice.token_times

    def explain(self, model: SimModel) -> str:
        """What is wrong with it, as against what the simulated device must give; empty: nothing."""
        if self.failure or not self.is_done:
            return self.failure or "it was cut off"
        expected = model.expected_tokens(tuple(self.prompt), self.num_wanted)
        if tuple(self.tokens) != expected:
            return f"{len(self.tokens)} tokens that differ from the {len(expected)} expected"
        return ""


@attrs.define(eq=False)
class _Slot:
    """A place for one stream at a time."""

    number: int
    num_begun: int = 0
    raw: socket.socket | None = None
    stream: Stream | None = None


def make_request(host: str, slot: int, round_: int, num_tokens: int) -> bytes:
    """A chat that no other slot or round has; greedy, end tokens ignored."""
    body = msgspec.json.encode(
        {
            "messages": [{"role": "user", "content": f"Slot {slot}, round {round_}: count."}],
            "stream": True, "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True,
            "return_token_ids": True, "return_token_times": True,
        }
    )  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body


@attrs.define(eq=False, kw_only=True)
class StreamLoad:
    """Keeps so many streams open for a time.

    Args:
        url: of the gateway.
        num_streams: at once.
        ramp_seconds: in which they begin, one after the other.
        lengths: least and most tokens of an answer; drawn by a fixed seed.
        on_second: called once a second.
        door: of the kernel, through which the processes are followed as well.
        is_beside: true at times (Unix time) when they are.
    """

    url: str
    num_streams: int
    ramp_seconds: float = 0.0
    lengths: tuple[int, int] = (64, 384)
    on_second: Callable[[float], None] = lambda now: None
    door: SocketDoor | None = None
    is_beside: Callable[[float], bool] = lambda now: False
    finished: list[Stream] = attrs.field(factory=list)
    _poll: select.epoll = attrs.field(factory=select.epoll)
    _slots: dict[int, _Slot] = attrs.field(factory=dict)  # by descriptor
    # What was received and not yet read, where (None: at the door), when it came, and when we received it.
    _backlog: deque[tuple[_Slot | None, float, float, bytes]] = attrs.field(factory=deque)
    _is_following: bool = False
    _is_stamped: bool = False  # the system tells when bytes came
    _is_over: bool = False
    _random: random.Random = attrs.field(factory=lambda: random.Random(0))
    _to_begin: list[tuple[float, int, _Slot]] = attrs.field(factory=list)  # a heap: when, number, and what
    _num_ready: int = 0  # sockets that had something at the last look
    _num_looks: int = 0  # that found others ready than the look before

    def run(self, seconds: float) -> None:
        """Load for so long; then no new stream begins, and those that are open are read to their ends."""
        gc.disable()  # it would stop the clock's reader for milliseconds
        if self.door is not None:
            self._poll.register(self.door.raw.fileno(), select.EPOLLIN)
        try:
            began = second = time.time()
            over_at = began + seconds
            for number in range(self.num_streams):
                at = began + self.ramp_seconds * number / self.num_streams
                self._to_begin.append((at, number, _Slot(number)))
            while self._slots or self._backlog or self._to_begin:
                now = time.time()
                while self._to_begin and self._to_begin[0][0] <= now:
                    self._begin(heapq.heappop(self._to_begin)[-1])
                self._is_over = now >= over_at
                if now >= second:
                    self.on_second(now)
                    second += 1.0
                if self.door is not None and self._is_following != self.is_beside(now):
                    self._turn(self.door)
                is_patient = self._is_stamped and not self._is_following
                time.sleep(STAMPED_LOOK_SECONDS if is_patient else LOOK_SECONDS)
                if self._receive(is_patient=is_patient):
                    continue
                num_parsed = PARSED_AT_ONCE_STAMPED if is_patient else PARSED_AT_ONCE
                for _ in range(min(num_parsed, len(self._backlog))):
                    self._parse(*self._backlog.popleft())
        finally:
            gc.enable()
            self._poll.close()
            for slot in self._slots.values():
                assert slot.raw is not None
                slot.raw.close()

    def _turn(self, door: SocketDoor) -> None:
        """Begin to follow all processes at the door, or end it."""
        self._is_following = not self._is_following
        if not self._is_following:
            door.unfollow()
            return
        for slot in self._slots.values():
            self._follow(door, slot)

    def _follow(self, door: SocketDoor, slot: _Slot) -> None:
        stream = slot.stream
        if stream is not None and stream.pid:
            door.follow(stream.pid, len(stream.tokens), stream.num_wanted)

    def _begin(self, slot: _Slot) -> None:
        address = urlsplit(self.url)
        num_tokens = self._random.randint(*self.lengths)
        slot.stream = Stream(num_tokens, time.time())
        slot.raw = socket.create_connection((address.hostname or "", address.port or 80))
        slot.raw.sendall(make_request(address.netloc, slot.number, slot.num_begun, num_tokens))
        slot.raw.setblocking(False)
        ask_for_stamps(slot.raw)
        slot.num_begun += 1
        self._slots[slot.raw.fileno()] = slot
        self._poll.register(slot.raw.fileno(), select.EPOLLIN)

    def _receive(self, *, is_patient: bool) -> bool:
        """Take what there is, when patient only if there is no more than at the last look; False: nothing."""
        ready = self._poll.poll(0)
        if is_patient and len(ready) != self._num_ready and self._num_looks < MAX_STAMPED_LOOKS:
            self._num_ready = len(ready)
            self._num_looks += 1
            return True
        self._num_ready = self._num_looks = 0
        for descriptor, _ in ready:
            slot = self._slots.get(descriptor)
            if slot is None:
                assert self.door is not None
                data = self.door.receive()
                now = time.time()
                self._backlog.append((None, now, now, data))
                continue
            assert slot.raw is not None
            try:
                data, came_at = receive(slot.raw, RECEIVE_BYTES)
            except ConnectionResetError:
                data, came_at = b"", None
            now = time.time()
            self._is_stamped = self._is_stamped or came_at is not None
            self._backlog.append((slot, now if came_at is None else came_at, now, data))
            if not data:
                self._poll.unregister(descriptor)
                del self._slots[descriptor]
                slot.raw.close()
        return bool(ready)

    def _parse(self, slot: _Slot | None, at: float, read_at: float, data: bytes) -> None:
        if slot is None:
            assert self.door is not None
            self.door.feed(at, data)
            return
        assert slot.stream is not None
        if data:
            had_pid = bool(slot.stream.pid)
            slot.stream.feed(at, data, read_at)
            if self._is_following and self.door is not None and not had_pid:
                self._follow(self.door, slot)
            return
        self.finished.append(slot.stream)
        if not self._is_over:
            at = time.time() + self._random.uniform(0, MAX_PAUSE_SECONDS)
            heapq.heappush(self._to_begin, (at, slot.number, slot))
