"""A GGUF file's metadata as the configuration that the same model has in Hugging Face's form."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from attrs import evolve

from drivers.model.config import ModelConfig, RopeConfig, parse_config
from drivers.model.errors import ModelError
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.header import read_bytes
from drivers.model.gguf.vocabulary import Vocabulary

__all__ = ["read_gguf_config"]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
QUANTISED_DTYPE = "bfloat16"  # finer than the steps between the blocks' values, and no activation overflows


def read_gguf_config(file: GgufFile) -> ModelConfig:
    """What the forward pass needs to know of the model.

    Raises:
        ModelError: naming the file, and the key, tensor or value that is missing or not supported.
    """
    found = _hugging_face_config(file)
    try:
        config = parse_config(found, {})
    except ModelError as error:
        raise ModelError(f"{file.path}: {str(error).removeprefix('config.json: ')}") from None
    if "rope_freqs.weight" in file.tensors:
        config = evolve(config, rope=_rope_by_factors(file, config))
    return config


def _hugging_face_config(file: GgufFile) -> dict[str, Any]:
    name = file.get("general.architecture", "(none given)")
    if name not in ARCHITECTURES:
        raise ModelError(
            f"{file.path}: architecture {name} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    if file.get(f"{name}.expert_count", 0):
        raise ModelError(f"{file.path}: {name}.expert_count: mixtures of experts are not supported")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: there is no matrix token_embd.weight; a vocabulary alone is no model")
    hidden_size = _need(file, f"{name}.embedding_length")
    num_heads = _need(file, f"{name}.attention.head_count")
    head_dim = file.get(f"{name}.attention.key_length", hidden_size // num_heads)
    for key in (f"{name}.attention.value_length", f"{name}.rope.dimension_count"):
        if (size := file.get(key, head_dim)) != head_dim:
            raise ModelError(
                f"{file.path}: {key} is {size}, and a head's size {head_dim}: that is not supported"
            )
    # Mistral's models are called llama in these files; only the window tells them apart
    window = file.get(f"{name}.attention.sliding_window", 0) if name == "llama" else 0
    return {
        "architectures": ["MistralForCausalLM" if window else ARCHITECTURES[name]],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": _need(file, f"{name}.feed_forward_length"),
        "num_hidden_layers": _need(file, f"{name}.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": file.get(f"{name}.attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": _need(file, f"{name}.context_length"),
        "rms_norm_eps": file.get(f"{name}.attention.layer_norm_rms_epsilon", 0.0),
        "rope_parameters": _rope(file, name),
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "sliding_window": window or None,
        "dtype": _dtype(file),
        "eos_token_id": list(Vocabulary.read(file).end_tokens),
    }


def _need(file: GgufFile, key: str) -> int:
    if key not in file.metadata:
        raise ModelError(f"{file.path}: {key} is missing")
    if (value := file.get(key, 0)) < 1:
        raise ModelError(f"{file.path}: {key} is {value}; a positive integer is needed")
    return value


def _rope(file: GgufFile, name: str) -> dict[str, Any]:
    theta = file.get(f"{name}.rope.freq_base", 10000.0)
    factor = file.get(f"{name}.rope.scaling.factor", file.get(f"{name}.rope.scale_linear", 1.0))
    kind = file.get(f"{name}.rope.scaling.type", "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {"rope_theta": theta}
    return {"rope_theta": theta, "rope_type": kind, "factor": factor}


def _rope_by_factors(file: GgufFile, config: ModelConfig) -> RopeConfig:
    """Llama 3's stretching, which the converter has worked out for each pair of dimensions."""
    tensor = file.tensors["rope_freqs.weight"]
    if tensor.shape != (config.head_dim // 2,) or tensor.storage.name != "F32":
        raise ModelError(
            f"{tensor.file}: tensor {tensor.name} is {tensor.storage.name} {list(tensor.shape)}; "
            f"F32 [{config.head_dim // 2}] is needed"
        )
    if config.rope.kind != "default":
        raise ModelError(
            f"{file.path}: rope scaling {config.rope.kind} beside {tensor.name} is not supported"
        )
    factors = np.frombuffer(read_bytes(tensor, 0, tensor.num_bytes), dtype="<f4").tolist()
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelError(f"{tensor.file}: tensor {tensor.name} holds a number that is not positive")
    return RopeConfig(config.rope.theta, "factors", factors=tuple(factors))


def _dtype(file: GgufFile) -> str:
    """The number format that holds most of the matrices' values."""
    num_values: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if len(tensor.shape) == 2:
            num_values[DTYPES.get(tensor.storage.name, QUANTISED_DTYPE)] += math.prod(tensor.shape)
    return num_values.most_common(1)[0][0]
