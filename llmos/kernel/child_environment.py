"""What the kernel's child processes find in their environment: all but the keys of tenants."""

from __future__ import annotations

import os
from collections.abc import Mapping

from llmos.params import KEYS_VARIABLE


def child_environment(defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the kernel's environment without secrets; `defaults` stand behind what is set."""
    environment = {**(defaults or {}), **os.environ}
    environment.pop(KEYS_VARIABLE, None)
    return environment
