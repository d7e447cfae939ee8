"""The operations that a transformer is made of: what the model calls, and every implementation promises.

All implementations keep one promise, *row invariance*: the bits of a token's result depend on that token's
own inputs, its position and the keys and values it attends to. They never depend on how many other tokens
share the call, on where in the batch it lies, nor on where its prompt was cut into chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from attrs import frozen

from drivers.ops.batch import Batch
from drivers.ops.counted import Counted
from drivers.ops.drawn import Drawn
from drivers.ops.int8 import Activations, Int8Rows, Weight
from drivers.ops.kv_pages import LayerPages
from native.sampling import Draw

__all__ = ["Angles", "AttentionPlan", "AttentionShape", "HeadNorms", "Ops"]


@frozen
class AttentionShape:
    """The constants of a model's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # a token sees its last `window` positions, itself included; None: all

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


@frozen(eq=False)
class HeadNorms:
    """Norms over each head's queries and keys."""

    q: torch.Tensor  # weights, [head_dim]
    k: torch.Tensor
    epsilon: float


@frozen(eq=False)
class Angles:
    """By what each token's queries and keys are rotated: [num_tokens, head_dim / 2] each, fp32."""

    cos: torch.Tensor
    sin: torch.Tensor


class AttentionPlan(Protocol):
    """What an implementation works out once for a step and uses in every layer; opaque to the model."""


class Ops(Protocol):
    """One implementation of the operations, for one kind of device.

    Attributes:
        kernels: its name: results are bit-identical only between equal ones.
    """

    kernels: str

    def prepare_linear(self, weight: Weight) -> None:
        """Choose, and where needed verify, how this weight is multiplied. Called once for each at load."""

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Look rows up: [num_tokens], [vocab_size, hidden] -> [num_tokens, hidden]."""

    def linear(self, x: Activations, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        """x @ weight.T + bias: [num_tokens, in], [out, in], [out] -> [num_tokens, out].

        A weight of integers takes int8 rows; x is rounded first where it is not. Sums are exact.
        """

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension.

        The quotient is computed in fp32 and rounded to the format of x; the product with the weight is
        rounded once more. So it is in the code (transformers) that models are published and judged with.
        """

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Add x to the residual, which this changes and rounds to its format; `rms_norm` of the sum."""

    def rms_norm_int8(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Int8Rows:
        """`rms_norm` computed in fp32 and rounded to 8 bits, once."""

    def add_rms_norm_int8(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> Int8Rows:
        """Add x to the residual, which this changes and rounds to its format; `rms_norm_int8` of the sum."""

    def rope_write_kv(
        self, qkv: torch.Tensor, norms: HeadNorms | None, angles: Angles, kv: LayerPages, batch: Batch
    ) -> torch.Tensor:
        """Norm (where the model has it) and rotate queries and keys; store keys and values.

        Args:
            qkv: [num_tokens, num_heads + 2 num_kv_heads, head_dim], contiguous: queries, keys, values.
            norms: `rms_norm` of each head's queries and keys before they are rotated; None: there is none.
            angles: of each token; halves of a head are rotated, in fp32.
            kv: one layer's; each token's page and slot are written. In int8 each head is rounded, and its
                scale stored as well.
            batch: says which page and slot; a page below 0 is that of padding, and nothing is written.

        Returns:
            The rotated queries [num_tokens, num_heads, head_dim], contiguous.
        """

    def prepare_attention(
        self, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
    ) -> None:
        """Choose, and where needed verify, how attention is computed. Called once at load.

        Args:
            shape: of the model.
            dtype: of queries.
            kv_dtype: of keys and values.
            device: of both.
        """

    def plan_attention(self, batch: Batch, shape: AttentionShape) -> AttentionPlan:
        """Prepare a step's attention; the same plan serves every layer."""

    def attention(self, q: torch.Tensor, kv: LayerPages, plan: AttentionPlan) -> torch.Tensor:
        """Causal attention over pages.

        Args:
            q: [num_tokens, num_heads, head_dim], rotated.
            kv: one layer's; this batch's own keys and values are already written. Slots past a row's end may
                hold anything, NaN too.
            plan: of this batch.

        Returns:
            [num_tokens, num_heads, head_dim] in q's dtype.
        """

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up: [num_tokens, 2 * size], gate first -> [num_tokens, size]."""

    def silu_mul_int8(self, gate_up: torch.Tensor) -> Int8Rows:
        """`silu_mul` computed in fp32 and rounded to 8 bits, once."""

    def can_draw(self, draw: Draw | None) -> bool:
        """Whether `draw_tokens` can carry a draw out; None, the lowest id of a largest logit, always."""

    def draw_tokens(
        self,
        logits: torch.Tensor,
        draws: Sequence[Draw | None],
        counted: Counted | None = None,
        mus: torch.Tensor | None = None,
    ) -> Drawn:
        """Draw a token of each row of logits [num_rows, vocab_size], fp32, by draws that can be drawn.

        Args:
            logits: contiguous.
            draws: one for each row.
            counted: what the penalties are about; the tokens drawn are added to it. None: what the draws
                themselves say.
            mus: of the draws by mirostat, in their order, fp64, on the logits' device. None: what the draws
                themselves say.

        Returns:
            What came of it, on the logits' device.
        """
