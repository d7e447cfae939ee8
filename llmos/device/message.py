"""All messages of the dialogue, each way, and their bytes."""

from __future__ import annotations

import struct

import msgspec

from llmos.device.copy import Copy, CopyDone
from llmos.device.grammar import Compile, Compiled, Forget
from llmos.device.load import Failed, Load, Loaded, Progress
from llmos.device.step import Step, StepDone

DRIVER_ABI = 5
MAX_MESSAGE_BYTES = 64 << 20
LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """First message of a driver."""

    abi: int
    kind: str  # "cpu", "cuda", "sim"
    name: str  # "cpu:0"
    description: str
    memory_bytes: int
    num_threads: int
    os_pid: int | None


class StopDriver(msgspec.Struct, frozen=True, tag="stop"):
    """Finish what was sent before, then exit."""


ToDriver = Load | Step | Copy | Compile | Forget | StopDriver
FromDriver = Hello | Progress | Loaded | Failed | StepDone | CopyDone | Compiled

to_driver_decoder = msgspec.msgpack.Decoder(ToDriver)
from_driver_decoder = msgspec.msgpack.Decoder(FromDriver)
_encoder = msgspec.msgpack.Encoder()


def encode_message(message: ToDriver | FromDriver) -> bytes:
    """Encode one message with its length prefix."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload
