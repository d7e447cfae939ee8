"""PageTable against a dictionary of pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos.device import Pfn, Vpn
from llmos.errors import KernelPanic
from llmos.mm.page_table import PageFrames, PageTable


@given(st.lists(st.one_of(st.none(), st.integers(0, 6)), max_size=30))
def test_a_page_has_the_frames_mapped_last(operations: list[int | None]) -> None:
    """Holes are refused; None unmaps everything."""
    table = PageTable(tokens_per_page=3)
    model: dict[int, PageFrames] = {}
    for serial, vpn in enumerate(operations):
        frames = (Pfn(2 * serial), Pfn(2 * serial + 1))
        if vpn is None:
            assert table.clear() == list(model.values())
            model.clear()
        elif vpn > len(model):
            with pytest.raises(KernelPanic):
                table.map(Vpn(vpn), frames)
        else:
            table.map(Vpn(vpn), frames)
            model[vpn] = frames
        assert table.entries == list(model.values())
