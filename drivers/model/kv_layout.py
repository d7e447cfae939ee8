"""Where a key or value lies inside its frame: a closed formula of layer, token, head and dimension.

A frame holds one run of consecutive tokens for all layers, in the order [layer][token][head][dim]; keys and
values live in separate frames (segments "K" and "V"). The tail of a frame that no token fits in is unused. In
int8, a layer's numbers are followed by the fp32 scales [token][head].

Native kernels have their own order inside a layer, [head][tile][dim][token of the tile] for keys and
[head][token][dim] for values, with tiles of 16 tokens; in int8, a head's numbers are followed by the fp32
scale of each of its tokens. native/cpu/attention.h has the formulas.
"""

from __future__ import annotations

from typing import Protocol

import torch

from drivers.ops.int8 import SCALE_BYTES, scales_of
from llmos.device import KVFormat, Segment

__all__ = [
    "KV_DTYPES",
    "KVShape",
    "kv_segments",
    "kv_views",
    "native_kv_views",
    "poison_tail",
]

MAX_TILE = 16  # tokens whose keys native kernels read together

KV_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class KVShape(Protocol):
    """What the layout needs to know of a model; `ModelConfig` has it."""

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...


def kv_segments(shape: KVShape, kv: str) -> tuple[Segment, ...]:
    """The segments of every address space of a model: "K" and "V", all layers of a token together.

    Args:
        shape: the model's layers, key-value heads and head dimension.
        kv: "fp32", "fp16", "bf16" or "int8".
    """
    head_bytes = shape.head_dim + SCALE_BYTES if kv == "int8" else shape.head_dim * KV_DTYPES[kv].itemsize
    size_bytes = shape.num_layers * shape.num_kv_heads * head_bytes
    return (Segment("K", size_bytes), Segment("V", size_bytes))


def kv_views(buffer: torch.Tensor, shape: KVShape, kv: KVFormat) -> list[torch.Tensor]:
    """View a run of frames of one segment as one strided tensor for each layer.

    Args:
        buffer: flat uint8, [num_pages * kv.frame_bytes], contiguous, aligned to the number format.
        shape: the model's layers, key-value heads and head dimension.
        kv: the format; its name says the number format.

    Returns:
        For each layer, a view [num_pages, tokens_per_page, num_kv_heads, head_dim]; nothing is copied.
        In int8, see `scales_of` for the scales.

    Raises:
        ValueError: the buffer is not a whole number of frames, or a frame is too small for its tokens; or
            int8 heads are no multiple of 4, so that scales would not be aligned.
    """
    elements, layer_elements = _check(buffer, shape, kv)
    if kv.name == "int8":
        if shape.head_dim % SCALE_BYTES or kv.frame_bytes % SCALE_BYTES:
            raise ValueError(f"int8 heads of {shape.head_dim}, frames of {kv.frame_bytes}: no multiples of 4")
        elements = elements.view(torch.int8)
    size = (buffer.numel() // kv.frame_bytes, kv.tokens_per_page, shape.num_kv_heads, shape.head_dim)
    stride = (
        kv.frame_bytes // elements.itemsize,
        shape.num_kv_heads * shape.head_dim,
        shape.head_dim,
        1,
    )
    base = elements.storage_offset()
    return [
        elements.as_strided(size, stride, base + layer * layer_elements) for layer in range(shape.num_layers)
    ]


def native_kv_views(
    buffer: torch.Tensor, shape: KVShape, kv: KVFormat, *, is_key: bool
) -> list[torch.Tensor]:
    """`kv_views` in the order of native kernels.

    Returns:
        For each layer, a view [num_pages, tiles, tokens_per_tile, num_kv_heads, head_dim]; in int8, where no
        strides describe the order, bytes [num_pages, num_kv_heads, tokens_per_page * (head_dim + 4)].

    Raises:
        ValueError: see kv_views; or a page is longer than a tile and not a multiple of it.
    """
    page, dim = kv.tokens_per_page, shape.head_dim
    tile = min(page, MAX_TILE)
    if page % tile:
        raise ValueError(f"a page of {page} tokens is not a multiple of {tile}")
    elements, layer_elements = _check(buffer, shape, kv)
    num_pages, frame = buffer.numel() // kv.frame_bytes, kv.frame_bytes // elements.itemsize
    size: tuple[int, ...]
    stride: tuple[int, ...]
    if kv.name == "int8":
        head_bytes = page * (dim + SCALE_BYTES)
        size, stride = (num_pages, shape.num_kv_heads, head_bytes), (frame, head_bytes, 1)
    else:
        size = (num_pages, page // tile, tile, shape.num_kv_heads, dim)
        in_tile = (1, page * dim, tile) if is_key else (dim, page * dim, 1)  # token, head, dim
        stride = (frame, tile * dim, *in_tile)
    base = elements.storage_offset()
    return [
        elements.as_strided(size, stride, base + layer * layer_elements) for layer in range(shape.num_layers)
    ]


def poison_tail(view: torch.Tensor, page: int, slot: int, tokens_per_page: int) -> None:
    """Fill token slots from `slot` on of one page with junk (NaN), in a view of any kind.

    In int8 the scales are made NaN, which the numbers that they belong to cannot hide.
    """
    if view.dtype == torch.int8:
        scales_of(view)[page, slot:] = torch.nan
    elif view.dim() == 4:
        view[page, slot:] = torch.nan
    elif view.dim() == 3:
        view[page, :, SCALE_BYTES * (slot - tokens_per_page) :] = 0xFF
    else:
        tile, lane = divmod(slot, view.shape[2])
        view[page, tile, lane:] = torch.nan
        view[page, tile + 1 :] = torch.nan


def _check(buffer: torch.Tensor, shape: KVShape, kv: KVFormat) -> tuple[torch.Tensor, int]:
    """The buffer in its number format, and how many elements a layer takes in a frame."""
    dtype = KV_DTYPES.get(kv.name, torch.uint8)
    layer_bytes = kv_segments(shape, kv.name)[0].bytes_per_token // shape.num_layers * kv.tokens_per_page
    if buffer.dtype != torch.uint8 or buffer.dim() != 1 or buffer.numel() % kv.frame_bytes:
        raise ValueError(f"buffer of {buffer.numel()} bytes is not flat frames of {kv.frame_bytes} bytes")
    if kv.frame_bytes % dtype.itemsize or layer_bytes * shape.num_layers > kv.frame_bytes:
        raise ValueError(
            f"a frame of {kv.frame_bytes} bytes cannot hold {kv.tokens_per_page} tokens of "
            f"{shape.num_layers} layers x {shape.num_kv_heads} heads x {shape.head_dim} {kv.name}"
        )
    return buffer.view(dtype), layer_bytes // dtype.itemsize
