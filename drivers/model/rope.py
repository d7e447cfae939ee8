"""Angles of the rotary position embedding, for every position, worked out once at load."""

from __future__ import annotations

import math

import torch

from drivers.model.config import RopeConfig

__all__ = ["inverse_frequencies", "rope_tables"]


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """Radians per position of each pair of dimensions: [head_dim / 2], fp64.

    "llama3" divides the low frequencies by `factor`, keeps the high ones, and blends in between; "factors"
    divides each by a factor of its own.
    Source: Su et al. 2021, arXiv:2104.09864; Chen et al. 2023, arXiv:2306.15595 (linear); Llama team 2024,
    arXiv:2407.21783 (llama3).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    frequencies = rope.theta**-exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "factors":
        return frequencies / torch.tensor(rope.factors, dtype=torch.float64)
    if rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        blend = (rope.original_max_positions / wavelengths - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blend = blend.clamp(0.0, 1.0)
        return blend * frequencies + (1.0 - blend) * frequencies / rope.factor
    return frequencies


def rope_tables(
    rope: RopeConfig, head_dim: int, num_positions: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines: two of [num_positions, head_dim / 2], fp32, rounded once from fp64."""
    positions = torch.arange(num_positions, dtype=torch.float64)
    angles = positions[:, None] * inverse_frequencies(rope, head_dim)
    return angles.cos().float().to(device), angles.sin().float().to(device)
