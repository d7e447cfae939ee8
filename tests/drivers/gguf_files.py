"""Hugging Face folders rewritten as GGUF files, as the ggml project's converter does, with its own writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

Kinds = Callable[[str, int], gguf.GGMLQuantizationType]

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA, "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2, "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
}  # fmt: skip


def write_gguf(
    folder: Path,
    path: Path,
    kind: str = "F32",
    *,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    tokenizer: bool = False,
    parts: int = 0,
) -> Path:
    """Write a folder's model as GGUF, its matrices in one format and its vectors in fp32.

    Args:
        folder: config.json and model.safetensors.
        path: of the file; of several it is the first one's, …-00001-of-0000N.gguf.
        kind: by the ggml project's name; rows that hold no whole blocks fall back to F16.
        change: adds more metadata.
        tokenizer: with the vocabulary, and with tokenizer.json as it is.
        parts: tensors in each file; 0: all in one.
    """
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["architectures"][0]]
    base = path
    if parts:
        base = path.with_name(path.name.split("-00001-of-")[0] + ".gguf")
    writer = gguf.GGUFWriter(base, gguf.MODEL_ARCH_NAMES[architecture], split_max_tensors=parts)
    add_shape(writer, config)
    if tokenizer:
        add_tokenizer(writer, folder)
    if change is not None:
        change(writer)
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = tensor.float().numpy()
        heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
        part = name.split(".")[-2].removesuffix("_proj")
        if architecture is gguf.MODEL_ARCH.LLAMA and part in heads:
            # the converter's own formula: halves of a head are interleaved
            values = (
                values.reshape(heads[part], 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
            )
        add_tensor(writer, new_name, values, kind if values.ndim == 2 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    """Add one tensor in a format."""
    wanted = gguf.GGMLQuantizationType[kind]
    if values.shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = gguf.GGMLQuantizationType.F16
    stored = gguf.quants.quantize(np.ascontiguousarray(values, dtype=np.float32), wanted)
    if wanted in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        writer.add_tensor(name, stored)
    else:
        writer.add_tensor(name, stored, raw_dtype=wanted)


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Add what a config.json says."""
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or {}
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if (window := config.get("sliding_window")) is not None and window < config["max_position_embeddings"]:
        writer.add_sliding_window(window)
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """Llama 3's rope scaling as the converter writes it: a divisor for each pair of dimensions, fp32."""
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim):
        turns = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)
        if turns > rope["high_freq_factor"]:
            factors.append(1.0)
        elif turns < rope["low_freq_factor"]:
            factors.append(rope["factor"])
        else:
            smooth = (turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Add a folder's vocabulary, end tokens, chat template, and the whole of its tokenizer.json."""
    text = (folder / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["content"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in tokens]
    )
    for name, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        if name in config:
            add(ids[config[name]])
    if "chat_template" in config:
        writer.add_chat_template(config["chat_template"])
    writer.add_string(gguf.Keys.Tokenizer.HF_JSON, text)


def random_blocks(kind: str, num_blocks: int, seed: int) -> np.ndarray:
    """Blocks of every bit pattern, uint8 [num_blocks, block_bytes], but with scales that are numbers."""
    generator = np.random.default_rng(seed)
    blocks = generator.integers(
        0, 256, (num_blocks, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1])
    )
    blocks = blocks.astype(np.uint8)
    for at in SCALES[kind]:
        scale = generator.normal(0, 0.1, num_blocks).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(num_blocks, 2)
    return blocks


SCALES = {  # where a block has fp16 numbers
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
}  # fmt: skip


def dequantised(tensor: np.ndarray, kind: str) -> torch.Tensor:
    """What the ggml project's own Python code makes of blocks."""
    return torch.from_numpy(gguf.quants.dequantize(tensor, gguf.GGMLQuantizationType[kind]))
