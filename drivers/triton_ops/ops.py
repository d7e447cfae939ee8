"""`Ops` on triton kernels: for GPUs, and under triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivers.ops.batch import Batch
from drivers.ops.counted import Counted, count_seen
from drivers.ops.drawn import Drawn
from drivers.ops.int8 import Activations, Int8Rows, Weight
from drivers.ops.interface import Angles, AttentionPlan, AttentionShape, HeadNorms
from drivers.ops.kv_pages import LayerPages
from drivers.ops.tiling import BASE_TILE, TiledLinear
from drivers.ops.transfer import send
from drivers.triton_ops.attention import attention, verify_tile_rows
from drivers.triton_ops.linear import TritonLinear
from drivers.triton_ops.linear_integers import LinearIntegers
from drivers.triton_ops.operands import INTERPRETED
from drivers.triton_ops.plan import TILE_ROWS, TritonPlan, plan_attention
from drivers.triton_ops.rms_norm import add_rms_norm, add_rms_norm_int8, rms_norm, rms_norm_int8
from drivers.triton_ops.rope_kv import rope_write_kv
from drivers.triton_ops.rounding import round_rows
from drivers.triton_ops.sample import can_draw, draw_limits, draw_numbers, sample
from drivers.triton_ops.scores import score
from drivers.triton_ops.silu_mul import silu_mul, silu_mul_int8
from drivers.triton_ops.tell import list_mus, tell
from drivers.triton_ops.tuner import open_tuner
from native.sampling import Draw

__all__ = ["TritonOps"]

LIBRARY_TILES = (BASE_TILE, 128, 1024)  # rows
MIN_LIBRARY_TILE = 128  # a library that is even in small tiles only would take a call for each of those


class TritonOps:
    """`Ops` in triton. The pages of a row are consecutive: `plan_attention` raises ValueError otherwise.

    Args:
        use_library: multiply by the vendor's library where its tiles were verified, large ones too; else, and
            where they were not, in triton: in the fastest of the tiles that give the same bits.
    """

    kernels = "triton"

    def __init__(self, *, use_library: bool = True) -> None:
        self._use_library = use_library
        self._library = TiledLinear(LIBRARY_TILES)
        self._tile_rows: dict[AttentionShape, int] = {}  # of prompts
        opened = open_tuner()
        self._linear = TritonLinear() if opened is None else TritonLinear(*opened)
        self._integers = LinearIntegers(None if opened is None else opened[0])

    def uses_library(self, weight: torch.Tensor) -> bool:
        """Whether this weight is multiplied by the vendor's library."""
        return self._use_library and self._library.tiles(weight)[-1] >= MIN_LIBRARY_TILE

    def prepare_linear(self, weight: Weight) -> None:
        """See `Ops.prepare_linear`. Sums of integers need no verification."""
        if not isinstance(weight, torch.Tensor):
            self._integers.tiles(weight)
        elif not self.uses_library(weight):
            self._linear.tiles(weight)

    def embedding(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Ops.embedding`."""
        return table.index_select(0, token_ids)

    def linear(self, x: Activations, weight: Weight, bias: torch.Tensor | None) -> torch.Tensor:
        """See `Ops.linear`."""
        if not isinstance(weight, torch.Tensor):
            return self._integers(x if isinstance(x, Int8Rows) else round_rows(x), weight, bias)
        assert isinstance(x, torch.Tensor)
        if not self.uses_library(weight):
            return self._linear(x, weight, bias)
        out = self._library(x, weight)
        return out if bias is None else out + bias

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """See `Ops.rms_norm`."""
        return rms_norm(x, weight, epsilon)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `Ops.add_rms_norm`."""
        return add_rms_norm(x, residual, weight, epsilon)

    def rms_norm_int8(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> Int8Rows:
        """See `Ops.rms_norm_int8`."""
        return rms_norm_int8(x, weight, epsilon)

    def add_rms_norm_int8(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, epsilon: float
    ) -> Int8Rows:
        """See `Ops.add_rms_norm_int8`."""
        return add_rms_norm_int8(x, residual, weight, epsilon)

    def rope_write_kv(
        self, qkv: torch.Tensor, norms: HeadNorms | None, angles: Angles, kv: LayerPages, batch: Batch
    ) -> torch.Tensor:
        """See `Ops.rope_write_kv`."""
        return rope_write_kv(qkv, norms, angles, kv, batch.pages, batch.slots)

    def prepare_attention(
        self, shape: AttentionShape, dtype: torch.dtype, kv_dtype: torch.dtype, device: torch.device
    ) -> None:
        """See `Ops.prepare_attention`. High tiles gain nothing in the interpreter."""
        if not INTERPRETED:
            self._tile_rows[shape] = verify_tile_rows(shape, dtype, kv_dtype, device)

    def plan_attention(self, batch: Batch, shape: AttentionShape) -> TritonPlan:
        """See `Ops.plan_attention`. Raises ValueError: a row's pages are not consecutive."""
        rows = self._tile_rows.get(shape, TILE_ROWS)
        return plan_attention(batch.spans, shape, batch.token_ids.device, rows)

    def attention(self, q: torch.Tensor, kv: LayerPages, plan: AttentionPlan) -> torch.Tensor:
        """See `Ops.attention`."""
        assert isinstance(plan, TritonPlan)
        return attention(q, kv.keys, kv.values, plan)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `Ops.silu_mul`."""
        return silu_mul(gate_up)

    def silu_mul_int8(self, gate_up: torch.Tensor) -> Int8Rows:
        """See `Ops.silu_mul_int8`."""
        return silu_mul_int8(gate_up)

    def can_draw(self, draw: Draw | None) -> bool:
        """See `Ops.can_draw`: all but what is told of raw logits."""
        return can_draw(draw)

    def draw_tokens(
        self,
        logits: torch.Tensor,
        draws: Sequence[Draw | None],
        counted: Counted | None = None,
        mus: torch.Tensor | None = None,
    ) -> Drawn:
        """See `Ops.draw_tokens`."""
        counted = counted or count_seen(draws, logits.shape[1], logits.device)
        packed = draw_limits(draws, logits.shape[1])
        limits = None if packed is None else send(torch.from_numpy(packed), logits.device)
        numbers = send(torch.from_numpy(draw_numbers(draws)), logits.device)
        if mus is None:
            mus = list_mus(draws, logits.device)
        scores = score(logits, draws, counted, limits, mus)
        ids, num_bad = sample(logits, numbers, limits, scores)
        told = None if scores is None else tell(scores, draws, ids, num_bad, mus)
        return Drawn(ids, num_bad, told)
