"""A folder of a real shape with random weights: `python -m drivers.bench.random_checkpoint SHAPE FOLDER`.

For measurements of whole servers, where only the shape counts and a model is not at hand. There is no
tokenizer in it: such a model is asked by token ids.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from drivers.bench.random_model import SHAPES
from drivers.model.config import ModelConfig

__all__ = ["write_checkpoint"]

MAX_DRAWN = 1 << 23  # numbers of a matrix; the rest repeats them


def write_checkpoint(shape: str, folder: Path) -> None:
    """Write config.json and model.safetensors, in fp16.

    Args:
        shape: a name of SHAPES.
        folder: made if it is not there.
    """
    config = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "architectures": [config.architecture],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_epsilon,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    rng = np.random.default_rng(0)
    tensors = {name: _draw(rng, shape) for name, shape in _shapes(config)}
    save_file(tensors, folder / "model.safetensors")


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float16)
    drawn: np.ndarray = rng.standard_normal(min(shape[0] * shape[1], MAX_DRAWN), dtype=np.float32)
    drawn /= np.float32(shape[1] ** 0.5)
    return np.resize(drawn.astype(np.float16), shape)


def _shapes(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", (hidden,)
        yield f"{prefix}self_attn.q_proj.weight", (q_size, hidden)
        for name in ("k_proj", "v_proj"):
            yield f"{prefix}self_attn.{name}.weight", (kv_size, hidden)
        yield f"{prefix}self_attn.o_proj.weight", (hidden, q_size)
        for name in ("gate_proj", "up_proj"):
            yield f"{prefix}mlp.{name}.weight", (inner, hidden)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)


def main() -> None:
    """Write one folder."""
    parser = argparse.ArgumentParser(description="Write a model of a real shape with random weights.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write_checkpoint(options.shape, options.folder)


if __name__ == "__main__":
    main()
