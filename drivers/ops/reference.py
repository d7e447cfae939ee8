"""The operations in plain torch, for any device: the reference that other implementations are held against.

Everything here is either elementwise with correctly rounded operations, a sum folded in a fixed order, or a
product in tiles that were verified (`tiling.py`). `torch.exp` is the one approximate function used: torch
evaluates it by the same code wherever an element lies, which `torch.nn.functional.silu` does not (the tail
of a vectorised loop takes another path).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivers.ops.attention import ReferencePlan, paged_attention, plan_attention
from drivers.ops.batch import Batch
from drivers.ops.counted import Counted
from drivers.ops.drawn import Drawn
from drivers.ops.int8 import Activations, Int8Rows, Weight, linear_int8, round_rows, scales_of
from drivers.ops.interface import Angles, AttentionPlan, AttentionShape, HeadNorms
from drivers.ops.kv_pages import LayerPages
from drivers.ops.tiling import TiledLinear, fold_sum
from native.sampling import Draw

__all__ = ["ReferenceOps", "rotate_halves"]


def rotate_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [num_tokens, heads, dim] by angles [num_tokens, dim / 2], computed in fp32.

    Source: Su et al. 2021, "RoFormer", arXiv:2104.09864.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _normalise(x: torch.Tensor, epsilon: float) -> torch.Tensor:
    """The quotient of `rms_norm`, fp32."""
    wide = x.float()
    return wide / torch.sqrt(fold_sum(wide * wide) / x.shape[-1] + epsilon)


def _silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate / (1.0 + torch.exp(-gate)) * up


class ReferenceOps:
    """`Ops` in plain torch."""

    kernels = "torch"

    def __init__(self) -> None:
        self._linear = TiledLinear()

    def prepare_linear(self, weight: Weight) -> None:
        """See `Ops.prepare_linear`."""
        if isinstance(weight, torch.Tensor):
            self._linear.tiles(weight)

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`."""
        return table.index_select(0, token_ids)

    def linear(self, x: Activations, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Ops.linear`."""
        if not isinstance(weight, torch.Tensor):
            rows = x if isinstance(x, Int8Rows) else Int8Rows(*round_rows(x.float()))
            return linear_int8(rows, weight, bias)
        assert isinstance(x, torch.Tensor)
        out = self._linear(x, weight)
        return out if bias is None else out + bias

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.rms_norm`. Source: Zhang and Sennrich 2019, arXiv:1910.07467."""
        return weight * _normalise(x, epsilon).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `Ops.add_rms_norm`."""
        residual += x
        return self.rms_norm(residual, weight, epsilon)

    def rms_norm_int8(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Int8Rows:
        """See `Ops.rms_norm_int8`."""
        return Int8Rows(*round_rows(_normalise(x, epsilon) * weight.float()))

    def add_rms_norm_int8(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> Int8Rows:
        """See `Ops.add_rms_norm_int8`."""
        residual += x
        return self.rms_norm_int8(residual, weight, epsilon)

    def rope_write_kv(
        self, qkv: torch.Tensor, norms: HeadNorms | None, angles: Angles, kv: LayerPages, batch: Batch
    ) -> torch.Tensor:
        """See `Ops.rope_write_kv`; no page is below 0 here."""
        k_pages, v_pages, cos, sin = kv.keys, kv.values, angles.cos, angles.sin
        num_kv = k_pages.shape[2]
        q, k, v = qkv.split([qkv.shape[1] - 2 * num_kv, num_kv, num_kv], dim=1)
        if norms is not None:
            q, k = (self.rms_norm(x, w, norms.epsilon) for x, w in ((q, norms.q), (k, norms.k)))
        if k_pages.dtype == torch.int8:
            for pages, heads in ((k_pages, rotate_halves(k.float(), cos, sin)), (v_pages, v.float())):
                numbers, scales = round_rows(heads)
                pages[batch.pages, batch.slots] = numbers
                scales_of(pages)[batch.pages, batch.slots] = scales
        else:
            k_pages[batch.pages, batch.slots] = rotate_halves(k, cos, sin)
            v_pages[batch.pages, batch.slots] = v
        return rotate_halves(q, cos, sin)

    def prepare_attention(
        self, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
    ) -> None:
        """See `Ops.prepare_attention`: there is nothing to choose."""

    def plan_attention(self, batch: Batch, shape: AttentionShape) -> AttentionPlan:
        """See `Ops.plan_attention`."""
        return plan_attention(batch, shape)

    def attention(self, q: torch.Tensor, kv: LayerPages, plan: AttentionPlan) -> torch.Tensor:
        """See `Ops.attention`."""
        assert isinstance(plan, ReferencePlan)
        return paged_attention(q, kv.keys, kv.values, plan)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Ops.silu_mul`. Source: Shazeer 2020, "GLU variants", arXiv:2002.05202."""
        return _silu_mul(gate_up).to(gate_up.dtype)

    def silu_mul_int8(self, gate_up: torch.Tensor) -> Int8Rows:
        """See `Ops.silu_mul_int8`."""
        return Int8Rows(*round_rows(_silu_mul(gate_up)))

    def can_draw(self, draw: Draw | None) -> bool:
        """See `Ops.can_draw`."""
        return draw is None

    def draw_tokens(
        self,
        logits: torch.Tensor,
        draws: Sequence[Draw | None],
        counted: Counted | None = None,
        mus: torch.Tensor | None = None,
    ) -> Drawn:
        """See `Ops.draw_tokens`; `torch.argmax` does not say which of equal logits it returns."""
        ids = torch.arange(logits.shape[1], device=logits.device)
        best = logits.amax(dim=1, keepdim=True)
        lowest = torch.where(logits == best, ids, logits.shape[1]).amin(dim=1)
        # NaN equals nothing
        return Drawn(lowest.clamp(max=logits.shape[1] - 1), (~torch.isfinite(logits)).sum(dim=1))
