"""The built-in model: two Hugging Face folders shipped with the package. See README.md for the card."""

from __future__ import annotations

from pathlib import Path


def base_path() -> Path:
    """The folder of the base model."""
    return Path(__file__).parent / "base"


def draft_path() -> Path:
    """The folder of the draft model, on the same tokenizer."""
    return Path(__file__).parent / "draft"
