"""The memory of weights, counted from their arrays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from drivers.model.footprint import count_bytes
from tests.drivers.model_zoo import random_model


def test_what_is_there_twice_counts_once() -> None:
    """A head that is the embedding takes no memory of its own."""
    embedding, norm = torch.zeros(10, 4), np.zeros(3, np.float16)
    assert count_bytes((embedding, (norm, None, 3), embedding)) == 10 * 4 * 4 + 3 * 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_packing_pads_little(dtype: str) -> None:
    """Packed weights take what the plain ones do, norms in fp32 and the padding of odd shapes apart."""
    plain, packed = random_model(dtype).weight_bytes, random_model(dtype, native_threads=1).weight_bytes
    assert plain <= packed < 1.8 * plain
    assert random_model("fp32").weight_bytes == 2 * random_model("bf16").weight_bytes


def test_quantised_weights_take_less() -> None:
    """Each narrower format takes less than the one before."""
    sizes = [random_model(dtype, native_threads=1).weight_bytes for dtype in ("fp32", "bf16", "w8a8", "w4a8")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
