"""Models of real shapes with random weights, for measurements where only the shape counts."""

from __future__ import annotations

import numpy as np

from drivers.cpu import CpuDriver
from drivers.model.config import ModelConfig, RopeConfig
from drivers.model.loader import ProgressCallback
from drivers.model.native_transformer import NativeTransformer
from drivers.model.packed import LINEAR, WEIGHT_FORMATS, PackedWeights
from drivers.model.transformer import ModelDescription
from llmos.device import Load, Quality
from native.arrays import aligned_empty
from native.pack import TILE_COLUMNS, WeightFormat, pack_weight, packed_bytes

__all__ = ["SHAPES", "RandomDriver", "random_native_model", "random_weights"]

SAMPLE_WEIGHTS = 1 << 23  # of a matrix are drawn and packed; the rest repeats them
LOGIT_SCALE = 4.0  # the deviation of logits: the most likely of 128,256 tokens then has a few per cent


def _llama(
    vocab_size: int, hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int,
    num_kv_heads: int, head_dim: int,
) -> ModelConfig:  # fmt: skip
    return ModelConfig(
        "LlamaForCausalLM", vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads,
        head_dim, rms_norm_epsilon=1e-5, max_positions=2048, rope=RopeConfig(theta=10_000.0), qkv_bias=False,
        output_bias=False, mlp_bias=False, qk_norm=False, tied_embeddings=False, sliding_window=None,
        dtype="bf16", eos_token_ids=(),
    )  # fmt: skip


SHAPES = {  # vocabulary, hidden, inner, layers, heads of queries, of keys, their dimension
    "tiny": _llama(512, 128, 256, 2, 2, 2, 64),
    "stories260k": _llama(512, 64, 172, 5, 8, 4, 8),
    "draft": _llama(2560, 128, 384, 2, 4, 2, 32),  # the built-in models
    "base": _llama(2560, 256, 704, 4, 4, 2, 64),
    "head": _llama(128_256, 64, 128, 1, 2, 2, 32),  # nearly all vocabulary
    "160m": _llama(32_000, 768, 3072, 12, 12, 12, 64),  # JackFram/llama-160m
    "1b": _llama(128_256, 2048, 8192, 16, 32, 8, 64),  # Llama-3.2-1B
}


def random_weights(config: ModelConfig, weights: str) -> PackedWeights:
    """Packed weights that a step can be timed with: as many bytes as real ones, each layer in its own.

    Args:
        config: the shape; without biases and norms of queries and keys.
        weights: "fp32", "fp16", "bf16", "w8a8" or "w4a8".
    """
    weight_format = WEIGHT_FORMATS[weights]
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {
        "qkv": (q_size + 2 * kv_size, hidden),
        "output": (hidden, q_size),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    ones = np.ones(hidden, dtype=np.float32)
    arrays = _Matrix(weight_format, config.vocab_size, hidden).copy("head")
    matrices = {name: _Matrix(weight_format, *shape) for name, shape in shapes.items()}
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}."
        arrays |= {prefix + "input_norm": ones, prefix + "post_norm": ones}
        for name in LINEAR:
            arrays |= matrices[name].copy(prefix + name)
    embedding = "fp32" if weights == "fp32" else "bf16"
    table = np.random.default_rng(1).standard_normal((512, hidden), dtype=np.float32)
    bits = table if embedding == "fp32" else (table.view(np.uint32) >> 16).astype(np.uint16)
    arrays["embedding"] = np.resize(bits, (config.vocab_size, hidden))
    arrays["final_norm"] = LOGIT_SCALE * ones
    arrays["head_is_finite"] = np.ones(1, dtype=np.uint8)
    return PackedWeights.from_arrays(config, weights, embedding, arrays)


class _Matrix:
    """A random weight [n, k] by its first tiles: packed, it is tile after tile, so these can be repeated."""

    def __init__(self, weight_format: WeightFormat, n: int, k: int) -> None:
        num_rows = min(-(-n // TILE_COLUMNS), max(1, SAMPLE_WEIGHTS // k // TILE_COLUMNS)) * TILE_COLUMNS
        rows = np.random.default_rng(0).standard_normal((num_rows, k), dtype=np.float32)
        rows /= np.float32(k**0.5)
        self._n, self._size_bytes = n, packed_bytes(weight_format, n, k)
        self._sample = pack_weight(weight_format, rows)

    def copy(self, name: str) -> dict[str, np.ndarray]:
        """Its arrays in memory of their own, as `PackedWeights.from_arrays` takes them."""
        sample, data = self._sample, aligned_empty(self._size_bytes)
        for start in range(0, len(data), len(sample.data)):
            part = data[start : start + len(sample.data)]
            part[:] = sample.data[: len(part)]
        if sample.scale is None:
            return {name: data}
        return {name: data, f"{name}.scale": np.resize(sample.scale, self._n)}


def random_native_model(
    shape: str, weights: str, kv: str, num_threads: int, max_positions: int
) -> NativeTransformer:
    """A model with random weights.

    Args:
        shape: a name of SHAPES.
        weights: see `random_weights`.
        kv: the format of keys and values.
        num_threads: that share a step.
        max_positions: the longest context.
    """
    config = SHAPES[shape]
    packed = random_weights(config, weights)
    linear = [*(getattr(layer, name) for layer in packed.layers for name in LINEAR), packed.head]
    num_weights = sum(weight.n * weight.k for weight in linear)
    info = ModelDescription(
        config.architecture, "random", config.vocab_size, max_positions, (), weights, kv, num_weights
    )
    return NativeTransformer(config, packed, info, num_threads)


class RandomDriver(CpuDriver):
    """The processor, with a model of SHAPES in place of what a load names by its path."""

    weight_bytes = 0  # that a step of the loaded model reads

    def load_model(self, load: Load, report: ProgressCallback) -> tuple[NativeTransformer, Quality | None]:
        """See Backend; `load.path` is a name of SHAPES, and the other fields are not "auto" or None."""
        assert load.max_model_len is not None
        model = random_native_model(load.path, load.weights, load.kv, self.num_threads, load.max_model_len)
        self.weight_bytes = model._weights.step_bytes
        return model, None
