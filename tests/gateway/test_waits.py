"""What clients waited for: percentiles against their plain meaning, who is among them, and for how long."""

from __future__ import annotations

import json

import httpx
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from shell.gateway.waits import MAX_WAITS, PERCENTILES, PERIOD_SECONDS, Pace, Wait, Waits, percentiles
from syscalls.process import ProcessInfo, Usage
from tests.gateway.harness import PATIENCE_SECONDS, Gateway, hello

DECODES = ProcessInfo(
    pid=1, parent=None, tenant="a", state="RUNNING", label="", model="m", device="sim:0", nice=0, seed=0,
    num_tokens=9, num_computed=9, max_tokens=99, num_resident_bytes=0, num_shared_bytes=0,
    age_seconds=1.0, usage=Usage(), activity="decode",
)  # fmt: skip


def look_at(pid: int, num_output: int, activity: str = "decode") -> ProcessInfo:
    """A process as a look finds it."""
    usage = Usage(num_output_tokens=num_output, queued_seconds=1.0, first_token_seconds=2.0)
    return msgspec.structs.replace(DECODES, pid=pid, usage=usage, activity=activity)


@given(values=st.lists(st.floats(0, 100)))
def test_percentiles_are_the_least_values_that_so_many_do_not_exceed(values: list[float]) -> None:
    """Nearest rank."""
    expected = [
        min(v for v in values if 100 * sum(other <= v for other in values) >= each * len(values))
        for each in PERCENTILES
        if values
    ]
    assert percentiles(values) == expected


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["decode", "swapped"])), max_size=30))
def test_a_pace_is_of_times_in_which_a_process_did_nothing_else(steps: list[tuple[int, str]]) -> None:
    """Of each stretch of looks that find it decoding: the seconds since its tokens grew last, by how many."""
    pace, count, grown_at = Pace(), 0, None
    for now, (num_new, activity) in enumerate(steps):
        count += num_new
        expected: dict[int, float] = {}
        if activity != "decode":
            grown_at = None
        elif grown_at is None:
            grown_at = now
        elif num_new:
            expected, grown_at = {1: (now - grown_at) / num_new}, now
        assert pace.take([look_at(1, count, activity)], now) == expected


def test_a_process_is_known_by_the_last_that_was_noted_and_forgotten_in_the_end() -> None:
    """A viewer sees its tenant's; what is older than the period is left out, and room is for so many."""
    waits = Waits()
    waits.note_living([look_at(1, 5), look_at(2, 5, "input")], Pace(), 10.0)
    assert waits.percentiles("a", 10.0) == {"queued": [1.0] * 3, "first": [2.0] * 3, "between": []}
    assert waits.percentiles("b", 10.0) == {"queued": [], "first": [], "between": []}
    waits.note(1, Wait("a", 20.0, 3.0, 4.0, 0.5))
    waits.note(7, Wait("b", 20.0, 9.0, 9.0, 9.0))
    assert waits.percentiles("a", 20.0) == {"queued": [3.0] * 3, "first": [4.0] * 3, "between": [0.5] * 3}
    assert waits.percentiles(None, 20.0)["queued"] == [3.0, 9.0, 9.0]
    waits.note_living([look_at(1, 6)], Pace(), 30.0)
    assert waits.percentiles("a", 30.0)["between"] == [0.5] * 3  # nothing newer is known
    assert waits.percentiles(None, 30.0 + PERIOD_SECONDS)["queued"] == [1.0] * 3
    for pid in range(100, 100 + MAX_WAITS):
        waits.note(pid, Wait("c", 40.0, 0.0, 0.0, None))
    assert waits.percentiles("a", 40.0)["queued"] == []


def test_a_request_that_no_look_saw_is_among_them(gateway: Gateway) -> None:
    """It was over before the page was opened; the page's first message tells of it."""
    assert gateway.post("/v1/chat/completions", hello()).status_code == 200
    with httpx.stream("GET", f"{gateway.url}/ui/stream", timeout=PATIENCE_SECONDS) as response:
        first = json.loads(next(line for line in response.iter_lines() if line).removeprefix("data: "))
    assert first["new"] == []
    assert [len(first["latency"][name]) for name in ("queued", "first", "between")] == [3, 3, 3]
