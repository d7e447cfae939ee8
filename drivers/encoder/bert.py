"""The forward pass of BERT (Devlin et al. 2019) in torch, one text at a time.

Attention goes both ways, so nothing of a text can be computed before all of it is there, and nothing is kept
of it. Texts of one step do not share products: each has the bits that it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from attrs import frozen
from torch.nn import functional

from drivers.encoder.config import EncoderConfig
from drivers.model.checkpoint import Checkpoint
from drivers.model.errors import ModelError

__all__ = ["Bert"]

ReportProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor

# Stored by some, needed by none: positions are counted, and the pooler belongs to another task.
IGNORED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


@frozen(eq=False)
class _Linear:
    weight: torch.Tensor  # [out, in]
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


@frozen(eq=False)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


@frozen(eq=False)
class _Layer:
    query: _Linear
    key: _Linear
    value: _Linear
    attended: _Linear
    attention_norm: _Norm
    inner: _Linear
    outer: _Linear
    output_norm: _Norm


@frozen(eq=False)
class Bert:
    """A loaded encoder, in fp32."""

    config: EncoderConfig
    words: torch.Tensor  # [vocab_size, hidden_size]
    positions: torch.Tensor  # [max_positions, hidden_size], the first token type added
    norm: _Norm
    layers: tuple[_Layer, ...]
    num_parameters: int

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig, report: ReportProgress) -> Bert:
        """Read the weights.

        Raises:
            ModelError: naming the tensor that is missing, of another shape, or a stranger.
        """
        reader = _Reader(Checkpoint.open(folder), report)
        hidden = config.hidden_size
        words = reader.read("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        positions = reader.read("embeddings.position_embeddings.weight", config.max_positions, hidden)
        types = reader.read("embeddings.token_type_embeddings.weight", config.num_token_types, hidden)
        norm = reader.norm("embeddings.LayerNorm", config)
        layers = tuple(_read_layer(reader, f"encoder.layer.{i}.", config) for i in range(config.num_layers))
        reader.refuse_strangers(config)
        return cls(config, words, positions + types[0], norm, layers, reader.num_parameters)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return 4 * self.num_parameters

    @torch.inference_mode()
    def run(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """The last hidden states of one text.

        Args:
            tokens: at least one, at most `config.max_positions`, each inside the vocabulary.

        Returns:
            [num_tokens, hidden_size], fp32.
        """
        x = self.norm(self.words[torch.tensor(tokens)] + self.positions[: len(tokens)])
        for layer in self.layers:
            x = layer.attention_norm(layer.attended(self._attend(layer, x)) + x)
            inner = functional.gelu(layer.inner(x), approximate=self.config.gelu)
            x = layer.output_norm(layer.outer(inner) + x)
        return x

    def _attend(self, layer: _Layer, x: torch.Tensor) -> torch.Tensor:
        heads = (len(x), self.config.num_heads, self.config.head_dim)
        q, k, v = (part(x).view(heads).transpose(0, 1) for part in (layer.query, layer.key, layer.value))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(0, 1).reshape(len(x), self.config.hidden_size)


def _read_layer(reader: _Reader, prefix: str, config: EncoderConfig) -> _Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = prefix + "attention."
    return _Layer(
        query=reader.linear(attention + "self.query", hidden, hidden),
        key=reader.linear(attention + "self.key", hidden, hidden),
        value=reader.linear(attention + "self.value", hidden, hidden),
        attended=reader.linear(attention + "output.dense", hidden, hidden),
        attention_norm=reader.norm(attention + "output.LayerNorm", config),
        inner=reader.linear(prefix + "intermediate.dense", inner, hidden),
        outer=reader.linear(prefix + "output.dense", hidden, inner),
        output_norm=reader.norm(prefix + "output.LayerNorm", config),
    )


class _Reader:
    """Reads tensors by the names of BertModel, under the prefix that the file has, and remembers which."""

    def __init__(self, checkpoint: Checkpoint, report: ReportProgress) -> None:
        self._checkpoint, self._report = checkpoint, report
        self._prefix = "bert." if "bert.embeddings.word_embeddings.weight" in checkpoint.tensors else ""
        self._seen: set[str] = set()
        self._total_bytes = sum(entry.num_bytes for entry in checkpoint.tensors.values())
        self._done_bytes = 0
        self.num_parameters = 0

    def read(self, name: str, *shape: int) -> torch.Tensor:
        entry = self._checkpoint.entry(self._prefix + name, shape)
        self._seen.add(entry.name)
        self._done_bytes += entry.num_bytes
        tensor = self._checkpoint.read(entry.name).to(torch.float32).contiguous()
        self.num_parameters += tensor.numel()
        self._report(self._done_bytes, self._total_bytes, entry.name)
        return tensor

    def linear(self, name: str, num_out: int, num_in: int) -> _Linear:
        return _Linear(self.read(f"{name}.weight", num_out, num_in), self.read(f"{name}.bias", num_out))

    def norm(self, name: str, config: EncoderConfig) -> _Norm:
        hidden = config.hidden_size
        return _Norm(self.read(f"{name}.weight", hidden), self.read(f"{name}.bias", hidden), config.epsilon)

    def refuse_strangers(self, config: EncoderConfig) -> None:
        """A tensor that we would not use means that we do not understand the model."""
        for name in self._strangers():
            entry = self._checkpoint.tensors[name]
            raise ModelError(f"{entry.file}: tensor {name} has no place in {config.architecture}")
        self._report(self._total_bytes, self._total_bytes, "done")

    def _strangers(self) -> Iterator[str]:
        known = self._seen | {self._prefix + name for name in IGNORED}
        return (name for name in self._checkpoint.tensors if name not in known)
