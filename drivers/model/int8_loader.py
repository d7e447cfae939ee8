"""A checkpoint in W8A8 or W4A8 for a device: the integers and scales that are packed for the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from attrs import evolve

from drivers.cache import cache_folder
from drivers.model.kv_layout import KV_DTYPES, kv_segments
from drivers.model.loader import OpenModel, ProgressCallback, choose_kv
from drivers.model.pack_cache import load_packed
from drivers.model.packed import LINEAR, PackedWeights
from drivers.model.transformer import Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.int8 import GROUP, Int4Weight, Int8Weight
from drivers.ops.interface import Ops
from llmos.device import Load
from native.pack import TILE_COLUMNS, PackedWeight, WeightFormat

__all__ = ["load_int8", "unpack_linear", "unpack_weights"]


def load_int8(
    opened: OpenModel,
    load: Load,
    device: torch.device,
    num_threads: int,
    progress: ProgressCallback,
    ops: Ops,
) -> Transformer:
    """Load a model whose products are of weights and activations in 8 bits, weights stored in 8 or in 4.

    Activations between the products, and the embedding, have the published format.

    Args:
        opened: the checkpoint.
        load: says in which format weights, keys and values are.
        device: where the weights go.
        num_threads: that pack, where it was never done.
        progress: told of reading.
        ops: the operations to run on.

    Raises:
        ModelError: the format of keys and values is not served, or the weights cannot be packed.
    """
    published = opened.config.dtype
    kv = choose_kv(opened.config, load.kv, published)
    info = opened.describe(load.weights, kv)
    packed = load_packed(opened, info.hash, load.weights, cache_folder("packed"), num_threads, progress)
    weights = unpack_weights(packed, KV_DTYPES[published], device)
    info = evolve(info, kernels=ops.kernels)
    return Transformer(opened.config, weights, ops, info, kv_segments(opened.config, kv))


def unpack_weights(packed: PackedWeights, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights in rows on a device, of those that are packed for the processor.

    Args:
        packed: in W8A8 or W4A8.
        dtype: of the embedding, norms and activations; biases stay fp32.
        device: where they go, one by one.
    """

    def tensor(array: np.ndarray) -> torch.Tensor:
        return _copied(array, device)

    def norm(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else tensor(array).to(dtype)

    def bias(weight: PackedWeight) -> torch.Tensor | None:
        return None if weight.bias is None else tensor(weight.bias)

    layers = []
    for layer in packed.layers:
        parts = {name: getattr(layer, name) for name in LINEAR}
        linear: dict[str, Any] = {name: unpack_linear(part, dtype, device) for name, part in parts.items()}
        linear |= {f"{name}_bias": bias(part) for name, part in parts.items()}
        layers.append(
            LayerWeights(
                input_norm=tensor(layer.input_norm).to(dtype),
                q_norm=norm(layer.q_norm),
                k_norm=norm(layer.k_norm),
                post_norm=tensor(layer.post_norm).to(dtype),
                **linear,
            )
        )
    embedding = tensor(packed.embedding)
    if embedding.dtype != torch.float32:
        embedding = embedding.view(dtype)
    return Weights(
        embedding,
        tuple(layers),
        tensor(packed.final_norm).to(dtype),
        unpack_linear(packed.head, dtype, device),
    )


def unpack_linear(weight: PackedWeight, dtype: torch.dtype, device: torch.device) -> Int8Weight | Int4Weight:
    """One weight of W8A8 or W4A8; its products are rounded to a dtype."""
    assert weight.scale is not None
    scale = _copied(weight.scale, device)
    if weight.weight_format is WeightFormat.W4A8:
        codes, group_scale, group_offset = (_copied(array, device) for array in _codes(weight))
        return Int4Weight(codes, group_scale, group_offset, scale, dtype, weight.k)
    return Int8Weight(_copied(weight.unpack_int8(), device), scale, dtype)


def _copied(array: np.ndarray, device: torch.device) -> torch.Tensor:
    # a mapped file cannot be written, and torch wants that it could
    return torch.from_numpy(np.array(array)).to(device)


def _codes(weight: PackedWeight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and offsets of a W4A8 weight's groups, as in `Int4Weight`; see native/cpu/_pack.h."""
    num_tiles, num_groups = -(-weight.n // TILE_COLUMNS), -(-weight.k // GROUP)
    tiles = weight.data.reshape(num_tiles, -1)
    codes = np.zeros((num_tiles, TILE_COLUMNS, num_groups, GROUP // 8, 2, 4), dtype=np.uint8)
    pairs = np.zeros((2, num_tiles, TILE_COLUMNS, num_groups), dtype=np.uint8)  # scales, offsets
    begin = 0
    for group in range(num_groups):
        size = min(GROUP // 8, -(-weight.k // 8) - group * (GROUP // 8))  # in eights of inputs
        end = begin + 2 * TILE_COLUMNS
        pairs[..., group] = tiles[:, begin:end].reshape(num_tiles, 2, TILE_COLUMNS).swapaxes(0, 1)
        begin, end = end, end + size * 4 * TILE_COLUMNS
        nibbles = tiles[:, begin:end].reshape(num_tiles, size, TILE_COLUMNS, 4).swapaxes(1, 2)
        codes[:, :, group, :size, 0] = nibbles & 15
        codes[:, :, group, :size, 1] = nibbles >> 4
        begin = end
    halves = codes.reshape(-1, num_groups, 2, GROUP // 2)[: weight.n]
    packed = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(weight.n, -1)
    scales, offsets = (np.ascontiguousarray(pair.reshape(-1, num_groups)[: weight.n]) for pair in pairs)
    return packed, scales, offsets
