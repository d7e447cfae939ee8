"""The forward pass of Llama, Mistral, Qwen2 and Qwen3: one decoder with a few switches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from attrs import frozen

from drivers.model.config import ModelConfig
from drivers.model.footprint import count_bytes
from drivers.model.kv_layout import KV_DTYPES, kv_views
from drivers.model.reference_sampler import choose_tokens
from drivers.model.rope import rope_tables
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.batch import Batch, PageIndex, ResolvedRow, build_batch
from drivers.ops.int8 import Activations
from drivers.ops.interface import Angles, AttentionPlan, AttentionShape, HeadNorms, Ops
from drivers.ops.kv_pages import KVPages, LayerPages
from llmos.device import EmbeddingInfo, KVFormat, ModelInfo, Segment
from native.sampling import Choice, Draw

__all__ = ["Model", "ModelDescription", "Transformer", "explain_bad_row"]


@frozen
class ModelDescription:
    """What the kernel will want to know of a loaded model."""

    architecture: str
    hash: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # of weights: "fp32", "fp16", "bf16", "w8a8", "w4a8"
    kv: str  # of keys and values: "fp32", "fp16", "bf16", "int8"
    num_parameters: int
    kernels: str = "torch"  # what computes: results are bit-identical only between equal ones
    text_folder: str = ""  # where tokenizer.json and its like are, if not beside the weights
    embedding: EmbeddingInfo | None = None  # None: it makes no vectors

    def model_info(self, name: str, path: str) -> ModelInfo:
        """The same as it crosses the driver's socket, of a model that was loaded from `path`."""
        return ModelInfo(
            name=name,
            path=self.text_folder or path,
            architecture=self.architecture,
            hash=self.hash,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            eos_token_ids=self.eos_token_ids,
            dtype=self.dtype,
            num_parameters=self.num_parameters,
            kernels=self.kernels,
            embedding=self.embedding,
        )


class Model(Protocol):
    """What the engine runs steps on: `Transformer`, or another implementation of the same forward pass."""

    config: ModelConfig
    info: ModelDescription
    segments: tuple[Segment, ...]

    def view_pages(self, frames: Sequence[torch.Tensor], kv: KVFormat, index: PageIndex) -> KVPages:
        """View frames as the keys and values that `run` takes; nothing is copied.

        Args:
            frames: of the segment of keys and of that of values: flat uint8, as `kv` lays them out.
            kv: the format.
            index: where a space's pages lie in them.

        Raises:
            ValueError: frames do not fit the format, or the format the model.
        """

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take, mapped files included."""

    def explain_bad_row(self, row: ResolvedRow) -> str | None:
        """See Transformer."""

    def run(self, rows: Sequence[ResolvedRow], pages: KVPages) -> torch.Tensor:
        """See Transformer."""

    def choose(
        self, rows: Sequence[ResolvedRow], pages: KVPages, draws: Sequence[Draw | None]
    ) -> list[Choice]:
        """`run`, then a choice for each row of logits; draws as in `choose_tokens`."""

    def choose_and_tell(
        self,
        rows: Sequence[ResolvedRow],
        pages: KVPages,
        draws: Sequence[Draw | None],
        told: Sequence[int],
    ) -> tuple[list[Choice], npt.NDArray[np.float32]]:
        """`choose`, and hidden states behind the last norm.

        Args:
            told: whose: indices of tokens among those of all rows.

        Returns:
            The choices, and [len(told), hidden_size]; a token's bits are those that it would have alone.
        """


def explain_bad_row(row: ResolvedRow, config: ModelConfig, max_model_len: int) -> str | None:
    """Say why a row cannot run (a token or position out of range), or None: to fault it alone."""
    end = row.start + len(row.tokens)
    if not row.tokens or row.start < 0 or end > max_model_len:
        return f"positions {row.start} to {end} do not fit a context of {max_model_len} tokens"
    if min(row.tokens) < 0 or max(row.tokens) >= config.vocab_size:
        return f"a token id is outside the vocabulary of {config.vocab_size}"
    targets = row.targets
    if len(targets) > len(row.tokens) or (
        targets and not 0 <= min(targets) <= max(targets) < config.vocab_size
    ):
        return f"{len(targets)} targets for {len(row.tokens)} tokens, in a vocabulary of {config.vocab_size}"
    return None


class Transformer:
    """A loaded model. It owns weights, never keys and values: those belong to whoever maps the pages.

    Attributes:
        config: the checkpoint's shape.
        info: what the kernel wants to know.
        segments: of every address space: how many bytes a token takes.
        device: where the weights are.
        shape: the constants of its attention.
        ops: what it computes with.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        ops: Ops,
        info: ModelDescription,
        segments: tuple[Segment, ...],
    ) -> None:
        self.config = config
        self.info = info
        self.segments = segments
        self.device = weights.embedding.device
        self._weights = weights
        self.ops = ops
        # what the products of integers read is rounded where it is computed
        is_int8 = not isinstance(weights.head, torch.Tensor)
        self._rms_norm = ops.rms_norm_int8 if is_int8 else ops.rms_norm
        self._add_rms_norm = ops.add_rms_norm_int8 if is_int8 else ops.add_rms_norm
        self._silu_mul = ops.silu_mul_int8 if is_int8 else ops.silu_mul
        self._cos, self._sin = rope_tables(config.rope, config.head_dim, info.max_model_len, self.device)
        self.shape = AttentionShape(
            config.num_heads, config.num_kv_heads, config.head_dim, config.sliding_window
        )
        for layer in weights.layers:
            for weight in (layer.qkv, layer.output, layer.gate_up, layer.down):
                ops.prepare_linear(weight)
        ops.prepare_linear(weights.head)
        ops.prepare_attention(
            self.shape, weights.final_norm.dtype, KV_DTYPES.get(info.kv, torch.int8), self.device
        )

    def view_pages(self, frames: Sequence[torch.Tensor], kv: KVFormat, index: PageIndex) -> KVPages:
        """See Model, and `kv_views` for the order."""
        keys, values = (kv_views(segment, self.config, kv) for segment in frames)
        return KVPages.of(keys, values, index)

    @property
    def weight_bytes(self) -> int:
        """See Model."""
        return count_bytes(self._weights)

    def explain_bad_row(self, row: ResolvedRow) -> str | None:
        """See the function of this name."""
        return explain_bad_row(row, self.config, self.info.max_model_len)

    def run(self, rows: Sequence[ResolvedRow], pages: KVPages) -> torch.Tensor:
        """Run rows as one batch, writing their keys and values.

        Args:
            rows: at least one, at most one for a space, tokens filled in, each fit for `explain_bad_row`.
            pages: that hold what the rows attend to, and take what they compute.

        Returns:
            Logits [num_wanted, vocab_size], fp32, in the order of the rows: of each, those of its targets'
            positions, then that of its last position with `sample`. Each row has the bits that it would have
            alone, or had its tokens come in other chunks.
        """
        return self.forward(self._build_batch(rows, pages), pages)

    def choose(
        self, rows: Sequence[ResolvedRow], pages: KVPages, draws: Sequence[Draw | None]
    ) -> list[Choice]:
        """See Model."""
        logits = self.run(rows, pages)
        return choose_tokens(logits, draws, self.ops)

    def choose_and_tell(
        self,
        rows: Sequence[ResolvedRow],
        pages: KVPages,
        draws: Sequence[Draw | None],
        told: Sequence[int],
    ) -> tuple[list[Choice], npt.NDArray[np.float32]]:
        """See Model."""
        batch = self._build_batch(rows, pages)
        plan = self.ops.plan_attention(batch, self.shape)
        x, added = self._run_layers(batch, plan, pages)
        hidden = self._normalise(x, added, torch.tensor(told, dtype=torch.int64, device=self.device))
        logits = self._project(x, added, batch)
        return choose_tokens(logits, draws, self.ops), hidden.float().cpu().numpy()

    def _build_batch(self, rows: Sequence[ResolvedRow], pages: KVPages) -> Batch:
        return build_batch(rows, pages.index, pages.layers[0].keys.shape[1], self.device)

    def forward(self, batch: Batch, pages: KVPages) -> torch.Tensor:
        """`run` for a batch that is already built."""
        return self.forward_planned(batch, self.ops.plan_attention(batch, self.shape), pages)

    @torch.inference_mode()
    def forward_planned(self, batch: Batch, plan: AttentionPlan, pages: KVPages) -> torch.Tensor:
        """`forward` with its attention planned. It reads nothing of the batch but tensors: see `Ops`."""
        x, added = self._run_layers(batch, plan, pages)
        return self._project(x, added, batch)

    @torch.inference_mode()
    def _run_layers(
        self, batch: Batch, plan: AttentionPlan, pages: KVPages
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of all tokens, and what the last layer leaves to be added to them."""
        ops, epsilon = self.ops, self.config.rms_norm_epsilon
        positions = batch.positions.clamp(min=0)  # padding has none
        angles = Angles(self._cos[positions], self._sin[positions])
        x = ops.embedding(batch.token_ids, self._weights.embedding)
        added: torch.Tensor | None = None  # what the layer before leaves to be added
        for layer, kv in zip(self._weights.layers, pages.layers, strict=True):
            if added is None:
                normed = self._rms_norm(x, layer.input_norm, epsilon)
            else:
                normed = self._add_rms_norm(added, x, layer.input_norm, epsilon)
            added = self._attention(normed, layer, angles, kv, batch, plan)
            normed = self._add_rms_norm(added, x, layer.post_norm, epsilon)
            inner = self._silu_mul(ops.linear(normed, layer.gate_up, layer.gate_up_bias))
            added = ops.linear(inner, layer.down, layer.down_bias)
        assert added is not None
        return x, added

    @torch.inference_mode()
    def _normalise(self, x: torch.Tensor, added: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """What is behind the last norm, of some tokens."""
        epsilon = self.config.rms_norm_epsilon
        return self.ops.add_rms_norm(added[indices], x[indices], self._weights.final_norm, epsilon)

    @torch.inference_mode()
    def _project(self, x: torch.Tensor, added: torch.Tensor, batch: Batch) -> torch.Tensor:
        if not len(batch.sample_indices):
            return torch.empty((0, self.config.vocab_size), device=self.device)
        wanted, epsilon = batch.sample_indices, self.config.rms_norm_epsilon
        last = self._add_rms_norm(added[wanted], x[wanted], self._weights.final_norm, epsilon)
        return self.ops.linear(last, self._weights.head, None).float()

    def _attention(
        self,
        x: Activations,
        layer: LayerWeights,
        angles: Angles,
        kv: LayerPages,
        batch: Batch,
        plan: AttentionPlan,
    ) -> torch.Tensor:
        ops, config = self.ops, self.config
        num_heads = config.num_heads + 2 * config.num_kv_heads
        qkv = ops.linear(x, layer.qkv, layer.qkv_bias).view(-1, num_heads, config.head_dim)
        norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = HeadNorms(layer.q_norm, layer.k_norm, config.rms_norm_epsilon)
        q = ops.rope_write_kv(qkv, norms, angles, kv, batch)
        out = ops.attention(q, kv, plan)
        return ops.linear(out.view(-1, config.num_heads * config.head_dim), layer.output, layer.output_bias)
