"""Limits of the kernel, with units. What an operator may change is in config.py."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"

MAX_PROCESSES: Final = 65_536  # entries in the process table, zombies included
MAX_SESSIONS: Final = 4_096  # connections to the syscall socket
MAX_PARKED_CALLS: Final = 16_384  # calls of one session that wait for something; more are refused
MAX_REPLY_BACKLOG_BYTES: Final = 32 << 20  # unread replies of one session; then it is not read either
MAX_GATHERED_BYTES: Final = 64 << 10  # likewise; then what it follows waits in the process
FAREWELL_SECONDS: Final = 2.0  # for a session's last replies to be sent, or the last processes to end
LAST_READ_SECONDS: Final = 0.5  # before sessions end, for those who still ask how their processes ended
HANDSHAKE_SECONDS: Final = 10.0  # a session that has not said Hello by then is closed

STEPS_IN_FLIGHT: Final = 2  # the kernel plans step N+1 while the device computes step N
MAX_STRETCH: Final = 2.0  # of a step by prompts, if its decodes take more than half of the target
COURTEOUS_SECONDS: Final = 0.01  # added to a step by a tenant over its share: nobody sees it
COURTEOUS_STRETCH: Final = 0.27  # likewise, as a share of what decodes take, where that is more
SMALL_REST: Final = 1 / 8  # of the time for prompts: a prompt that would be done with so much more is done
MIN_PROMPT_TOKENS: Final = 16  # that a step carries if prompts wait, however long its decodes take
MAX_SCORED_TOKENS: Final = 64  # of prompts in a step: each takes a row of logits over the whole vocabulary
MAX_GRAMMAR_CHARACTERS_IN_USE: Final = 64 << 20  # of different grammars on a device; spawn refuses more
MAX_GRAMMARS_KEPT: Final = 64  # on a device, compiled and followed by nobody, for whoever comes next
MAX_GRAMMAR_CHARACTERS_KEPT: Final = 4 << 20  # of those, together
EVENT_RING_SIZE: Final = 8_192  # lines of dmesg kept

MAX_SAVES_AT_ONCE: Final = 4  # checkpoints under way, each of which pins the pages that it writes; more wait

ZOMBIE_SECONDS: Final = 600.0  # a detached process that nobody waits for is reaped after this
DRIVER_START_SECONDS: Final = 60.0  # from exec to Hello
DRIVER_STOP_SECONDS: Final = 5.0  # from StopDriver to SIGKILL
MAX_DRIVER_RESTARTS: Final = 5  # within DRIVER_RESTART_WINDOW_SECONDS; then the device is failed
DRIVER_RESTART_WINDOW_SECONDS: Final = 300.0
DRIVER_RESTART_SECONDS: Final = 0.2  # before the first restart in a window; twice as long before each other
KEYS_VARIABLE: Final = "LLMOS_KEYS"  # NAME=KEY, …: tenants' keys in the environment of the kernel alone
