"""Shared by the tests of llmsh."""

from __future__ import annotations

import pytest

from shell.llmsh import completion, hints
from tests.llmsh.patient import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What half a second decides for a person decides no test."""
    monkeypatch.setattr(completion, "PATIENCE_SECONDS", PATIENCE_SECONDS)
    monkeypatch.setattr(hints, "PATIENCE_SECONDS", PATIENCE_SECONDS)
