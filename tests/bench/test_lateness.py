"""How late tokens are, and at which door: stamps of the system, the kernel's own door, and the sums."""

from __future__ import annotations

import select
import socket
import time

import pytest

from drivers.builtin import base_path
from llmos.bench.arrival_stamp import ask_for_stamps, receive
from llmos.bench.lateness import (
    Lateness,
    Spells,
    add_lateness_rows,
    due_times,
    explain_difference,
    find_lateness,
)
from llmos.bench.report import Report
from llmos.bench.server import running_server
from llmos.bench.socket_door import SocketDoor, Told
from llmos.bench.stream_load import Stream
from syscalls.sync import SyncClient
from syscalls.text.tokenizer import TextModel

NUM_TOKENS = 24


def test_the_system_tells_when_bytes_came() -> None:
    """Not after we saw that they are there; and nothing is told of a socket that has no such clock."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with ours, theirs:
        ask_for_stamps(ours)
        theirs.sendall(b"token")
        select.select([ours], [], [])
        seen = time.time()
        data, came_at = receive(ours, 100)
        assert data == b"token"
        assert came_at is None or came_at <= seen + 0.001  # one clock, told in two ways
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ask_for_stamps(ours)
        theirs.sendall(b"token")
        assert receive(ours, 100) == (b"token", None)


def test_the_door_tells_all_tokens_but_the_last() -> None:
    """Others are told that one, and reap; where only that one is left, nobody is followed."""
    options = ("--device", "sim", "--sim-step-ms", "0")
    with running_server(*options, gateway=False) as server, SyncClient(server.socket_path) as client:
        door = SocketDoor(server.socket_path)
        try:
            (pid,) = client.spawn([5, 6, 7], max_tokens=NUM_TOKENS, ignore_eos=True).pids
            tokens: list[int] = []
            while len(tokens) < 2:
                tokens += client.read(pid, len(tokens)).tokens
            told = door.told(pid)
            door.follow(pid, 2, NUM_TOKENS)
            while len(told.tokens) < NUM_TOKENS - 3:
                door.feed(7.0, door.receive())
            while len(tokens) < NUM_TOKENS:
                tokens += client.read(pid, len(tokens)).tokens
            assert told.tokens == dict(enumerate(tokens[2:-1], 2))
            assert set(told.arrivals.values()) == {7.0}
            door.unfollow()
            assert not told.is_followed
            door.follow(pid, NUM_TOKENS - 1, NUM_TOKENS)
            assert not told.is_followed
        finally:
            door.close()


@pytest.fixture(scope="module")
def text() -> TextModel:
    """Of the built-in model."""
    return TextModel.open(base_path())


def make_stream(text: TextModel) -> Stream:
    """Forty tokens, one in 100 ms, each with a whole character, 5 ms late and read after 2 more."""
    token = next(token for token in range(100, 400) if text.decoder(continues=True).push_one(token))
    times = [1000 + 0.1 * place for place in range(40)]
    return Stream(
        40, 0.0, tokens=[token] * 40, pid=3, times=times,
        arrivals=[at + 0.005 for at in times], reads=[at + 0.007 for at in times],
    )  # fmt: skip


def test_each_token_counts_at_the_door_that_was_measured(text: TextModel) -> None:
    """Two seconds alone, two beside the socket's readers; the start of each does not count."""
    stream, spells = make_stream(text), Spells(1000.0, 1003.95, 2.0)
    told = Told(followed_at=1002.05, tokens=dict.fromkeys(range(20, 38), stream.tokens[0]))
    told.arrivals = {place: stream.times[place] + 0.004 for place in told.tokens}
    found = find_lateness([stream], text, spells, lambda pid: told if pid == 3 else Told())
    assert found.alone == pytest.approx([0.005] * 17)  # from 1000.3 on
    assert found.num_stamped == 17
    assert found.gateway == pytest.approx([0.007] * 14)  # from 1002.4 on, to the last that both were told
    assert found.socket == pytest.approx([0.004] * 14)
    assert explain_difference(stream, told) == ""
    told.tokens[21] += 1
    assert "token 21" in explain_difference(stream, told)
    told.tokens = {40: 1}
    assert "token 40" in explain_difference(stream, told)


def test_what_is_told_beside_the_text_of_another_was_due_at_once(text: TextModel) -> None:
    """What if a token inside a character came before its character was whole, and was read behind that?"""
    tokens = list(text.encode("a\N{SLIGHTLY SMILING FACE}"))[1:]  # behind the start's mark
    decoder = text.decoder(continues=True)
    assert [bool(decoder.push_one(token)) for token in tokens[:2]] == [True, False]
    times = [100.0 + 0.05 * place for place in range(len(tokens))]
    stream = Stream(
        len(tokens), 99.0, tokens=tokens, times=times,
        arrivals=[times[1] + 0.005] * 2 + [times[-1] + 0.005] * (len(tokens) - 2),
        reads=[times[-1] + 0.01] * len(tokens),
    )  # fmt: skip
    assert due_times(stream, text) == times[:2] + times[-1:] * (len(tokens) - 2)


def test_what_the_gateway_adds_is_a_difference() -> None:
    """Between percentiles of the doors, and for each token by itself."""
    lateness = Lateness([0.001], [0.004, 0.008], [0.003, 0.002], num_stamped=0)
    report = Report("gateway")
    add_lateness_rows(report, "case", lateness)
    values = {row.metric: row.value for row in report.rows}
    assert values["P50 late, gateway, by the reader's clock"] == pytest.approx(1.0)
    assert values["P50 late, added by the gateway"] == pytest.approx(6.0 - 2.5)
    assert values["P99 of what the gateway adds to a token"] == pytest.approx(1 + 0.99 * 5)
    assert all(row.unit == "ms" and row.ratio > 0 for row in report.rows)
