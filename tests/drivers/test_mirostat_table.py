"""Mirostat's mu on a device: nothing is sent twice, and nothing is missed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivers.model.mirostat_table import MirostatTable
from native.sampling import Draw, MirostatDraw, Tally


class Space:
    """What the host and the device know of one space."""

    def __init__(self) -> None:
        self.owner = object()
        self.mus = [8.0]  # behind each of the tokens
        self.num_known = 1  # by the host

    def draw(self) -> Draw:
        """How the next token is drawn, as far as the host knows."""
        tally = Tally(self.owner, self.num_known, len(self.mus), True)
        return Draw(1.0, cuts=(), mirostat=MirostatDraw(2, 4.0, 0.1, self.mus[self.num_known - 1], tally))


ACTIONS = st.sampled_from(["draw", "draw", "draw", "know", "bind", "fail", "bad"])


@given(actions=st.lists(st.tuples(st.integers(0, 3), ACTIONS, st.floats(-9, 9)), max_size=40))
def test_mu_is_that_of_the_last_token(actions: list[tuple[int, str, float]]) -> None:
    """Drawn by the device, known to the host, of a step that failed, of a space bound anew."""
    table, spaces = MirostatTable(4, torch.device("cpu")), [Space() for _ in range(4)]
    for asid, action, mu in actions:
        space = spaces[asid]
        if action == "bind":
            space = spaces[asid] = Space()
        if action in ("know", "bad") or len(space.mus) > space.num_known + 1:
            space.num_known = len(space.mus)
        found = table.prepare([None, space.draw(), Draw()], [(asid + 1) % 4, asid, None])
        assert found is not None
        assert found.tolist() == [space.mus[-1]]
        if action == "fail":  # the host runs it in another way, and knows what came of it
            space.num_known = len(space.mus)
            continue
        table.confirm(torch.tensor([mu], dtype=torch.float64))
        if action == "bad":
            table.forget(asid)
        else:
            space.mus.append(mu)


def test_a_space_is_sent_once() -> None:
    """Its own draws follow; who is ahead of both sides is refused; without mirostat there is nothing."""
    table, space = MirostatTable(4, torch.device("cpu")), Space()
    assert table.prepare([Draw(), None], [0, 1]) is None
    table.confirm(None)
    for mu in (7.0, 6.5, 6.25):
        assert table.prepare([space.draw()], [2]) is not None
        table.confirm(torch.tensor([mu], dtype=torch.float64))
        space.num_known, space.mus = len(space.mus), [*space.mus, mu]
    assert table.num_written == 1
    ahead = Draw(cuts=(), mirostat=MirostatDraw(2, 4.0, 0.1, 1.0, Tally(space.owner, 3, 9, True)))
    with pytest.raises(RuntimeError, match="space 2 draws at 9, and 3 tokens are counted"):
        table.prepare([ahead], [2])
