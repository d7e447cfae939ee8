"""From a Hugging Face folder to a transformer that can run: all of it, or a named refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from attrs import frozen

from drivers.model.checkpoint import Checkpoint, TensorEntry
from drivers.model.config import ModelConfig, read_config
from drivers.model.errors import ModelError
from drivers.model.kv_layout import KV_DTYPES, kv_segments
from drivers.model.transformer import ModelDescription, Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import Segment

__all__ = ["LoadedWeights", "ProgressCallback", "load_model", "load_weights"]

ProgressCallback = Callable[[int, int, str], None]  # (done_bytes, total_bytes, name)

IGNORED = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")  # old checkpoints; recomputed


@frozen(eq=False)
class LoadedWeights:
    """A checkpoint in memory: what a model is made of."""

    config: ModelConfig
    weights: Weights
    info: ModelDescription
    segments: tuple[Segment, ...]


def load_model(
    path: str | Path,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    ops: Ops | None = None,
    max_model_len: int | None = None,
    progress: ProgressCallback | None = None,
) -> Transformer:
    """Load a model to run on `Ops`; see `load_weights` for the arguments.

    Args:
        path: see load_weights.
        dtype: likewise.
        device: likewise.
        ops: the operations to run on; None: the torch reference.
        max_model_len: see load_weights.
        progress: likewise.
    """
    weights = load_weights(path, dtype, device, max_model_len, progress)
    return Transformer(weights.config, weights.weights, ops or ReferenceOps(), weights.info, weights.segments)


def load_weights(
    path: str | Path,
    dtype: str = "auto",
    device: torch.device | str = "cpu",
    max_model_len: int | None = None,
    progress: ProgressCallback | None = None,
) -> LoadedWeights:
    """Read a model's weights.

    Every name, shape and file length is checked before the first weight is read; nothing outlives a refusal.

    Args:
        path: a Hugging Face folder with config.json and safetensors, single or sharded.
        dtype: "fp32", "fp16", "bf16", or "auto": what the checkpoint holds.
        device: where the weights go.
        max_model_len: longest context in tokens; None: what the checkpoint says.
        progress: called after each tensor with bytes done, bytes in all, and the tensor's name.

    Raises:
        ModelError: naming the file, tensor, setting or limit at fault.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelError(f"{folder} is not a folder")
    config = read_config(folder)
    if dtype == "auto":
        dtype = config.dtype
    if dtype not in KV_DTYPES:
        raise ModelError(f"dtype {dtype!r} is not supported; supported: auto, {', '.join(KV_DTYPES)}")
    if max_model_len is None:
        max_model_len = config.max_positions
    if not 1 <= max_model_len <= config.max_positions:
        raise ModelError(
            f"max_model_len {max_model_len} is outside 1 to {config.max_positions}, the model's limit"
        )
    for token in config.eos_token_ids:
        if not 0 <= token < config.vocab_size:
            raise ModelError(f"eos_token_id {token} is outside the vocabulary of {config.vocab_size}")
    checkpoint = Checkpoint.open(folder)
    wanted = list(_wanted(config))
    entries = [checkpoint.entry(name, shape) for name, shape in wanted]
    _refuse_strangers(checkpoint, config, {name for name, _ in wanted})

    weights = _Reader(checkpoint, KV_DTYPES[dtype], torch.device(device), entries, progress).read(config)
    description = ModelDescription(
        architecture=config.architecture,
        hash=checkpoint.content_hash((folder / "config.json").read_bytes()),
        vocab_size=config.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=config.eos_token_ids,
        dtype=dtype,
        num_parameters=weights.num_parameters,
    )
    return LoadedWeights(config, weights, description, kv_segments(config, dtype))


def _wanted(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, shape) of every tensor that the forward pass needs, in reading order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        for part, rows in (("q", q_size), ("k", kv_size), ("v", kv_size)):
            yield f"{prefix}self_attn.{part}_proj.weight", (rows, hidden)
            if config.qkv_bias:
                yield f"{prefix}self_attn.{part}_proj.bias", (rows,)
        yield prefix + "self_attn.o_proj.weight", (hidden, q_size)
        if config.output_bias:
            yield prefix + "self_attn.o_proj.bias", (hidden,)
        if config.qk_norm:
            yield prefix + "self_attn.q_norm.weight", (config.head_dim,)
            yield prefix + "self_attn.k_norm.weight", (config.head_dim,)
        for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield f"{prefix}mlp.{part}_proj.weight", (rows, columns)
            if config.mlp_bias:
                yield f"{prefix}mlp.{part}_proj.bias", (rows,)
    yield "model.norm.weight", (hidden,)
    if not config.tied_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)


def _refuse_strangers(checkpoint: Checkpoint, config: ModelConfig, wanted: set[str]) -> None:
    """A tensor that we would not use means that we do not understand the model."""
    for name, entry in checkpoint.tensors.items():
        tied_copy = config.tied_embeddings and name == "lm_head.weight"
        if name not in wanted and not tied_copy and not IGNORED.match(name):
            raise ModelError(f"{entry.file}: tensor {name} has no place in {config.architecture}")


@frozen(eq=False)
class _Reader:
    checkpoint: Checkpoint
    dtype: torch.dtype
    device: torch.device
    entries: list[TensorEntry]
    progress: ProgressCallback | None

    def read(self, config: ModelConfig) -> Weights:
        total_bytes = sum(entry.num_bytes for entry in self.entries)
        done_bytes = 0

        def fused(*names: str) -> torch.Tensor:
            nonlocal done_bytes
            shapes = [self.checkpoint.tensors[name].shape for name in names]
            size = (sum(shape[0] for shape in shapes), *shapes[0][1:])
            target = torch.empty(size, dtype=self.dtype, device=self.device)
            row = 0
            for name, shape in zip(names, shapes, strict=True):
                target[row : row + shape[0]] = self.checkpoint.read(name)
                row += shape[0]
                done_bytes += self.checkpoint.tensors[name].num_bytes
                if self.progress is not None:
                    self.progress(done_bytes, total_bytes, name)
            return target

        def layer(index: int) -> LayerWeights:
            attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
            qkv = [f"{attention}{part}_proj." for part in "qkv"]
            gate_up = [f"{mlp}{part}_proj." for part in ("gate", "up")]
            return LayerWeights(
                input_norm=fused(f"model.layers.{index}.input_layernorm.weight"),
                qkv=fused(*(part + "weight" for part in qkv)),
                qkv_bias=fused(*(part + "bias" for part in qkv)) if config.qkv_bias else None,
                q_norm=fused(attention + "q_norm.weight") if config.qk_norm else None,
                k_norm=fused(attention + "k_norm.weight") if config.qk_norm else None,
                output=fused(attention + "o_proj.weight"),
                output_bias=fused(attention + "o_proj.bias") if config.output_bias else None,
                post_norm=fused(f"model.layers.{index}.post_attention_layernorm.weight"),
                gate_up=fused(*(part + "weight" for part in gate_up)),
                gate_up_bias=fused(*(part + "bias" for part in gate_up)) if config.mlp_bias else None,
                down=fused(mlp + "down_proj.weight"),
                down_bias=fused(mlp + "down_proj.bias") if config.mlp_bias else None,
            )

        embedding = fused("model.embed_tokens.weight")
        layers = tuple(layer(index) for index in range(config.num_layers))
        final_norm = fused("model.norm.weight")
        head = embedding if config.tied_embeddings else fused("lm_head.weight")
        num_parameters = 0
        for entry in self.entries:
            num_parameters += torch.Size(entry.shape).numel()
        return Weights(embedding, layers, final_norm, head, num_parameters)
