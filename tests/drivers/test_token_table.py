"""What a device has counted of spaces' tokens: nothing is sent twice, and nothing is missed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivers.model.token_table import TokenTable
from drivers.ops.counted import OUTPUT, SEEN
from native.sampling import Draw, Tally, Window

VOCABULARY = 7
PROMPT = (1, 2, 2)
MAX_LEN = 60
SIZES = (None, None, None, 1, 3, 100)  # of windows, by space


class Space:
    """What the host and the device know of one space's tokens."""

    def __init__(self, size: int | None = None) -> None:
        self.owner = object()
        self.size = size  # of the window that penalties look at; None: at all
        self.tokens = list(PROMPT)
        self.num_known = len(PROMPT)  # by the host

    def draw(self) -> Draw:
        """How the next token is drawn."""
        known = Counter(self.tokens[: self.num_known])
        output = Counter(self.tokens[len(PROMPT) : self.num_known])
        window = None
        if self.size is not None:
            last = self.tokens[max(0, self.num_known - self.size) : self.num_known]
            window = Window(self.size, len(PROMPT), np.array(last, dtype=np.int32))
        return Draw(
            seen_ids=np.array(list(known), dtype=np.int64),
            num_output=np.array([output[token] for token in known], dtype=np.int64),
            tally=Tally(self.owner, self.num_known, len(self.tokens), True, window),
        )

    def counts(self) -> list[int]:
        """As the device should have it."""
        begin = 0 if self.size is None else max(0, len(self.tokens) - self.size)
        seen, output = self.tokens[begin:], Counter(self.tokens[max(begin, len(PROMPT)) :])
        return [1 + output[token] if token in seen else 0 for token in range(VOCABULARY)]


ACTIONS = st.sampled_from(["draw", "draw", "know", "give", "bind", "fail", "bad"])


@given(actions=st.lists(st.tuples(st.integers(0, 5), ACTIONS, st.integers(0, 6)), max_size=40))
def test_counts_are_those_of_all_tokens(actions: list[tuple[int, str, int]]) -> None:
    """Tokens drawn by the device, given by the host, of a step that failed, of a space bound anew."""
    table, spaces = (
        TokenTable(VOCABULARY, MAX_LEN, torch.device("cpu")),
        [Space(SIZES[asid]) for asid in range(6)],
    )
    for asid, action, token in actions:
        space = spaces[asid]
        if action == "bind":
            space = spaces[asid] = Space(SIZES[asid])
        if action in ("know", "give", "bad") or len(space.tokens) > space.num_known + 1:
            space.num_known = len(space.tokens)
        if action == "give":
            space.tokens.append(token)
            space.num_known += 1
        counted = table.prepare([None, space.draw()], [3, asid])
        assert counted is not None
        place = counted.places[1]
        assert counted.places[0] == -1
        assert counted.counts[place].tolist() == space.counts()
        if action == "fail":  # a later step may be any
            space.num_known = len(space.tokens)
            continue
        table.confirm(torch.tensor([0, token]))
        if action == "bad":
            table.forget(asid)
        else:
            table.note(place, counted.notes[1], token)
            space.tokens.append(token)
        if space.size is not None:  # counted before the next draw
            continue
        read = table.seen(place, Draw())
        found = dict(zip(read.seen_ids.tolist(), (1 + read.num_output).tolist(), strict=True))
        assert [found.get(each, 0) for each in range(VOCABULARY)] == space.counts()


def test_a_space_is_sent_once() -> None:
    """Its own draws follow; a bias alone takes no row; who is ahead of both sides is refused."""
    table, space = TokenTable(VOCABULARY, MAX_LEN, torch.device("cpu")), Space()
    assert table.prepare([Draw(bias_ids=np.array([1]), bias_values=np.ones(1))], [0]) is None
    for token in range(4):
        counted = table.prepare([space.draw()], [2])
        assert counted is not None
        assert counted.notes == [OUTPUT]
        table.note(counted.places[0], OUTPUT, token)
        table.confirm(torch.tensor([token]))
        space.num_known, space.tokens = len(space.tokens), [*space.tokens, token]
    assert table.num_written == 1
    ahead = Draw(tally=Tally(space.owner, 3, 9, False))
    with pytest.raises(RuntimeError, match="space 2 draws at 9, and 3 tokens are counted"):
        table.prepare([ahead], [2])
    counted = table.prepare([Draw(tally=Tally(space.owner, 9, 9, False))], [2])
    assert counted is not None
    assert counted.notes == [SEEN]
    assert table.num_written == 2
