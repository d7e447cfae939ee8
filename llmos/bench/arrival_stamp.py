"""When bytes came to a TCP socket, by the system's own clock.

A client that shares two cores with the server it measures is late itself: what it reads has been there for
milliseconds. The system knows better, and tells with the bytes (`SO_TIMESTAMPNS`, in Linux; see socket(7)).
"""

from __future__ import annotations

import socket
import struct
import sys

# Python has no names for these. The number is the same for all processors but PA-RISC and SPARC.
SO_TIMESTAMPNS = SCM_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)


def ask_for_stamps(raw: socket.socket) -> None:
    """Have the system say of what is received when it came; where it cannot, nothing changes."""
    if sys.platform != "linux":
        return
    try:
        raw.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return


def receive(raw: socket.socket, num_bytes: int) -> tuple[bytes, float | None]:
    """Receive, and say when the last of it came, in Unix time; None: the system does not say.

    Raises what `recvmsg` raises.
    """
    data, ancillary, _, _ = raw.recvmsg(num_bytes, _ANCILLARY_BYTES)
    for level, kind, value in ancillary:
        if level == socket.SOL_SOCKET and kind == SCM_TIMESTAMPNS and len(value) == _TIMESPEC.size:
            seconds, nanoseconds = _TIMESPEC.unpack(value)
            return data, seconds + 1e-9 * nanoseconds
    return data, None
