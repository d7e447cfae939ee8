"""From stored blocks to fp32, in the ggml project's order of operations, so that every value is the same.

Each decoder takes the blocks of one format, uint8 [num_blocks, block_bytes], and returns fp32
[num_blocks, block_values].
Source: the block layouts of the ggml project (Q4_0 to Q8_0: one scale for 32 values; the K formats: a
superblock of 256 values, with scales of 4 to 8 bits for groups of 16 or 32).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from drivers.model.gguf.storage import Storage

__all__ = ["dequantise"]


def dequantise(blocks: bytearray, storage: Storage) -> torch.Tensor:
    """Decode whole blocks.

    Args:
        blocks: as they lie in the file, at least one.
        storage: their format, not one of floating point.

    Returns:
        fp32 [num_values].
    """
    raw = torch.frombuffer(blocks, dtype=torch.uint8)
    return DECODERS[storage.name](raw.view(-1, storage.block_bytes)).flatten()


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fp16 number at a byte of each block: [num_blocks, 1], fp32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _shifted(fields: torch.Tensor, shifts: list[int], mask: int, width: int) -> torch.Tensor:
    """Bit fields of bytes [num_blocks, num_bytes]: each run of `width` bytes once for every shift."""
    runs = fields.reshape(len(fields), -1, 1, width)
    return ((runs >> torch.tensor(shifts, dtype=torch.uint8).view(1, 1, -1, 1)) & mask).flatten(1)


def _high_bits(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The fifth bits of 32 values, kept in four bytes: [num_blocks, 32], 0 or 16."""
    return ((blocks[:, at : at + 4, None] >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1) << 4


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_shifted(blocks[:, 2:], [0, 4], 15, 16).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _shifted(blocks[:, 4:], [0, 4], 15, 16).float() + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    values = _shifted(blocks[:, 6:], [0, 4], 15, 16) | _high_bits(blocks, 2)
    return _half(blocks, 0) * (values.float() - 16)


def _q5_1(blocks: torch.Tensor) -> torch.Tensor:
    values = _shifted(blocks[:, 8:], [0, 4], 15, 16) | _high_bits(blocks, 4)
    return _half(blocks, 0) * values.float() + _half(blocks, 2)


def _q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scales = _half(blocks, 80) * (blocks[:, :16] & 15).float()
    minima = _half(blocks, 82) * (blocks[:, :16] >> 4).float()
    values = _shifted(blocks[:, 16:80], [0, 2, 4, 6], 3, 32)
    return scales[:, :, None] * values.view(-1, 16, 16).float() - minima[:, :, None]


def _q3_k(blocks: torch.Tensor) -> torch.Tensor:
    scales = _shifted(blocks[:, 96:104], [0, 4], 15, 8) | (
        _shifted(blocks[:, 104:108], [0, 2, 4, 6], 3, 4) << 4
    )
    scales = _half(blocks, 108) * (scales.float() - 32)
    high = _shifted(blocks[:, :32], list(range(8)), 1, 32)
    values = _shifted(blocks[:, 32:96], [0, 2, 4, 6], 3, 32) | (high << 2)
    return scales[:, :, None] * (values.view(-1, 16, 16).float() - 4)


def _scales_and_minima(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the minimum of the eight groups of a Q4_K or Q5_K superblock: two of [num_blocks, 8, 1].

    Six bits each in twelve bytes: the first four of either lie in the low bits of bytes 0 to 7, the last four
    have their low bits in bytes 8 to 11 and their high bits above the first four.
    """
    low_scale, low_minimum, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([low_scale & 63, (mixed & 15) | ((low_scale >> 2) & 48)], dim=1)
    minima = torch.cat([low_minimum & 63, (mixed >> 4) | ((low_minimum >> 2) & 48)], dim=1)
    return (_half(blocks, 0) * scales.float())[:, :, None], (_half(blocks, 2) * minima.float())[:, :, None]


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(blocks)
    values = _shifted(blocks[:, 16:], [0, 4], 15, 32)
    return scales * values.view(-1, 8, 32).float() - minima


def _q5_k(blocks: torch.Tensor) -> torch.Tensor:
    scales, minima = _scales_and_minima(blocks)
    high = _shifted(blocks[:, 16:48], list(range(8)), 1, 32)
    values = _shifted(blocks[:, 48:], [0, 4], 15, 32) | (high << 4)
    return scales * values.view(-1, 8, 32).float() - minima


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low = _shifted(blocks[:, :128], [0, 4], 15, 64)
    high = _shifted(blocks[:, 128:192], [0, 2, 4, 6], 3, 32)
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return scales[:, :, None] * ((low | (high << 4)).view(-1, 16, 16).float() - 32)


DECODERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
