"""From a Hugging Face folder to a transformer that can run: all of it, or a named refusal."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from attrs import evolve, frozen

from drivers.model.checkpoint import TensorEntry
from drivers.model.config import ModelConfig
from drivers.model.embedding_config import describe_embedding
from drivers.model.errors import ModelError
from drivers.model.kv_layout import KV_DTYPES, kv_segments
from drivers.model.source import Source, open_source
from drivers.model.transformer import ModelDescription, Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.int8 import SCALE_BYTES
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import Load

__all__ = [
    "OpenModel",
    "ProgressCallback",
    "WeightReader",
    "choose_kv",
    "load_reference",
    "open_model",
]

ProgressCallback = Callable[[int, int, str], None]  # (done_bytes, total_bytes, name)

IGNORED = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")  # old checkpoints; recomputed


@frozen(eq=False)
class OpenModel:
    """A checkpoint whose every name, shape and file length was checked; no weight is read yet."""

    config: ModelConfig
    source: Source
    entries: tuple[TensorEntry, ...]
    max_model_len: int

    def describe(self, weights: str, kv: str) -> ModelDescription:
        """What the kernel will want to know, given the formats of weights and of keys and values."""
        return ModelDescription(
            architecture=self.config.architecture,
            hash=self.source.content_hash(),
            vocab_size=self.config.vocab_size,
            max_model_len=self.max_model_len,
            eos_token_ids=self.config.eos_token_ids,
            dtype=weights,
            kv=kv,
            num_parameters=sum(torch.Size(entry.shape).numel() for entry in self.entries),
            text_folder=str(self.source.text_folder),
            embedding=describe_embedding(
                Path(self.source.text_folder), self.config.hidden_size, ("last", "mean")
            ),
        )

    def reader(
        self,
        dtype: str,
        device: torch.device | str = "cpu",
        progress: ProgressCallback | None = None,
    ) -> WeightReader:
        """What reads the weights as fp32, fp16 or bf16."""
        return WeightReader(
            self.config, self.source, KV_DTYPES[dtype], torch.device(device), self.entries, progress
        )


def open_model(path: str | Path, max_model_len: int | None = None) -> OpenModel:
    """Open a checkpoint and check it.

    Args:
        path: see open_source.
        max_model_len: longest context in tokens; None: what the checkpoint says.

    Raises:
        ModelError: naming the file, tensor, setting or limit at fault.
    """
    config, source = open_source(Path(path))
    if max_model_len is None:
        max_model_len = config.max_positions
    if not 1 <= max_model_len <= config.max_positions:
        raise ModelError(
            f"max_model_len {max_model_len} is outside 1 to {config.max_positions}, the model's limit"
        )
    for token in config.eos_token_ids:
        if not 0 <= token < config.vocab_size:
            raise ModelError(f"eos_token_id {token} is outside the vocabulary of {config.vocab_size}")
    wanted = list(wanted_tensors(config))
    entries = tuple(source.entry(name, shape) for name, shape in wanted)
    _refuse_strangers(source, config, {name for name, _ in wanted})
    return OpenModel(config, source, entries, max_model_len)


def load_reference(
    opened: OpenModel,
    load: Load,
    device: torch.device,
    progress: ProgressCallback | None = None,
    ops: Ops | None = None,
) -> Transformer:
    """Load a model to run on `Ops`, in floating point; keys and values have its format, or are int8.

    Args:
        opened: the checkpoint.
        load: says in which formats.
        device: where the weights go.
        progress: told of reading.
        ops: the operations to run on; None: torch's.

    Raises:
        ModelError: a format is not served there, or the weights cannot be read.
    """
    config = opened.config
    dtype = config.dtype if load.weights == "auto" else load.weights
    supported = ", ".join(KV_DTYPES)
    if dtype not in KV_DTYPES:
        raise ModelError(f"weights {dtype!r} are not supported here; supported: auto, {supported}")
    kv = choose_kv(config, load.kv, dtype)
    weights = opened.reader(dtype, device, progress).read()
    ops = ops or ReferenceOps()
    info = evolve(opened.describe(dtype, kv), kernels=ops.kernels)
    return Transformer(config, weights, ops, info, kv_segments(config, kv))


def choose_kv(config: ModelConfig, kv: str, dtype: str) -> str:
    """The format of keys and values beside activations of a format.

    Raises:
        ModelError: it is not served on `Ops`.
    """
    if kv not in ("auto", dtype, "int8"):
        raise ModelError(
            f"kv {kv!r} is not supported here beside {dtype} activations; supported: auto, {dtype}, int8"
        )
    if kv == "int8" and config.head_dim % SCALE_BYTES:
        raise ModelError(f"kv 'int8' needs heads of a multiple of {SCALE_BYTES}, not {config.head_dim}")
    return dtype if kv == "auto" else kv


def wanted_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
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


def _refuse_strangers(source: Source, config: ModelConfig, wanted: set[str]) -> None:
    """A tensor that we would not use means that we do not understand the model."""
    for name, entry in source.tensors.items():
        tied_copy = config.tied_embeddings and name == "lm_head.weight"
        if name not in wanted and not tied_copy and not IGNORED.match(name):
            raise ModelError(f"{entry.file}: tensor {name} has no place in {config.architecture}")


class WeightReader:
    """Reads the parts of a checkpoint, fused where the forward pass reads them together."""

    def __init__(
        self,
        config: ModelConfig,
        source: Source,
        dtype: torch.dtype,
        device: torch.device,
        entries: Sequence[TensorEntry],
        progress: ProgressCallback | None,
    ) -> None:
        self._config, self._source, self._dtype, self._device = config, source, dtype, device
        self._progress = progress
        self._total_bytes = sum(entry.num_bytes for entry in entries)
        self._done_bytes = 0

    def read(self) -> Weights:
        """Everything."""
        embedding, final_norm, head = self.ends()
        return Weights(embedding, tuple(self.layers()), final_norm, head)

    def ends(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedding, final norm, and the head: the embedding itself when tied."""
        embedding = self._fused("model.embed_tokens.weight")
        final_norm = self._fused("model.norm.weight")
        head = embedding if self._config.tied_embeddings else self._fused("lm_head.weight")
        return embedding, final_norm, head

    def layers(self) -> Iterator[LayerWeights]:
        """The layers in order, each read when it is asked for."""
        return map(self._layer, range(self._config.num_layers))

    def _layer(self, index: int) -> LayerWeights:
        config, fused = self._config, self._fused
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

    def _fused(self, *names: str) -> torch.Tensor:
        tensors = self._source.tensors
        shapes = [tensors[name].shape for name in names]
        size = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        target = torch.empty(size, dtype=self._dtype, device=self._device)
        row = 0
        for name, shape in zip(names, shapes, strict=True):
            target[row : row + shape[0]] = self._source.read(name)
            row += shape[0]
            self._done_bytes += tensors[name].num_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes, name)
        return target
