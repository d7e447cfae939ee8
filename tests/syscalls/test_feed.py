"""`Client.open_feed`: what the kernel sends unasked is handed out once and in order, whoever is slow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from syscalls.client import open_client
from syscalls.codec import Answer, ErrorReply, Request
from syscalls.errno import Errno, SyscallError
from syscalls.feed import OutputFeed
from syscalls.process import ExitStatus, Follow, Grant, Output, Read, Unfollow
from syscalls.system import Done, Ping
from tests.syscalls.fake_kernel import FakeKernel, FakeSession, open_fake_kernel

STORY = tuple(range(10))
LENGTH = ExitStatus("length")


async def read_by_threes(session: FakeSession, body: Request) -> Answer:
    """The story, three tokens to an output; of pid 2 nothing."""
    if isinstance(body, Ping):
        return Done()
    assert isinstance(body, Read)
    if body.pid == 2:
        raise SyscallError(Errno.ESRCH, "no process 2")
    stop = min(body.offset + 3, 10)
    return Output(body.offset, STORY[body.offset : stop], end=LENGTH if stop == 10 else None)


async def test_a_feed_goes_on_behind_what_it_returned(tmp_path: Path) -> None:
    """Each output is handed out once and in order; what is not taken, and the end, comes back."""
    async with open_fake_kernel(FakeKernel(read_by_threes), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            taken: list[int] = []

            def take(output: Output) -> bool:
                taken.extend(output.tokens)
                return output.offset < 3

            with client.open_feed(1) as feed:
                refused = await feed.follow(take)
                assert (refused.offset, taken, feed.offset) == (3, [0, 1, 2, 3, 4, 5], 6)
                last = await feed.follow(lambda output: True)
                assert (last.tokens, last.end, feed.offset) == ((9,), LENGTH, 10)
                with pytest.raises(trio.EndOfChannel):
                    await feed.follow(take)
            assert client.num_calls_in_flight == 0
            bodies = [call.body for call in kernel.sessions[0].calls]
            assert bodies == [Follow(1, 128, 0)]  # one call for all of it


async def test_what_goes_wrong_comes_out_of_the_feed(tmp_path: Path) -> None:
    """A refusal, what `take` raises, a second reader; afterwards the kernel has been told of the end."""
    async with open_fake_kernel(FakeKernel(read_by_threes), tmp_path / "s") as kernel:
        async with open_client(tmp_path / "s") as client:
            with client.open_feed(2) as feed, pytest.raises(SyscallError, match="no process 2"):
                await feed.follow(lambda output: True)
            with client.open_feed(1, window=4) as feed:
                with pytest.raises(ZeroDivisionError):
                    await feed.follow(lambda output: 1 // output.offset > 0)
                with trio.testing.assert_checkpoints():
                    assert (await feed.follow(lambda output: False)).offset == 3
                await client.ping()
            await client.ping()
            assert client.num_calls_in_flight == 0
            assert kernel.sessions[0].following == {}
            assert isinstance(kernel.sessions[0].calls[-2].body, Unfollow)


async def test_a_cancelled_follow_loses_nothing(tmp_path: Path) -> None:
    """What arrives while nobody follows is handed out later; a second task is refused."""
    release = trio.Event()

    async def one_by_one(session: FakeSession, body: Request) -> Answer:
        assert isinstance(body, Read)
        if body.offset == 2:
            await release.wait()
        return Output(body.offset, (7,), end=LENGTH if body.offset == 4 else None)

    async with open_fake_kernel(FakeKernel(one_by_one), tmp_path / "s"):
        async with open_client(tmp_path / "s") as client:
            taken: list[int] = []
            has_two = trio.Event()

            def take(output: Output) -> bool:
                taken.append(output.offset)
                if len(taken) == 2:
                    has_two.set()
                return True

            with client.open_feed(1) as feed:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(feed.follow, take)
                    await has_two.wait()
                    with pytest.raises(trio.BusyResourceError):
                        await feed.follow(take)
                    nursery.cancel_scope.cancel()
                release.set()
                last = await feed.follow(take)
            assert taken == [0, 1, 2, 3]
            assert last.offset == 4


class ModelKernel:
    """The other end of a feed: sends what it has as far as it may, and counts what it was granted."""

    def __init__(self) -> None:
        self.until = self.sent = 0
        self.receive: Callable[[Answer], bool]

    def post(self, body: Follow | Grant) -> int:
        assert body.until >= self.until
        self.until = body.until
        return 1

    def send(self, num_tokens: int) -> None:
        stop = min(self.sent + num_tokens, self.until)
        if stop > self.sent:
            start, self.sent = self.sent, stop
            self.receive(Output(start, tuple(range(start, stop))))


@given(
    window=st.integers(1, 12),
    script=st.lists(st.integers(1, 9) | st.sampled_from(["follow", "cancel", "refuse"]), max_size=40),
    ending=st.sampled_from([Output(0, (), end=LENGTH), ErrorReply(Errno.ESRCH, "gone")]),
)
def test_any_order_of_sends_and_follows(window: int, script: list[int | str], ending: Answer) -> None:
    """However sends, cancels and refusals fall: every token once, in order, and never over the window."""
    taken: list[int] = []

    async def main() -> None:
        kernel = ModelKernel()
        feed = OutputFeed(kernel.post, 1, 0, window)
        kernel.receive = feed.receive
        will_take = True

        def take(output: Output) -> bool:
            taken.extend(output.tokens)
            return will_take

        async def follow() -> None:
            await feed.follow(take)

        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            is_following = False

            async def keep_following() -> None:
                nonlocal is_following
                is_following = True
                with scope:
                    await follow()
                is_following = False

            for act in script:
                if isinstance(act, int):
                    kernel.send(act)
                elif act == "follow" and not is_following:
                    scope = trio.CancelScope()
                    nursery.start_soon(keep_following)
                elif act == "cancel":
                    scope.cancel()
                else:
                    will_take = not will_take
                await trio.testing.wait_all_tasks_blocked()
                assert kernel.until - len(taken) <= window
                assert kernel.sent - len(taken) <= window
                assert kernel.until > len(taken)  # it never forgets to ask for more
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
        will_take = True
        feed.receive(ending if isinstance(ending, ErrorReply) else Output(kernel.sent, (), end=LENGTH))
        if isinstance(ending, ErrorReply):
            with pytest.raises(SyscallError, match="gone"):
                await feed.follow(take)
        else:
            assert (await feed.follow(take)).end == LENGTH
        assert taken == list(range(kernel.sent))
        with pytest.raises((SyscallError, trio.EndOfChannel)):
            await feed.follow(take)

    trio.run(main)
