"""Real-time priority, for the two processes that every token passes through: the kernel and the gateway.

Each of them has a few milliseconds of work for a step's tokens, and then waits. On a machine that is busy
with other things (a device's threads, say) they wait for a processor as well, and are sent back to wait while
they have it: that, and not their work, is what makes the last of many tokens late.
"""

from __future__ import annotations

import os

PRIORITY = 10  # of 1 to 99: below what serves interrupts (50), and with room underneath


def go_before_others() -> None:
    """Let the calling thread run before everything that has ordinary priority, round robin with its equals.

    Threads and processes that it starts are of ordinary priority again: they do what may wait.

    Raises:
        OSError: the system does not allow it, or has no such thing.
    """
    try:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    except AttributeError:
        raise OSError("this system has no such priority") from None
    os.sched_setscheduler(0, policy, os.sched_param(PRIORITY))


def explain_refusal(error: OSError) -> str:
    """Return the sentence for an operator who has asked for it."""
    return (
        f"realtime is set, and the system does not allow it: {error.strerror or error}; "
        f"it takes CAP_SYS_NICE, or a limit RLIMIT_RTPRIO of at least {PRIORITY}"
    )
