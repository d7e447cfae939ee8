"""What copies take: the line through two measurements, and that measuring leaves memory as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.copy_cost import fit_copy_cost, measure_copy_cost
from drivers.host_arena import HostArena
from drivers.tiers import Tiers
from llmos.cost import CopyCost
from llmos.device import Copy, CopyDone, CopyFault, KVFormat, Map, Segment

KV = KVFormat("fp32", (Segment("K", 256), Segment("V", 256)), 4096, 16)


@given(st.floats(0, 1e-2), st.floats(1e6, 1e12))
def test_a_line_is_found(base: float, rate: float) -> None:
    """A memory whose copies take a fixed time and a rate is described by both."""
    truth = CopyCost(base, rate)
    found = fit_copy_cost(4096, truth.seconds(4096), 4 << 20, truth.seconds(4 << 20))
    for num_bytes in (4096, 1 << 20, 1 << 30):
        assert found.seconds(num_bytes) == pytest.approx(truth.seconds(num_bytes), rel=1e-6)


@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.booleans())
def test_nonsense_gives_a_cost_that_grows(small: float, large: float, is_one_slot: bool) -> None:
    """Whatever was measured, no part of the cost is negative, and more bytes take longer."""
    found = fit_copy_cost(4096, small, 4096 if is_one_slot else 4 << 20, large)
    assert found.base >= 0
    assert found.bytes_per_second > 0
    assert 0 < found.seconds(1) < found.seconds(1 << 30)


@pytest.mark.parametrize("num_slots", [1, 3, 40])
def test_measuring_leaves_the_frames_as_they_were(num_slots: int, tmp_path: Path) -> None:
    """Pages hold afterwards what they held, and both tiers have a cost; one that is not there has none."""
    arena = HostArena(KV, 16, 2, 8)
    tiers = Tiers(arena, num_slots * 4096, num_slots * 4096, str(tmp_path))
    arena.reserve(0)
    for vpn in range(8):
        arena.map(Map(0, vpn, (2 * vpn, 2 * vpn + 1)))
        for segment in arena.segments:
            segment[vpn * 4096 : (vpn + 1) * 4096] = vpn + 1
    for tier in ("host", "disk"):
        cost = measure_copy_cost(tiers, tier, num_slots)
        assert cost is not None
        assert 0 < cost.seconds(4096) < 60
    assert measure_copy_cost(tiers, "host", 0) is None
    assert tiers.num_running == 0
    for segment in arena.segments:
        for vpn in range(8):
            assert bool((segment[vpn * 4096 : (vpn + 1) * 4096] == vpn + 1).all())
    tiers.close()
    arena.close()


def test_a_tier_that_takes_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full when the driver starts has no cost; the slot and the reason are told."""
    arena = HostArena(KV, 4, 2, 2)
    tiers = Tiers(arena, 4096)

    def begin(copy: Copy) -> CopyDone:
        return CopyDone(copy.id, 0.0, (), (CopyFault(0, "host slot 0: No space left on device"),))

    monkeypatch.setattr(Tiers, "begin", lambda self, copy: begin(copy))
    assert measure_copy_cost(tiers, "host", 1) is None
    assert "host slot 0: No space left on device" in capfd.readouterr().err
    tiers.close()
    arena.close()
