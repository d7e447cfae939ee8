"""`python -m shell.gateway.body_process FD MAX_BYTES KEPT_BYTES`: decodes large bodies, one by one.

A body comes as the descriptor of a file in memory, over the socket FD; its value goes back in parts. Decoding
64 MiB of JSON holds an interpreter's lock for a tenth of a second and more, and what is decoded may be thirty
times as large: here that is nobody's time and nobody's memory but the body's own. A process that has more
than KEPT_BYTES of memory after a body ends itself: the next body has a fresh one.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from shell.gateway.body import parse_body
from shell.gateway.body_parts import BodyLimits, BodyTooLarge, Splitter, count_characters
from shell.gateway.errors import ApiError

LENGTH = struct.Struct("<I")  # before each message
NICE = 10  # whoever waits for tokens goes first
MEMORY_BYTES = 512 << 20  # address space, besides MEMORY_TIMES the largest body
MEMORY_TIMES = 8


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A body that is not taken: the parts of a 400, and what says more where a text is too long."""

    code: str
    message: str
    param: str | None
    is_last: bool = False
    field: str | None = None  # the member of the body that is too large
    num_characters: int = 0  # in that member
    model: str | None = None  # the body's own
    is_cut: bool = False  # it asks for its text to be cut to what fits


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """Its value follows in so many parts. `is_last`: the process ends after them."""

    num_parts: int
    is_last: bool = False


def read_value(raw: Any, limits: BodyLimits) -> Refused | list[bytes]:
    """Decode a body, check it against the limits and take it apart."""
    try:
        value = parse_body(raw)
        try:
            return Splitter(limits).split(value)
        except BodyTooLarge as error:
            return explain(error, value)
    except ApiError as error:
        return Refused(error.code, error.message, error.param)
    except RecursionError:
        return Refused("invalid_json", "The request's body is nested too deeply.", None)
    except MemoryError:
        message = "The request's body holds too many values to be read."
    return Refused("invalid_value", message, None)


def explain(error: BodyTooLarge, value: dict[str, Any]) -> Refused:
    """Say which field of a body is too large, and how large it is."""
    if not error.path:
        return Refused("invalid_value", f"Invalid value for the request body: {error.what}.", None)
    field = str(error.path[0])
    model = value.get("model")
    return Refused(
        "invalid_value",
        f"Invalid value for '{error.param}': {error.what}.",
        error.param,
        field=field[:100],
        num_characters=count_characters(value[field]),
        model=model[:1000] if isinstance(model, str) else None,
        is_cut="truncate_prompt_tokens" in value,
    )


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def read_file(descriptor: int, limits: BodyLimits) -> Refused | list[bytes]:
    """Read a body from its file, and close that."""
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as raw:
            return read_value(raw, limits)
    finally:
        os.close(descriptor)


def serve(channel: socket.socket, kept_bytes: int) -> None:
    """Answer until the other side closes, or memory has grown."""
    decoder = msgspec.msgpack.Decoder(BodyLimits)
    encoder = msgspec.msgpack.Encoder()
    while True:
        task, descriptors, _, _ = socket.recv_fds(channel, 4096, 1)  # less than that, and sent at once
        if not descriptors:
            return
        found = read_file(descriptors[0], decoder.decode(task))
        is_last = resident_bytes() > kept_bytes
        if isinstance(found, Refused):
            messages = [encoder.encode(msgspec.structs.replace(found, is_last=is_last))]
        else:
            messages = [encoder.encode(Accepted(len(found), is_last)), *found]
        for message in messages:
            channel.sendall(LENGTH.pack(len(message)) + message)
        if is_last:
            return
        del found, messages


def main() -> None:
    """Serve the socket that was passed on."""
    descriptor, max_bytes, kept_bytes = map(int, sys.argv[1:])
    os.nice(NICE)
    limit = MEMORY_BYTES + MEMORY_TIMES * max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    gc.disable()  # there are no circles, and no time for looking for them in a million values
    with socket.socket(fileno=descriptor) as channel:
        with suppress(BrokenPipeError, ConnectionResetError):  # the gateway is gone, or waits no longer
            serve(channel, kept_bytes)


if __name__ == "__main__":
    main()
