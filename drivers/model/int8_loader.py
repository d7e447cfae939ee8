"""A checkpoint in W8A8 for a device: integers and scales as the weight cache has them for the processor."""

from __future__ import annotations

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
from drivers.ops.int8 import Int8Weight
from drivers.ops.interface import Ops
from llmos.device import Load
from native.gemm import PackedWeight

__all__ = ["load_int8", "unpack_weights"]

FORMAT = "w8a8"


def load_int8(
    opened: OpenModel,
    load: Load,
    device: torch.device,
    num_threads: int,
    progress: ProgressCallback,
    ops: Ops,
) -> Transformer:
    """Load a model whose products are of int8 weights and int8 activations.

    Activations between the products, and the embedding, have the published format.

    Args:
        opened: the checkpoint.
        load: says in which format keys and values are.
        device: where the weights go.
        num_threads: that pack, where it was never done.
        progress: told of reading.
        ops: the operations to run on.

    Raises:
        ModelError: the format of keys and values is not served, or the weights cannot be packed.
    """
    published = opened.config.dtype
    kv = choose_kv(opened.config, load.kv, published)
    info = opened.describe(FORMAT, kv)
    packed = load_packed(opened, info.hash, FORMAT, cache_folder("packed"), num_threads, progress)
    weights = unpack_weights(packed, KV_DTYPES[published], device)
    info = evolve(info, kernels=ops.kernels)
    return Transformer(opened.config, weights, ops, info, kv_segments(opened.config, kv))


def unpack_weights(packed: PackedWeights, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights in rows on a device, of those that are packed for the processor.

    Args:
        packed: in W8A8.
        dtype: of the embedding, norms and activations; biases stay fp32.
        device: where they go, one by one.
    """

    def tensor(array: np.ndarray) -> torch.Tensor:
        # a copy: a mapped file cannot be written, and torch wants that it could
        return torch.from_numpy(np.array(array)).to(device)

    def norm(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else tensor(array).to(dtype)

    def linear(weight: PackedWeight) -> Int8Weight:
        assert weight.scale is not None
        return Int8Weight(tensor(weight.unpack_int8()), tensor(weight.scale), dtype)

    def bias(weight: PackedWeight) -> torch.Tensor | None:
        return None if weight.bias is None else tensor(weight.bias)

    layers = []
    for layer in packed.layers:
        parts = {name: getattr(layer, name) for name in LINEAR}
        layers.append(
            LayerWeights(
                input_norm=tensor(layer.input_norm).to(dtype),
                q_norm=norm(layer.q_norm),
                k_norm=norm(layer.k_norm),
                post_norm=tensor(layer.post_norm).to(dtype),
                **{name: linear(weight) for name, weight in parts.items()},
                **{f"{name}_bias": bias(weight) for name, weight in parts.items()},
            )
        )
    embedding = tensor(packed.embedding)
    if embedding.dtype != torch.float32:
        embedding = embedding.view(dtype)
    return Weights(embedding, tuple(layers), tensor(packed.final_norm).to(dtype), linear(packed.head))
