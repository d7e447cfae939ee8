"""Room that admission leaves for those who run: free frames, or such as a copy out is about to leave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from drivers.sim import DEFAULT_KV
from llmos.proc.pcb import Pid, Process
from llmos.sched.accounts import Accounts
from llmos.sched.admission import GROWTH_TOKENS, Admission
from llmos.sched.policy import FirstComeFirstServed
from llmos.sched.residents import Residents
from syscalls.sampling import Sampling


def free_frames(num_running: int, num_allocatable: int, num_leaving: int) -> tuple[int, int]:
    """What admission may hand out where so many decode, and so many frames are to be had, or will be."""
    vmm = SimpleNamespace(kv=DEFAULT_KV, num_allocatable_frames=num_allocatable)
    swap = SimpleNamespace(transfers=SimpleNamespace(num_leaving_frames=num_leaving))
    switch = cast("Any", SimpleNamespace(vmm=vmm, swap=swap))
    residents = Residents(
        device="sim:0", policy=FirstComeFirstServed(), accounts=Accounts(), max_running=64,
        on_exit=lambda process: None, switch=switch,
    )  # fmt: skip
    for number in range(num_running):
        process = Process(
            pid=Pid(number), tenant="test", session=None, model="test", device="sim:0",
            sampling=Sampling(seed=0), stop_tokens=frozenset(), spawned_at=0.0, arrival=number, tokens=[1],
            turn_start=1, max_tokens=100,
        )  # fmt: skip
        residents.queue.running.append(process)
    return Admission(residents)._num_free_frames(switch)


@given(st.integers(0, 40), st.integers(0, 300), st.integers(0, 300))
def test_what_copies_leave_is_room_for_growth(num_running: int, num_free: int, num_leaving: int) -> None:
    """Nobody gets frames that are not free, and those who run have their room, now or in a moment."""
    pages = DEFAULT_KV.num_pages(GROWTH_TOKENS * num_running)
    room = pages * DEFAULT_KV.frames_per_page
    now, soon = free_frames(num_running, num_free, num_leaving)
    assert now <= num_free
    assert num_free + num_leaving - max(0, now) >= min(room, num_free + num_leaving)
    assert soon == num_free + num_leaving - room  # as many as if the copies had ended
    if num_leaving >= room:
        assert now == num_free  # who comes takes what is free, and waits for no copy
    if not num_leaving:
        assert now == soon
