"""Where drivers keep what they can make again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(kind: str) -> Path:
    """The folder of one kind of files, in $LLMOS_CACHE_DIR or the user's cache folder; it may not exist."""
    if root := os.environ.get("LLMOS_CACHE_DIR"):
        return Path(root) / kind
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "llmos" / kind
