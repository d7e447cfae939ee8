"""Users of a tenant, as requests name them: who takes turns in the kernel, and labels of metrics.

Both only where the operator allows it. Labels are bounded: the first so many users have counters of their
own, all others are counted together.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter

from shell.gateway.errors import invalid
from syscalls.process import MAX_USER_LENGTH

OTHERS = "other"
USER_PREFIX = b"llmos_gateway_user_"  # of lines of a page that tell of users


def read_user(given: Any, max_users: int) -> str:
    """The user of a body; "" where it names none, or the operator lets nobody count.

    Raises:
        ApiError: 400, it is no string, or too long.
    """
    if not max_users or given is None:
        return ""
    if not isinstance(given, str):
        raise invalid("invalid_type", "'user' must be a string.", "user")
    if len(given) > MAX_USER_LENGTH:
        message = f"'user' has {len(given)} characters; the limit is {MAX_USER_LENGTH}."
        raise invalid("invalid_value", message, "user")
    return given


def hide_others(page: bytes, tenant: str) -> bytes:
    """A page of metrics without the users of other tenants, nor what they have together."""
    escaped = tenant.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    own = f'{{tenant="{escaped}",'.encode()
    lines = page.split(b"\n")
    return b"\n".join(line for line in lines if not line.startswith(USER_PREFIX) or own in line)


class UserMetrics:
    """What the users of all tenants have asked for.

    Args:
        registry: that is rendered.
        max_users: with counters of their own.
    """

    def __init__(self, registry: CollectorRegistry, max_users: int) -> None:
        labels = ("tenant", "user")
        self._max_users = max_users
        self._known: set[tuple[str, str]] = set()
        self._requests = Counter(
            "llmos_gateway_user_requests", "Generation requests of a user", labels, registry=registry
        )
        self._prompt_tokens = Counter(
            "llmos_gateway_user_prompt_tokens", "Prompt tokens of a user", labels, registry=registry
        )
        self._completion_tokens = Counter(
            "llmos_gateway_user_completion_tokens", "Sampled tokens of a user", labels, registry=registry
        )

    def observe(self, tenant: str, user: str, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """Count one request; it need not name a user."""
        if not user:
            return
        key = (tenant, user)
        if key not in self._known:
            if len(self._known) >= self._max_users:
                key = (OTHERS, OTHERS)
            else:
                self._known.add(key)
        self._requests.labels(*key).inc()
        self._prompt_tokens.labels(*key).inc(num_prompt_tokens)
        self._completion_tokens.labels(*key).inc(num_completion_tokens)
