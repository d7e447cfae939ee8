"""The one way in which a model is refused."""

from __future__ import annotations

__all__ = ["ModelError"]


class ModelError(ValueError):
    """A model folder cannot be loaded; the message names the file, tensor or setting at fault."""
