"""Whether a position has the same bits in torch's attention however its prompt was cut: see record 0011.

`python -m drivers.bench.sdpa_rows [TOKENS]` prints it for what there is, a GPU or the processor.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from drivers.ops.interface import AttentionShape

__all__ = ["CHUNK", "Cuts", "same_positions"]

CHUNK = 96  # tokens: no multiple of a tile of any kernel
MAX_LONE = 64  # tokens that are computed one by one, the last ones

Cuts = dict[str, float]


def same_positions(shape: AttentionShape, num_tokens: int, dtype: torch.dtype, device: torch.device) -> Cuts:
    """The fraction of positions with the bits that they have in the whole prompt, by how it is cut.

    Args:
        shape: heads.
        num_tokens: of the prompt; more than CHUNK.
        dtype: of everything.
        device: that computes.

    Returns:
        For "in chunks" of CHUNK tokens, "one by one" as in decoding, and "in company" of another prompt.
    """
    generator = torch.Generator().manual_seed(0)

    def random(heads: int) -> torch.Tensor:
        return torch.randn(2, heads, num_tokens, shape.head_dim, generator=generator).to(device, dtype)

    q, k, v = random(shape.num_heads), random(shape.num_kv_heads), random(shape.num_kv_heads)
    alone = slice(0, 1)

    def attend(start: int, end: int, rows: slice = alone) -> torch.Tensor:
        """Positions [start, end), [heads, end - start, head_dim] of the first row."""
        ours = q[rows, :, start:end], k[rows, :, :end], v[rows, :, :end]
        if start == 0:
            return F.scaled_dot_product_attention(*ours, is_causal=True, enable_gqa=True)[0]
        if end - start == 1:
            return F.scaled_dot_product_attention(*ours, enable_gqa=True)[0]
        mask = causal_lower_right(end - start, end)
        return F.scaled_dot_product_attention(*ours, attn_mask=mask, enable_gqa=True)[0]

    whole = attend(0, num_tokens)

    def same(starts: range, length: int, compute: Callable[[int, int], torch.Tensor]) -> float:
        equal = []
        for start in starts:
            end = min(start + length, num_tokens)
            equal.append((compute(start, end) == whole[:, start:end]).all(2).all(0))
        return float(torch.cat(equal).float().mean())

    lone = range(max(1, num_tokens - MAX_LONE), num_tokens)
    return {
        f"in chunks of {CHUNK}": same(range(CHUNK, num_tokens, CHUNK), CHUNK, attend),
        "one by one": same(lone, 1, attend),
        "in company": same(range(1), num_tokens, lambda start, end: attend(start, end, slice(0, 2))),
    }


def main(num_tokens: int) -> None:
    """Print a line for each number format and cut."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for cut, fraction in same_positions(AttentionShape(8, 2, 64), num_tokens, dtype, device).items():
            print(f"{device.type} {str(dtype).removeprefix('torch.')}: {cut}: {fraction:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
