"""The forward pass of BERT (Devlin et al. 2019).

Attention goes both ways, so nothing of a text can be computed before all of it is there, and nothing is kept
of it. The texts of a step share products, which native/cpu computes, row by row alike; attention is
torch's, text by text. So each text has the bits that it would have alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen
from torch.nn import functional

from drivers.encoder.config import EncoderConfig
from drivers.model.checkpoint import Checkpoint
from drivers.model.errors import ModelError
from native.gemm import multiply
from native.pack import TILE_COLUMNS, PackedWeight, WeightFormat, pack_weight

__all__ = ["Bert"]

ReportProgress = Callable[[int, int, str], None]  # bytes done, bytes in all, tensor

# Stored by some, needed by none: positions are counted, and the pooler belongs to another task.
IGNORED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


Floats = npt.NDArray[np.float32]

LONE_OPERATIONS = 1 << 24  # a product of fewer multiplications is not worth a second thread


class _Products:
    """Carries products out, on some threads; the bits do not depend on how many."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def multiply(self, weight: PackedWeight, x: Floats, out: Floats | None = None) -> Floats:
        """x times the transposed weight plus its bias, [m, n]; added to `out` if that is given."""
        accumulate = out is not None
        if out is None:
            out = np.empty((len(x), weight.n), dtype=np.float32)
        if self._pool is None or len(x) * weight.n * weight.k < LONE_OPERATIONS:
            return multiply(weight, x, out=out, accumulate=accumulate)
        num_tiles = -(-weight.n // TILE_COLUMNS)
        share = -(-num_tiles // self._num_threads) * TILE_COLUMNS
        parts = [(n0, min(n0 + share, weight.n)) for n0 in range(0, weight.n, share)]
        list(
            self._pool.map(
                lambda columns: multiply(weight, x, out=out, accumulate=accumulate, columns=columns), parts
            )
        )
        return out

    def close(self) -> None:
        """End the threads. Idempotent."""
        if self._pool is not None:
            self._pool.shutdown()


@frozen(eq=False)
class _Norm:
    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.epsilon)


@frozen(eq=False)
class _Layer:
    qkv: PackedWeight  # [3 hidden_size, hidden_size]: queries, keys, values
    attended: PackedWeight
    attention_norm: _Norm
    inner: PackedWeight
    outer: PackedWeight
    output_norm: _Norm


@frozen(eq=False)
class Bert:
    """A loaded encoder, in fp32."""

    config: EncoderConfig
    words: torch.Tensor  # [vocab_size, hidden_size]
    positions: torch.Tensor  # [max_positions, hidden_size]
    types: torch.Tensor  # [num_token_types, hidden_size]
    norm: _Norm
    layers: tuple[_Layer, ...]
    num_parameters: int
    products: _Products
    head: tuple[PackedWeight, PackedWeight] | None = None  # of a reranker: from the first token to a score

    @classmethod
    def open(cls, folder: Path, config: EncoderConfig, report: ReportProgress, num_threads: int = 1) -> Bert:
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
        head = None
        if config.scores_pairs:
            pooler = reader.linear(["pooler.dense"], hidden, hidden)
            head = pooler, reader.linear(["classifier"], 1, hidden)
        reader.refuse_strangers(config)
        products = _Products(num_threads)
        return cls(config, words, positions, types, norm, layers, reader.num_parameters, products, head)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""
        return 4 * self.num_parameters

    @torch.inference_mode()
    def run(self, texts: Sequence[Sequence[int]]) -> list[Floats]:
        """The last hidden states of some texts.

        Args:
            texts: of at least one token, at most `config.max_positions`, each inside the vocabulary.

        Returns:
            For each [num_tokens, hidden_size].
        """
        lengths = [len(tokens) for tokens in texts]
        ids = torch.tensor([token for tokens in texts for token in tokens])
        positions = torch.cat([torch.arange(length) for length in lengths])
        types = torch.cat([self._types_of(tokens) for tokens in texts])
        x = self.norm(self.words[ids] + (self.positions[positions] + self.types[types]))
        multiply = self.products.multiply
        for layer in self.layers:
            qkv = torch.from_numpy(multiply(layer.qkv, x.numpy()))
            mixed = torch.cat([self._attend(part) for part in qkv.split(lengths)])
            added = torch.from_numpy(multiply(layer.attended, mixed.numpy(), x.numpy()))
            x = layer.attention_norm(added)
            inner = torch.from_numpy(multiply(layer.inner, x.numpy()))
            inner = functional.gelu(inner, approximate=self.config.gelu)
            x = layer.output_norm(torch.from_numpy(multiply(layer.outer, inner.numpy(), x.numpy())))
        return [part.numpy() for part in x.split(lengths)]

    def score(self, states: Floats) -> Floats:
        """A reranker's score of two texts, [1] from 0 to 1, from what `run` gave for both as one."""
        assert self.head is not None
        pooler, classifier = self.head
        first = np.tanh(multiply(pooler, np.ascontiguousarray(states[:1])))
        logit = multiply(classifier, first)[0]
        score: Floats = (1 / (1 + np.exp(-logit.astype(np.float64)))).astype(np.float32)
        return score

    def _types_of(self, tokens: Sequence[int]) -> torch.Tensor:
        """Which text each token belongs to: a reranker's second one begins behind the first separator."""
        types = torch.zeros(len(tokens), dtype=torch.int64)
        if self.config.separator in tokens:
            types[tokens.index(self.config.separator) + 1 :] = 1
        return types

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attention within one text: [num_tokens, hidden_size] from [num_tokens, 3 hidden_size]."""
        config, num_tokens = self.config, len(qkv)
        q, k, v = qkv.view(num_tokens, 3, config.num_heads, config.head_dim).permute(1, 2, 0, 3)
        mixed = functional.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return mixed.transpose(0, 1).reshape(num_tokens, config.hidden_size)

    def close(self) -> None:
        """End its threads. Idempotent."""
        self.products.close()


def _read_layer(reader: _Reader, prefix: str, config: EncoderConfig) -> _Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = prefix + "attention."
    return _Layer(
        qkv=reader.linear([f"{attention}self.{part}" for part in ("query", "key", "value")], hidden, hidden),
        attended=reader.linear([attention + "output.dense"], hidden, hidden),
        attention_norm=reader.norm(attention + "output.LayerNorm", config),
        inner=reader.linear([prefix + "intermediate.dense"], inner, hidden),
        outer=reader.linear([prefix + "output.dense"], hidden, inner),
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
        prefix = "" if name.startswith("classifier.") else self._prefix  # which is of the whole model
        entry = self._checkpoint.entry(prefix + name, shape)
        self._seen.add(entry.name)
        self._done_bytes += entry.num_bytes
        tensor = self._checkpoint.read(entry.name).to(torch.float32).contiguous()
        self.num_parameters += tensor.numel()
        self._report(self._done_bytes, self._total_bytes, entry.name)
        return tensor

    def linear(self, names: list[str], num_out: int, num_in: int) -> PackedWeight:
        """Layers with the same input, packed as one: their outputs one behind the other."""
        weight = torch.cat([self.read(f"{name}.weight", num_out, num_in) for name in names])
        bias = torch.cat([self.read(f"{name}.bias", num_out) for name in names])
        return pack_weight(WeightFormat.FP32, weight.numpy(), bias.numpy())

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
