"""A model's weights as native/cpu takes them: packed, in plain arrays that may lie in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from attrs import frozen

from drivers.model.config import ModelConfig
from drivers.model.errors import ModelError
from drivers.model.weights import LayerWeights
from native.pack import PackedWeight, WeightFormat, pack_weight

__all__ = ["LINEAR", "WEIGHT_FORMATS", "PackedLayer", "PackedWeights", "pack_arrays"]

WEIGHT_FORMATS = {
    "fp32": WeightFormat.FP32,
    "fp16": WeightFormat.FP16,
    "bf16": WeightFormat.BF16,
    "w8a8": WeightFormat.W8A8,
    "w4a8": WeightFormat.W4A8,
}
LINEAR = ("qkv", "output", "gate_up", "down")
NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")


@frozen(eq=False)
class PackedLayer:
    """One decoder layer; see LayerWeights for the shapes."""

    input_norm: np.ndarray  # fp32, like the other norms
    post_norm: np.ndarray
    q_norm: np.ndarray | None
    k_norm: np.ndarray | None
    qkv: PackedWeight
    output: PackedWeight
    gate_up: PackedWeight
    down: PackedWeight


@frozen(eq=False)
class PackedWeights:
    """All of a model's parameters."""

    weight_format: WeightFormat
    embedding: np.ndarray  # [vocab_size, hidden]: fp32, or the bits of fp16 or bf16 as uint16
    embedding_format: WeightFormat
    layers: tuple[PackedLayer, ...]
    final_norm: np.ndarray
    head: PackedWeight
    head_is_finite: bool  # no weight of the head is an infinity or NaN

    @classmethod
    def from_arrays(
        cls, config: ModelConfig, weights: str, embedding: str, arrays: Mapping[str, np.ndarray]
    ) -> PackedWeights:
        """Put together what `pack_arrays` made.

        Args:
            config: the model's shape.
            weights: the format that they were packed in.
            embedding: the format of the embedding.
            arrays: by name; they are kept, not copied.

        Raises:
            ValueError: an array is missing or does not fit the shape.
        """
        weight_format = WEIGHT_FORMATS[weights]
        hidden, inner = config.hidden_size, config.intermediate_size
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        shapes = {
            "qkv": (q_size + 2 * kv_size, hidden, config.qkv_bias),
            "output": (hidden, q_size, config.output_bias),
            "gate_up": (2 * inner, hidden, config.mlp_bias),
            "down": (hidden, inner, config.mlp_bias),
        }

        def array(name: str) -> np.ndarray:
            if name not in arrays:
                raise ValueError(f"array {name} is missing")
            return arrays[name]

        def vector(name: str, size: int) -> np.ndarray:
            found = array(name)
            if found.dtype != np.float32 or found.shape != (size,):
                raise ValueError(f"{name} must be {size} fp32, got {found.dtype} {found.shape}")
            return found

        def linear(name: str, n: int, k: int, has_bias: bool = False) -> PackedWeight:
            scale = array(f"{name}.scale") if weight_format.is_quantised else None
            bias = array(f"{name}.bias") if has_bias else None
            return PackedWeight(weight_format, n, k, array(name), scale, bias)

        def layer(prefix: str) -> PackedLayer:
            return PackedLayer(
                vector(prefix + "input_norm", hidden),
                vector(prefix + "post_norm", hidden),
                vector(prefix + "q_norm", config.head_dim) if config.qk_norm else None,
                vector(prefix + "k_norm", config.head_dim) if config.qk_norm else None,
                *(linear(prefix + name, *shapes[name]) for name in LINEAR),
            )

        table = array("embedding")
        expected = np.float32 if embedding == "fp32" else np.uint16
        if table.shape != (config.vocab_size, hidden) or table.dtype != expected:
            raise ValueError(f"embedding is {table.dtype} {table.shape}")
        return cls(
            weight_format=weight_format,
            embedding=table,
            embedding_format=WEIGHT_FORMATS[embedding],
            layers=tuple(layer(f"layers.{index}.") for index in range(config.num_layers)),
            final_norm=vector("final_norm", hidden),
            head=linear("head", config.vocab_size, hidden),
            head_is_finite=bool(array("head_is_finite").all()),
        )

    @property
    def step_bytes(self) -> int:
        """Weights that a step reads, embeddings aside."""
        linear = [getattr(layer, name) for layer in self.layers for name in LINEAR]
        return sum(weight.data.nbytes for weight in (*linear, self.head))


def pack_arrays(
    weights: str,
    embedding: torch.Tensor,
    final_norm: torch.Tensor,
    head: torch.Tensor,
    layers: Iterable[LayerWeights],
    num_threads: int = 1,
) -> Iterator[tuple[str, np.ndarray]]:
    """Pack a model part by part, so that no more than a layer need be in memory twice.

    Args:
        weights: the format to pack in.
        embedding: [vocab_size, hidden], kept as it is.
        final_norm: [hidden].
        head: [vocab_size, hidden].
        layers: in order; consumed one by one.
        num_threads: that pack.

    Yields:
        (name, array), as `PackedWeights.from_arrays` takes them.

    Raises:
        ModelError: a weight is not finite and the format has no such number; it names the weight.
    """
    weight_format = WEIGHT_FORMATS[weights]

    def linear(
        name: str, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        packed = pack_weight(weight_format, _rows(weight), num_threads=num_threads)
        if packed.scale is not None and not np.isfinite(packed.scale).all():
            raise ModelError(f"{name} holds a weight that is not finite; {weights} cannot represent it")
        yield name, packed.data
        if packed.scale is not None:
            yield f"{name}.scale", packed.scale
        if bias is not None:
            yield f"{name}.bias", _floats(bias)

    bits = embedding.contiguous()
    yield "embedding", bits.numpy() if bits.dtype == torch.float32 else bits.view(torch.uint16).numpy()
    yield "final_norm", _floats(final_norm)
    # a largest logit that is finite says nothing of the others when a weight is not
    yield "head_is_finite", np.array([bool(torch.isfinite(head).all())], dtype=np.uint8)
    yield from linear("head", head, None)
    for index, layer in enumerate(layers):
        prefix = f"layers.{index}."
        for name in NORMS:
            if (norm := getattr(layer, name)) is not None:
                yield prefix + name, _floats(norm)
        for name in LINEAR:
            yield from linear(prefix + name, getattr(layer, name), getattr(layer, f"{name}_bias"))


def _rows(weight: torch.Tensor) -> np.ndarray:
    """As `pack_weight` takes them, without a copy."""
    rows = weight.detach().contiguous()
    array: np.ndarray = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
    return array


def _floats(values: torch.Tensor) -> np.ndarray:
    array: np.ndarray = np.ascontiguousarray(values.detach().float().numpy())
    return array
