"""The event ring: what dmesg reads."""

from __future__ import annotations

from pathlib import Path

import trio

from llmos.kernel.events import EventLog
from tests.kernel.harness import running_kernel, wait_until


def test_since_is_inclusive_and_limited() -> None:
    """`since` names the first event wanted; of many, the newest are given; old ones leave the ring."""
    events = EventLog(size=10)
    for i in range(15):
        events.record("test", f"event {i + 1}")
    assert [event.sequence for event in events.since(0, 100)] == list(range(6, 16))
    assert [event.sequence for event in events.since(14, 100)] == [14, 15]
    assert [event.sequence for event in events.since(0, 3)] == [13, 14, 15]
    assert events.since(16, 100) == ()


async def test_following_misses_nothing(autojump_clock, tmp_path: Path) -> None:
    """A follower gets every event once, in order; one who waits for a later one sleeps on."""
    async with running_kernel(tmp_path) as kernel:
        seen: list[int] = []
        late: list[int] = []

        async def follow() -> None:
            async for events in kernel.client.follow_events():
                seen.extend(event.sequence for event in events)

        async def follow_late(first: int) -> None:
            late.extend(event.sequence for event in await kernel.client.events(first, follow=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await wait_until(lambda: bool(seen))
            nursery.start_soon(follow_late, seen[-1] + 5)
            for i in range(20):
                kernel.system.events.record("test", f"event {i}")
                if i % 3 == 0:
                    await trio.sleep(0.01)
            await wait_until(lambda: len(seen) >= 22)
            nursery.cancel_scope.cancel()
        assert seen == list(range(1, len(seen) + 1))
        assert late[0] == seen[1] + 5
