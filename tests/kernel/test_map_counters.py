"""How pages came to be mapped, as devices and metrics tell it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import trio

from drivers.sim import SimDriver
from tests.kernel.harness import running_kernel


async def test_devices_and_metrics_count_maps(tmp_path: Path, autojump_clock: trio.abc.Clock) -> None:
    """A long answer is mapped ahead but for its beginning; what ends unused is told; both say the same."""
    make = partial(SimDriver, num_frames=64)
    async with running_kernel(tmp_path, make, prefix_cache=False) as kernel:
        (pid,) = (await kernel.client.spawn(range(1, 6), max_tokens=300)).pids
        await kernel.client.wait(pid)
        (device,) = await kernel.client.devices()
        maps = device.maps
        assert maps is not None
        tokens_per_page = device.cache.tokens_per_page if device.cache else 0
        num_pages = -(-304 // tokens_per_page)  # the last token is not computed
        assert maps.num_sync + maps.num_ahead - maps.num_unused == num_pages
        assert 0 < maps.num_sync < num_pages / 2
        text = (await kernel.client.statistics(exposition=True)).exposition
        pages = dict(re.findall(r'llmos_mapped_pages_total\{device="sim:0",when="(\w+)"\} (\S+)', text))
        assert {when: float(count) for when, count in pages.items()} == {
            "beside": maps.num_ahead,
            "in_step": maps.num_sync,
        }
        (unused,) = re.findall(r'llmos_map_unused_pages_total\{device="sim:0"\} (\S+)', text)
        assert float(unused) == maps.num_unused
        for name in ("map_seconds", "map_late_pages", "map_waiting_steps", "unmapped_pages"):
            assert f"llmos_{name}_total{{" in text
