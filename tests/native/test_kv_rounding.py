"""Values are rounded to bf16 as IEEE 754 rounds: halves to even, a NaN stays one, in every variant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from native._cpu import ffi, lib

from native.attention import KVLayout, make_spans, rope_write_kv, use_variant

VARIANTS = [variant for variant in range(lib.LLMOS_NUM_VARIANTS) if variant <= lib.llmos_best_variant()]
DIM, TOKENS_PER_PAGE = 64, 16


@pytest.fixture(params=VARIANTS, ids=["plain", "avx2", "avx512"][: len(VARIANTS)])
def variant(request: pytest.FixtureRequest) -> Iterator[int]:
    """Every variant that this machine has."""
    assert use_variant(request.param)
    yield request.param
    use_variant(lib.llmos_best_variant())


@pytest.mark.parametrize("below", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_bf16_values(variant: int, below: int) -> None:
    """Every upper half of an fp32 number, with a lower half under, at and above the middle."""
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16 | below).reshape(-1, DIM)
    values, num_tokens = bits.view(np.float32), len(bits)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    expected = np.where(np.isnan(values), (bits >> 16 | 0x40).astype(np.uint16), rounded)
    layout = KVLayout("bf16", 1, 1, DIM, TOKENS_PER_PAGE)
    size = num_tokens // TOKENS_PER_PAGE * layout.page_bytes
    memory = [np.zeros(size + 64, dtype=np.uint8) for _ in "kv"]
    keys, stored = (m[-m.ctypes.data % 64 :][:size] for m in memory)
    kv = layout.bind(*(ffi.cast("void *", m.ctypes.data) for m in (keys, stored)))
    ones = np.ones((num_tokens, DIM), dtype=np.float32)
    angles = np.zeros((num_tokens, DIM // 2), dtype=np.float32)
    qkv = np.concatenate((ones, ones, values), axis=1)
    rope_write_kv(kv, make_spans([(0, num_tokens, 0, 0)]), None, qkv, angles + 1, angles)
    np.testing.assert_array_equal(stored.view(np.uint16).reshape(num_tokens, DIM), expected)
