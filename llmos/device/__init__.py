"""The driver interface: what the kernel and a device's driver say to each other.

A driver is an operating-system process that owns one device (the simulated one lives in the kernel's own
process). Both sides speak the messages of `message.py`, in order, over one socket: a little-endian u32
length, then msgpack of one tagged struct. The driver carries messages out strictly in the order they were
sent; that order is what makes it safe to reuse a frame as soon as the kernel has freed it: the edit that
hands it to its next owner rides on a later step than the last one that read it.

Vocabulary: a *space* (asid) is the device side of a process's address space. Virtual page `vpn` of a space
holds the tokens [vpn * tokens_per_page, (vpn + 1) * tokens_per_page) for all layers, and has one frame in
each segment of the KV format.
"""

from __future__ import annotations

from llmos.device.copy import Copy, CopyDone, CopyFault, Place, Tier
from llmos.device.edit import Bind, CopyPage, Edit, Map, Release, Reserve
from llmos.device.grammar import Compile, Compiled, Forget
from llmos.device.layout import DEFAULT_PAGE_TOKENS, Asid, KVFormat, Pfn, Segment, Vpn, choose_kv_format
from llmos.device.link import DriverLink, DriverLost
from llmos.device.load import Failed, Load, Loaded, ModelInfo, Progress, Quality
from llmos.device.message import (
    DRIVER_ABI,
    LENGTH,
    MAX_MESSAGE_BYTES,
    FromDriver,
    Hello,
    StopDriver,
    ToDriver,
    encode_message,
    from_driver_decoder,
    to_driver_decoder,
)
from llmos.device.step import MapWork, Row, RowFault, Step, StepDone
from syscalls.embedding import EmbeddingInfo, Pooling
from syscalls.sampling import CUTS, Dry, Sampling, TokenLogprobs

__all__ = [
    "CUTS",
    "DEFAULT_PAGE_TOKENS",
    "DRIVER_ABI",
    "LENGTH",
    "MAX_MESSAGE_BYTES",
    "Asid",
    "Bind",
    "Compile",
    "Compiled",
    "Copy",
    "CopyDone",
    "CopyFault",
    "CopyPage",
    "DriverLink",
    "DriverLost",
    "Dry",
    "Edit",
    "EmbeddingInfo",
    "Failed",
    "Forget",
    "FromDriver",
    "Hello",
    "KVFormat",
    "Load",
    "Loaded",
    "Map",
    "MapWork",
    "ModelInfo",
    "Pfn",
    "Place",
    "Pooling",
    "Progress",
    "Quality",
    "Release",
    "Reserve",
    "Row",
    "RowFault",
    "Sampling",
    "Segment",
    "Step",
    "StepDone",
    "StopDriver",
    "Tier",
    "ToDriver",
    "TokenLogprobs",
    "Vpn",
    "choose_kv_format",
    "encode_message",
    "from_driver_decoder",
    "to_driver_decoder",
]
