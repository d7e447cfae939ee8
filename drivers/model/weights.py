"""A model's weights in memory: fused where the forward pass reads them together."""

from __future__ import annotations

import torch
from attrs import frozen

from drivers.ops.int8 import Weight

__all__ = ["LayerWeights", "Weights"]


@frozen(eq=False)
class LayerWeights:
    """One decoder layer. Linear weights are [out, in], as stored; in W8A8 all of a model's are int8."""

    input_norm: torch.Tensor  # [hidden]
    qkv: Weight  # [(num_heads + 2 num_kv_heads) head_dim, hidden]: queries, keys, values
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    output: Weight  # [hidden, num_heads head_dim]
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor  # [hidden]
    gate_up: Weight  # [2 intermediate, hidden]: gate, up
    gate_up_bias: torch.Tensor | None
    down: Weight  # [hidden, intermediate]
    down_bias: torch.Tensor | None


@frozen(eq=False)
class Weights:
    """All of a model's parameters."""

    embedding: torch.Tensor  # [vocab_size, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: torch.Tensor  # [hidden]
    head: Weight  # [vocab_size, hidden]; the embedding itself when tied
