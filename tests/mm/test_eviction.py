"""What the cache gives up first: what is cheap to compute again, what few have used, what nobody asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.device import KVFormat, Segment
from llmos.mm.eviction import CostAware, Eviction, LeastRecentlyUsed
from llmos.mm.vmm import VMM

positions = st.integers(0, 100_000)
tokens = st.integers(1, 512)
uses = st.integers(1, 1000)
KV = KVFormat("test", (Segment("K", 4), Segment("V", 4)), frame_bytes=16, tokens_per_page=4)


@given(position=positions, further=st.integers(1, 100_000), num_tokens=tokens, num_uses=uses)
def test_what_is_dear_is_worth_more(position: int, further: int, num_tokens: int, num_uses: int) -> None:
    """Far down a prompt a token costs more; each process that a page has served counts, and each token."""
    policy = CostAware(knee_tokens=4096)
    value = policy.value(position, num_tokens, num_uses)
    assert policy.value(position + further, num_tokens, num_uses) > value
    assert policy.value(position, num_tokens, 2 * num_uses) == pytest.approx(2 * value)
    assert policy.value(position, 2 * num_tokens, num_uses) == pytest.approx(2 * value)


@given(st.integers(0, 8192), st.integers(1, 32), st.integers(1, 20), st.integers(8, 32))
def test_what_nobody_asks_for_is_overtaken(
    position: int, num_tokens: int, num_uses: int, newcomer: int
) -> None:
    """However dear a page was: each eviction raises those that come later, and in the end above it."""
    policy = CostAware()
    old = policy.value(position, num_tokens, num_uses)
    step = policy.value(0, newcomer, 1)
    for _ in range(int(old / step) + 1):
        policy.note_evicted(policy.value(0, newcomer, 1))
    assert policy.value(0, newcomer, 1) > old


@pytest.mark.parametrize(("policy", "is_kept"), [(CostAware(), True), (LeastRecentlyUsed(), False)])
def test_a_prompt_that_many_share_outlives_a_flood(policy: Eviction, is_kept: bool) -> None:
    """A system prompt that ten processes used is there after others' pages went through all of memory."""
    vmm = VMM(KV, 24, 2, 64, eviction=policy)
    system = range(1000, 1009)  # two pages, and a token of a third

    def live(prompt: list[int]) -> int:
        """A process, from its start to its end; returns how much it found."""
        space = vmm.open_space("alice", prompt)
        covered = vmm.attach_prefix(space, prompt, len(prompt) - 1)
        vmm.pager.grow(space, covered, len(prompt))
        vmm.close_space(space, prompt)
        vmm.check_integrity()
        return covered

    for number in range(10):
        live([*system, number])
    for number in range(12):  # each has two pages of its own, and 12 fit
        live([number] * 8)
    assert vmm.statistics().prefix.num_evicted_pages >= 8
    assert (live([*system, 77]) >= 8) == is_kept
