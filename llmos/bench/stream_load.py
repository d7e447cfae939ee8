"""Many streams of a gateway at once, read by one plain loop: when each token came, and whether it was right.

The clients of a server are on other machines, and here they share its processors. So the loop does little
while tokens come: it looks at all sockets once a millisecond, which makes a token that late at most, and
reads what was said only when nobody says more.
"""

from __future__ import annotations

import gc
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

RECEIVE_BYTES = 64 << 10
LOOK_SECONDS = 0.001  # between two looks at the sockets
PARSED_AT_ONCE = 16  # pieces between two looks


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
    arrivals: list[float] = attrs.field(factory=list)  # of each token
    times: list[float] = attrs.field(factory=list)  # when the device had each
    is_done: bool = False  # [DONE] came
    failure: str = ""
    _rest: bytes = b""

    def feed(self, at: float, data: bytes) -> None:
        """Take bytes that came at a time; heads and lengths of chunks are passed over."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                self._take(at, _decoder.decode(line[6:]))
            elif line.startswith(b"data: [DONE]"):
                self.is_done = True
            elif line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
                self.failure = line.decode("latin-1").strip()

    def _take(self, at: float, chunk: Chunk) -> None:
        if chunk.error is not None:
            self.failure = chunk.error.message
        if chunk.prompt_token_ids is not None:
            self.prompt = chunk.prompt_token_ids
        for choice in chunk.choices:
            self.tokens += choice.token_ids
            self.arrivals += [at] * len(choice.token_ids)
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
    """

    url: str
    num_streams: int
    ramp_seconds: float = 0.0
    lengths: tuple[int, int] = (64, 384)
    on_second: Callable[[float], None] = lambda now: None
    finished: list[Stream] = attrs.field(factory=list)
    _poll: select.epoll = attrs.field(factory=select.epoll)
    _slots: dict[int, _Slot] = attrs.field(factory=dict)  # by descriptor
    _backlog: deque[tuple[_Slot, float, bytes]] = attrs.field(factory=deque)
    _is_over: bool = False
    _random: random.Random = attrs.field(factory=lambda: random.Random(0))
    _to_begin: deque[tuple[float, _Slot]] = attrs.field(factory=deque)  # when, and what

    def run(self, seconds: float) -> None:
        """Load for so long; then no new stream begins, and those that are open are read to their ends."""
        gc.disable()  # it would stop the clock's reader for milliseconds
        try:
            began = second = time.time()
            over_at = began + seconds
            for number in range(self.num_streams):
                self._to_begin.append((began + self.ramp_seconds * number / self.num_streams, _Slot(number)))
            while self._slots or self._backlog or self._to_begin:
                now = time.time()
                while self._to_begin and self._to_begin[0][0] <= now:
                    self._begin(self._to_begin.popleft()[1])
                self._is_over = now >= over_at
                if now >= second:
                    self.on_second(now)
                    second += 1.0
                time.sleep(LOOK_SECONDS)
                if self._receive():
                    continue
                for _ in range(min(PARSED_AT_ONCE, len(self._backlog))):
                    self._parse(*self._backlog.popleft())
        finally:
            gc.enable()
            self._poll.close()
            for slot in self._slots.values():
                assert slot.raw is not None
                slot.raw.close()

    def _begin(self, slot: _Slot) -> None:
        address = urlsplit(self.url)
        num_tokens = self._random.randint(*self.lengths)
        slot.stream = Stream(num_tokens, time.time())
        slot.raw = socket.create_connection((address.hostname or "", address.port or 80))
        slot.raw.sendall(make_request(address.netloc, slot.number, slot.num_begun, num_tokens))
        slot.raw.setblocking(False)
        slot.num_begun += 1
        self._slots[slot.raw.fileno()] = slot
        self._poll.register(slot.raw.fileno(), select.EPOLLIN)

    def _receive(self) -> bool:
        """Take what there is; False: nothing."""
        ready = self._poll.poll(0)
        for descriptor, _ in ready:
            slot = self._slots[descriptor]
            assert slot.raw is not None
            try:
                data = slot.raw.recv(RECEIVE_BYTES)
            except ConnectionResetError:
                data = b""
            self._backlog.append((slot, time.time(), data))
            if not data:
                self._poll.unregister(descriptor)
                del self._slots[descriptor]
                slot.raw.close()
        return bool(ready)

    def _parse(self, slot: _Slot, at: float, data: bytes) -> None:
        assert slot.stream is not None
        if data:
            slot.stream.feed(at, data)
            return
        self.finished.append(slot.stream)
        if not self._is_over:
            self._begin(slot)
