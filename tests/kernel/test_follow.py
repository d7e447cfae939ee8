"""What if a process is followed by several, with any credit, and they leave, or it ends? All stays exact."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from llmos.kernel import follower, session
from llmos.kernel.follower import MAX_OUTPUT_TOKENS
from llmos.kernel.outbox import FRAMES_AT_ONCE
from llmos.params import MAX_GATHERED_BYTES
from llmos.proc.lifecycle import ProcState
from syscalls.client import Client
from syscalls.codec import Answer, ErrorReply, Request
from syscalls.errno import Errno, SyscallError
from syscalls.process import ExitStatus, Follow, Grant, Kill, Output, Read, Unfollow, Wait
from syscalls.sampling import Sampling
from syscalls.session import ClientSession
from syscalls.system import Done, Ping
from tests.kernel.harness import MODEL, RunningKernel, running_kernel, wait_until
from tests.kernel.test_tenants import two_tenants, write_tenants

PROMPT = (5, 6, 7)
NUM_TOKENS = 60
STORY = MODEL.expected_tokens(PROMPT, NUM_TOKENS)
MUCH = 2**40


@attrs.define
class RawClient:
    """A session whose frames are seen as they come, and taken when the test says so."""

    stream: trio.SocketStream
    session: ClientSession = attrs.field(factory=ClientSession)
    answers: dict[int, list[Answer]] = attrs.field(factory=dict)  # by call, in order of their arrival

    async def post(self, body: Request) -> int:
        """Make a call, and do not wait for an answer."""
        call_id, frame = self.session.encode_call(body)
        self.answers[call_id] = []
        await self.stream.send_all(frame)
        return call_id

    async def receive(self) -> None:
        """Take what has come, and wait for it when nothing has."""
        for call_id, answer in self.session.receive(await self.stream.receive_some(1 << 16)):
            self.answers[call_id].append(answer)

    async def call(self, body: Request) -> Answer:
        """Make a call and wait for its first answer."""
        call_id = await self.post(body)
        while not self.answers[call_id]:
            await self.receive()
        return self.answers[call_id][0]

    def tokens(self, call_id: int) -> tuple[int, ...]:
        """What a call was told, in the order of the answers."""
        outputs = [answer for answer in self.answers[call_id] if isinstance(answer, Output)]
        return sum((output.tokens for output in outputs), ())

    def last(self, call_id: int) -> Answer | None:
        """A call's last answer, where it has come."""
        answers = self.answers[call_id]
        if answers and (not isinstance(answers[-1], Output) or answers[-1].end is not None):
            return answers[-1]
        return None


@asynccontextmanager
async def open_raw(kernel: RunningKernel) -> AsyncIterator[RawClient]:
    """Connect, and say hello."""
    stream = await trio.open_unix_socket(kernel.socket_path)
    async with stream:
        raw = RawClient(stream)
        await stream.send_all(raw.session.encode_hello("raw"))
        while raw.session.welcome is None:
            await raw.receive()
        yield raw


@attrs.define
class Followed:
    """The model of one follow: what it may have been told is a piece of the story."""

    call_id: int
    offset: int
    until: int
    is_left: bool = False

    def check(self, raw: RawClient, output: tuple[int, ...]) -> None:
        """No token lost, doubled, swapped or past the credit; nothing behind the last answer."""
        told = raw.tokens(self.call_id)
        assert told == output[self.offset : self.offset + len(told)]
        assert self.offset + len(told) <= max(self.until, self.offset)
        outputs = [answer for answer in raw.answers[self.call_id] if isinstance(answer, Output)]
        position = self.offset
        for each in outputs:
            assert each.offset == position
            position += len(each.tokens)
        assert not any(each.end for each in outputs[:-1])

    def is_behind(self, raw: RawClient, output: tuple[int, ...]) -> bool:
        """Is there more that it has credit for?"""
        num_told = len(raw.tokens(self.call_id))
        return not self.is_left and self.offset + num_told < min(self.until, len(output))

    def check_whole(self, raw: RawClient, output: tuple[int, ...]) -> None:
        """With all the credit there is, whoever stayed was told all, and the end."""
        self.check(raw, output)
        if not self.is_left:
            assert self.offset + len(raw.tokens(self.call_id)) == len(output)
            last = raw.last(self.call_id)
            assert isinstance(last, Output)
            assert last.usage.num_output_tokens == len(output)


# Most of it ends a little behind where a follower is, in the middle of what there is or will be.
CREDIT = st.one_of(st.integers(0, 8), st.integers(0, 2 * NUM_TOKENS))
FOLLOW = st.tuples(st.just("follow"), st.integers(0, NUM_TOKENS), CREDIT)
ACTS = st.one_of(
    FOLLOW,
    st.tuples(st.just("grant"), st.integers(0, 2), CREDIT),
    st.tuples(st.just("regrant"), st.integers(0, 5), st.integers(0, NUM_TOKENS)),
    st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("read"), st.integers(0, NUM_TOKENS), st.just(0)),
    st.tuples(st.just("run"), st.integers(1, 20), st.just(0)),
    st.tuples(st.just("reconnect"), st.just(0), st.just(0)),
    st.tuples(st.just("kill"), st.just(0), st.just(0)),
)


async def play(kernel: RunningKernel, acts: list[tuple[str, int, int]]) -> None:
    """Act on one detached process, check each follower against the story, and see all to their ends."""
    (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True, detached=True)).pids
    process = kernel.system.table.get(pid)
    acts = list(acts)
    while True:
        async with open_raw(kernel) as raw:
            follows: list[Followed] = []
            while acts:
                name, number, credit = acts.pop(0)
                now = len(process.output)
                if name == "reconnect":
                    break
                if name == "follow":
                    offset = max(0, now - number)
                    body = Follow(pid, offset + credit, offset)
                    follows.append(Followed(await raw.post(body), body.offset, body.until))
                elif name in ("grant", "regrant") and number < len(follows):
                    each = follows[number]
                    if name == "grant":  # more than it has used; the other may be less than it had
                        credit += each.offset + len(raw.tokens(each.call_id))
                    was_over = each.is_left or raw.last(each.call_id) is not None
                    answer = await raw.call(Grant(each.call_id, credit))
                    each.until = max(each.until, credit)
                    if isinstance(answer, Done):  # the last answer may have come right behind it
                        assert not was_over
                    else:
                        assert isinstance(answer, ErrorReply)
                        assert each.is_left or raw.last(each.call_id) is not None
                elif name == "leave" and number < len(follows):
                    each = follows[number]
                    await raw.call(Unfollow(each.call_id))
                    num_answers = len(raw.answers[each.call_id])
                    await trio.sleep(0.01)
                    await raw.call(Ping())
                    assert len(raw.answers[each.call_id]) == num_answers
                    each.is_left = raw.last(each.call_id) is None
                elif name == "read" and number <= now and not process.turn_is_over:
                    answer = await raw.call(Read(pid, number))
                    assert isinstance(answer, Output)
                    assert answer.tokens == tuple(process.output[number : number + len(answer.tokens)])
                elif name == "run":
                    await trio.sleep(number * 2e-2)  # about two tokens each
                elif name == "kill":
                    await raw.call(Kill(pid))
                await raw.call(Ping())
                for each in follows:
                    each.check(raw, tuple(process.output))
            else:
                await wait_until(lambda: process.turn_is_over)
                output = tuple(process.output)
                assert output == STORY[: len(output)]
                while any(each.is_behind(raw, output) for each in follows):
                    await raw.receive()
                for each in follows:
                    if not each.is_left and raw.last(each.call_id) is None:
                        await raw.call(Grant(each.call_id, MUCH))
                        each.until = MUCH
                while not all(each.is_left or raw.last(each.call_id) for each in follows):
                    await raw.receive()
                for each in follows:
                    each.check_whole(raw, output)
                assert process.followers == []
                break
        await wait_until(lambda: kernel.system.num_sessions == 1)
        assert process.followers == []  # a session that ends leaves none behind
    await kernel.client.wait(pid)


@settings(max_examples=50, deadline=None)
@given(
    lead=st.integers(0, 25),
    follows=st.lists(FOLLOW, min_size=1, max_size=4),
    acts=st.lists(ACTS, max_size=14),
    most=st.sampled_from([1, 7, MAX_OUTPUT_TOKENS]),
)
def test_any_credits_cuts_and_kills(
    tmp_path_factory: pytest.TempPathFactory,
    lead: int,
    follows: list[tuple[str, int, int]],
    acts: list[tuple[str, int, int]],
    most: int,
) -> None:
    """Several followers and readers of one process, in any order of events: each is told its piece.

    However far the process is, `lead`, when the first `follows` come, and however few tokens, `most`, fit
    into one answer.
    """

    async def main() -> None:
        async with running_kernel(tmp_path_factory.mktemp("k")) as kernel:
            with trio.fail_after(1000):
                await play(kernel, [("run", lead, 0), *follows, *acts])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follower, "MAX_OUTPUT_TOKENS", most)
        trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_credit_in_the_middle_of_what_there_is(autojump_clock, tmp_path: Path) -> None:
    """Of output that is there already, no token past the credit is sent, and each grant brings its own."""
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        process = kernel.system.table.get(pid)
        await wait_until(lambda: process.turn_is_over)
        call_id = await raw.post(Follow(pid, 13, 10))
        for until, told in ((13, 13), (14, 14), (12, 14), (NUM_TOKENS - 1, NUM_TOKENS - 1)):
            await raw.call(Grant(call_id, until))
            await raw.call(Ping())
            assert raw.tokens(call_id) == STORY[10:told]
            assert raw.last(call_id) is None
        await raw.call(Grant(call_id, NUM_TOKENS))
        while raw.last(call_id) is None:
            await raw.receive()
        assert raw.tokens(call_id) == STORY[10:]
        await kernel.client.wait(pid)


async def test_credit_is_not_taken_back(autojump_clock, tmp_path: Path) -> None:
    """A grant of less than there was changes nothing, also before anything is output."""
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        call_id = await raw.post(Follow(pid, 40))
        assert await raw.call(Grant(call_id, 5)) == Done()
        with trio.fail_after(60):
            while len(raw.tokens(call_id)) < 40:
                await raw.receive()
        await kernel.client.wait(pid)


async def test_follows_are_among_the_calls_that_wait(
    autojump_clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many follows as calls may wait, neither another one nor another call that waits is taken."""
    monkeypatch.setattr(session, "MAX_PARKED_CALLS", 2)
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        for _ in range(2):
            await raw.post(Follow(pid, 0))
        for body in (Follow(pid, 0), Wait(pid)):
            answer = await raw.call(body)
            assert isinstance(answer, ErrorReply)
            assert answer.errno is Errno.EAGAIN
        await kernel.client.wait(pid)


async def test_more_than_one_answer_holds(
    autojump_clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows what has ended is told all of it in full answers, though nothing happens any more."""
    monkeypatch.setattr(follower, "MAX_OUTPUT_TOKENS", 25)
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        process = kernel.system.table.get(pid)
        await wait_until(lambda: process.turn_is_over)
        calls = [await raw.post(Follow(pid, MUCH)) for _ in range(3)]
        with trio.fail_after(10):
            while any(raw.last(call_id) is None for call_id in calls):
                await raw.receive()
        for call_id in calls:
            assert raw.tokens(call_id) == STORY
            lengths = [len(answer.tokens) for answer in raw.answers[call_id] if isinstance(answer, Output)]
            assert lengths == [25, 25, 10]
        await kernel.client.wait(pid)


async def test_one_write_for_a_step(autojump_clock, tmp_path: Path) -> None:
    """The tokens of a step's 16 processes come to their client at once, and none costs a call."""
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        spawned = await kernel.client.spawn(PROMPT, max_tokens=40, num_samples=16, ignore_eos=True)
        calls = [await raw.post(Follow(pid, 40)) for pid in spawned.pids]
        frames: list[list[int]] = []
        while any(raw.last(call) is None for call in calls):
            before = {call: len(raw.tokens(call)) for call in calls}
            await raw.receive()
            frames.append([len(raw.tokens(call)) - before[call] for call in calls])
        assert frames.count(16 * [1]) >= 30
        for pid in spawned.pids:
            await kernel.client.wait(pid)


async def test_what_if_the_client_does_not_read(autojump_clock, tmp_path: Path) -> None:
    """What it was sent stays bounded, however much credit it gave; when it reads, nothing is missing."""
    sampling = Sampling(logprobs=20)
    async with running_kernel(tmp_path, max_chunk_tokens=64) as kernel, open_raw(kernel) as raw:
        (pid,) = (
            await kernel.client.spawn(
                PROMPT, max_tokens=2000, ignore_eos=True, sampling=sampling, auto_reap=True
            )
        ).pids
        process = kernel.system.table.get(pid)
        call_id = await raw.post(Follow(pid, MUCH))
        await wait_until(lambda: bool(process.followers))
        (note,) = process.followers
        session = note.__self__.owner.reply.__self__  # type: ignore[attr-defined]
        session.stream.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        await wait_until(lambda: process.turn_is_over)
        assert session.followers.are_due  # it waits for the client, in the process
        assert session._outbox.num_bytes < MAX_GATHERED_BYTES + (4 << 10)  # by an answer of one token at most
        while raw.last(call_id) is None:
            await raw.receive()
        assert raw.tokens(call_id) == MODEL.expected_tokens(PROMPT, 2000, sampling)
        lengths = [len(answer.tokens) for answer in raw.answers[call_id] if isinstance(answer, Output)]
        assert max(lengths) == MAX_OUTPUT_TOKENS  # what had gathered came in few answers
        assert not any(process.state is ProcState.ZOMBIE for process in kernel.system.table)


async def test_turns_of_a_conversation(autojump_clock, tmp_path: Path) -> None:
    """The end of a turn ends the follow; with no credit for it, the next turn's tokens come behind."""
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=5, ignore_eos=True, interactive=True)).pids
        first, poor = await raw.post(Follow(pid, 5)), await raw.post(Follow(pid, 3))
        while raw.last(first) is None:
            await raw.receive()
        assert (len(raw.tokens(first)), len(raw.tokens(poor))) == (5, 3)
        await client.write(pid, (9,), 5)
        second = await raw.post(Follow(pid, MUCH, 5))
        await raw.call(Grant(poor, MUCH))
        while raw.last(second) is None or raw.last(poor) is None:
            await raw.receive()
        assert raw.tokens(first) + raw.tokens(second) == raw.tokens(poor)
        assert len(raw.tokens(poor)) == 10
        # Between two turns there is nothing to wait for.
        assert await raw.call(Follow(pid, 10, 10)) == await client.read(pid, 10)
        await client.kill(pid)
        await client.wait(pid)


async def test_reaped_before_all_was_sent(autojump_clock, tmp_path: Path) -> None:
    """Who has credit for all of it is told all of it, whoever reaps; who has not is told that it is gone."""
    async with running_kernel(tmp_path) as kernel, open_raw(kernel) as raw:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20, ignore_eos=True)).pids
        rich, poor = await raw.post(Follow(pid, 20)), await raw.post(Follow(pid, 7))
        await kernel.client.wait(pid)
        while raw.last(rich) is None or raw.last(poor) is None:
            await raw.receive()
        assert raw.tokens(rich) == STORY[:20]
        assert raw.tokens(poor) == STORY[:7]
        error = raw.last(poor)
        assert isinstance(error, ErrorReply)
        assert (error.errno, "reaped" in error.message) == (Errno.ESRCH, True)


async def test_the_last_of_two_followers_reaps(autojump_clock, tmp_path: Path) -> None:
    """With auto_reap the first who was told the end takes the process away; others with credit are told."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20, ignore_eos=True, auto_reap=True)).pids
        async with open_raw(kernel) as raw, open_raw(kernel) as other:
            mine = [await raw.post(Follow(pid, MUCH)) for _ in range(2)]
            theirs = await other.post(Follow(pid, MUCH))
            while any(raw.last(call) is None for call in mine):
                await raw.receive()
            while other.last(theirs) is None:
                await other.receive()
            assert {raw.tokens(call) for call in mine} == {other.tokens(theirs)} == {STORY[:20]}
        assert len(kernel.system.table) == 0


async def test_one_who_is_told_reaps_before_others_are_told(autojump_clock, tmp_path: Path) -> None:
    """Processes that end in one step: a session sends, and reaps, while others are still to be told."""
    num = 2 * FRAMES_AT_ONCE
    async with running_kernel(tmp_path) as kernel:
        spawned = await kernel.client.spawn(
            PROMPT, max_tokens=20, num_samples=num, ignore_eos=True, auto_reap=True
        )
        async with open_raw(kernel) as first, open_raw(kernel) as second:
            mine = [await first.post(Follow(pid, MUCH)) for pid in spawned.pids]
            poor = [await second.post(Follow(pid, 7)) for pid in spawned.pids]
            rich = [await second.post(Follow(pid, MUCH)) for pid in spawned.pids]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive_all, first, mine)
                nursery.start_soon(receive_all, second, [*poor, *rich])
            for call in mine:
                assert first.tokens(call) == STORY[:20]
            for call in rich:
                assert second.tokens(call) == STORY[:20]
            for call in poor:
                assert second.tokens(call) == STORY[:7]
                assert isinstance(second.last(call), ErrorReply)
        assert len(kernel.system.table) == 0


async def receive_all(raw: RawClient, calls: list[int]) -> None:
    """Receive until calls have their last answers."""
    while any(raw.last(call) is None for call in calls):
        await raw.receive()


@pytest.mark.parametrize(
    ("body", "errno", "message"),
    [
        (Follow(10**6, 5), Errno.ESRCH, "1000000"),
        (Follow(1, 5, -1), Errno.EINVAL, "offset is -1"),
        (Follow(1, MUCH, 10**6), Errno.EINVAL, "offset is 1000000"),
        (Follow(1, -1), Errno.EINVAL, "until is -1"),
        (Grant(77, 5), Errno.ENOENT, "call 77"),
        (Unfollow(77), Errno.ENOENT, "call 77"),
    ],
)
async def test_refusals(autojump_clock, tmp_path: Path, body: Request, errno: Errno, message: str) -> None:
    """Each names the argument and its limit, and the session goes on."""
    async with running_kernel(tmp_path) as kernel:
        (pid,) = (await kernel.client.spawn(PROMPT, max_tokens=20, ignore_eos=True)).pids
        assert pid == 1
        with pytest.raises(SyscallError, match=message) as caught:
            await kernel.client.call(body)
        assert caught.value.errno is errno
        await kernel.client.wait(pid)


async def test_a_right_that_was_lost_ends_the_follow(autojump_clock, tmp_path: Path) -> None:
    """An administrator that is none any more is told no more of others' processes, and of its own still."""
    async with two_tenants(tmp_path, alice="admin = true") as pair:
        (own,) = (await pair.alice.spawn(PROMPT, max_tokens=400, ignore_eos=True)).pids
        (other,) = (await pair.bob.spawn(PROMPT, max_tokens=400, ignore_eos=True)).pids
        with pair.alice.open_feed(own) as mine, pair.alice.open_feed(other) as theirs:
            assert (await theirs.follow(lambda output: False)).offset == 0
            write_tenants(tmp_path)
            await pair.kernel.client.reload_tenants()
            with pytest.raises(SyscallError, match="EPERM"):
                await theirs.follow(lambda output: True)
            assert (await mine.follow(lambda output: True)).end == ExitStatus("length")
        await pair.alice.wait(own)
        await pair.bob.wait(other)


async def test_a_feed_of_a_restored_process(autojump_clock, tmp_path: Path) -> None:
    """An image keeps what was output: whoever follows the process made of it is told it from 0 on."""
    async with running_kernel(tmp_path) as kernel:
        client = kernel.client
        (pid,) = (await client.spawn(PROMPT, max_tokens=NUM_TOKENS, ignore_eos=True)).pids
        assert len(await follow(client, pid, num_tokens=20)) >= 20
        await client.checkpoint(pid, "half-way")
        await client.kill(pid)
        await client.wait(pid)
        (pid,) = (await client.restore("half-way", auto_reap=True)).pids
        assert await follow(client, pid) == STORY
        assert await client.ps() == ()


async def follow(client: Client, pid: int, num_tokens: int = NUM_TOKENS) -> tuple[int, ...]:
    """Read through a feed with a small window, to the end or until there are so many."""
    taken: list[int] = []

    def take(output: Output) -> bool:
        taken.extend(output.tokens)
        return len(taken) < num_tokens

    with client.open_feed(pid, window=7) as feed:
        output = await feed.follow(take)
    if output.end is not None:
        assert output.end == ExitStatus("length")
        taken.extend(output.tokens)
    return tuple(taken)
