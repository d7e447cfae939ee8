"""PageTable against a dictionary of positions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.device import Pfn, Vpn
from llmos.errors import KernelPanic
from llmos.mm.page_table import PageTable

TOKENS_PER_PAGE = 3


@given(st.lists(st.tuples(st.sampled_from(["map", "cut"]), st.integers(0, 6)), max_size=30))
def test_translation_follows_the_last_map(operations: list[tuple[str, int]]) -> None:
    """Each position translates to the frames mapped last and its slot; holes and gaps are refused."""
    table = PageTable(TOKENS_PER_PAGE)
    model: dict[int, tuple[Pfn, Pfn]] = {}
    for serial, (operation, vpn) in enumerate(operations):
        frames = (Pfn(2 * serial), Pfn(2 * serial + 1))
        if operation == "cut":
            assert table.truncate(vpn) == [model.pop(page) for page in range(vpn, len(model))]
        elif vpn > len(model):
            with pytest.raises(KernelPanic):
                table.map(Vpn(vpn), frames)
        else:
            table.map(Vpn(vpn), frames)
            model[vpn] = frames
    assert len(table) == len(model)
    assert table.num_token_slots == TOKENS_PER_PAGE * len(model)
    for position in range(table.num_token_slots):
        assert table.translate(position) == (model[position // TOKENS_PER_PAGE], position % TOKENS_PER_PAGE)
    for position in (-1, table.num_token_slots):
        with pytest.raises(KernelPanic):
            table.translate(position)
