"""Shared by the whole suite."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SLOW_SECONDS = 1800  # before a slow test counts as one that hangs, where it names no limit of its own

# A busy machine is no failure. CI, which judges a change, draws the same examples; a laptop new ones.
settings.register_profile(
    "untimed", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache_folder() -> Iterator[None]:
    """What drivers keep between loads goes where the run's other files go, and with them."""
    with tempfile.TemporaryDirectory(prefix="llmos-cache-") as folder:
        os.environ["LLMOS_CACHE_DIR"] = folder
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes on a quiet machine may take many of them on a busy one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
