"""Shared by the whole suite."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache_folder() -> Iterator[None]:
    """What drivers keep between loads goes where the run's other files go, and with them."""
    with tempfile.TemporaryDirectory(prefix="llmos-cache-") as folder:
        os.environ["LLMOS_CACHE_DIR"] = folder
        yield
