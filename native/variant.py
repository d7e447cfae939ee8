"""Variants of the kernels, one for each instruction set: "plain", "avx2", "avx512"."""

from __future__ import annotations

from native._cpu import ffi, lib

__all__ = ["best_variant", "resolve_variant", "usable_variants"]


def best_variant() -> str:
    """The name of the variant that runs here unless another is asked for: "plain", "avx2", "avx512"."""
    return str(ffi.string(lib.llmos_variant_name(lib.llmos_best_variant())).decode())


def usable_variants() -> dict[str, int]:
    """The instruction sets that this machine has: name to number, best last."""
    return {ffi.string(lib.llmos_variant_name(i)).decode(): i for i in range(lib.llmos_best_variant() + 1)}


def resolve_variant(variant: int | None) -> int:
    """A variant by number; None: the best. Raises ValueError: this machine does not run it."""
    best = int(lib.llmos_best_variant())
    if variant is None:
        return best
    if not 0 <= variant <= best:
        raise ValueError(f"this machine runs variants 0 to {best}, not {variant}")
    return variant
