"""Kernels alone: peaks, attention beside torch's, products beside the library's, sampling, the rest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from drivers.bench.gpu_elementwise import TOKENS_PER_PAGE, measure_elementwise, random_pages
from drivers.bench.gpu_sampling import measure_sampling
from drivers.bench.gpu_setup import Setup
from drivers.bench.gpu_weights import random_weight
from drivers.bench.rows import Measured
from drivers.bench.sdpa_rows import same_positions
from drivers.ops.batch import ContiguousPages, build_batch
from drivers.ops.int8 import SCALE_BYTES, Int8Weight, scales_of
from drivers.ops.interface import AttentionShape
from drivers.triton_ops.attention import attention, verify_tile_rows
from drivers.triton_ops.linear import TritonLinear
from drivers.triton_ops.ops import TritonOps
from drivers.triton_ops.plan import TritonPlan, plan_attention
from drivers.triton_ops.tuner import open_tuner
from llmos.device import Row

__all__ = ["measure_kernels", "measure_peaks"]

SDPA_TOKENS = 1000  # in a prompt that is cut
MANY_ROWS = 512  # of a product that arithmetic limits, and not bandwidth


def measure_peaks(setup: Setup) -> Iterator[Measured]:
    """What the device gives: everything else is held against these."""
    rate, peak = setup.bandwidth(), setup.arithmetic()
    runs = setup.sizes.runs
    yield Measured("peaks: copy within the device", "rate", rate / 1e9, "GB/s", "itself", 1.0, runs)
    yield Measured("peaks: matrix product", "rate", peak / 1e12, "TFLOP/s", "itself", 1.0, runs)


def measure_kernels(setup: Setup) -> Iterator[Measured]:
    """Each kernel at the model's shape."""
    sizes = setup.sizes
    for rows in sizes.product_rows:  # first: tiles are chosen here, and others need them
        yield from _product(setup, rows)
        for num_bits in (8, 4):
            yield from _integer_product(setup, rows, num_bits)
        yield from measure_elementwise(setup, rows)
    for batch in sizes.batches:
        for context in sizes.contexts:
            yield from _decode_attention(setup, batch, context)
        yield from _int8_attention(setup, batch, sizes.contexts[len(sizes.contexts) // 2])
    for tokens in sizes.prompts:
        yield from _prefill_attention(setup, tokens)
    yield from _sdpa_rows(setup)
    yield from measure_sampling(setup)


def _sdpa_rows(setup: Setup) -> Iterator[Measured]:
    """Whether torch's attention could take the place of ours: record 0011 says why it does not."""
    case = f"attention: torch's, prompt of {SDPA_TOKENS}"
    if setup.has_time(case):
        cuts = same_positions(_shape(setup), SDPA_TOKENS, setup.sizes.dtype, setup.device)
        for cut, fraction in cuts.items():
            yield Measured(
                f"{case} {cut}", "same bits", fraction, "of positions", "alone, whole", fraction, 1
            )


def _shape(setup: Setup) -> AttentionShape:
    config = setup.sizes.model
    return AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)


def _decode_attention(setup: Setup, batch: int, context: int) -> Iterator[Measured]:
    shape = _shape(setup)
    case = f"attention: decode, batch {batch}, context {context}"
    num_bytes = 2 * batch * context * shape.num_kv_heads * shape.head_dim * setup.sizes.dtype.itemsize
    if not setup.has_time(case) or not setup.has_memory(case, num_bytes):
        return
    k, v = random_pages(setup, batch * _pages_per_space(context) * TOKENS_PER_PAGE)
    q, plan = _decode_queries(setup, batch, context)
    seconds = setup.seconds(lambda: attention(q, k, v, plan))
    yield setup.against_bandwidth(case, seconds, num_bytes)
    # torch's own takes the same memory: virtual contiguity makes it a plain strided tensor
    by_head = [
        pages.view(batch, -1, shape.num_kv_heads, shape.head_dim)[:, :context].transpose(1, 2)
        for pages in (k, v)
    ]
    other = setup.seconds(lambda: F.scaled_dot_product_attention(q[:, :, None], *by_head, enable_gqa=True))
    yield setup.beside(case, seconds, "torch's attention", other)


def _pages_per_space(context: int) -> int:
    return -(-context // TOKENS_PER_PAGE)


def _decode_queries(setup: Setup, batch: int, context: int) -> tuple[torch.Tensor, TritonPlan]:
    """One token of each space, and the plan of their attention."""
    shape = _shape(setup)
    q = torch.randn(batch, shape.num_heads, shape.head_dim, dtype=setup.sizes.dtype, device=setup.device)
    rows = [Row(asid, context - 1, (0,), True) for asid in range(batch)]
    spans = build_batch(rows, ContiguousPages(_pages_per_space(context)), TOKENS_PER_PAGE).spans
    return q, plan_attention(spans, shape, setup.device)


def _int8_attention(setup: Setup, batch: int, context: int) -> Iterator[Measured]:
    """Decode over keys and values in 8 bits, beside the same in the model's format."""
    shape = _shape(setup)
    case = f"attention: decode in int8, batch {batch}, context {context}"
    numbers = 2 * batch * context * shape.num_kv_heads
    if not setup.has_time(case) or not setup.has_memory(case, numbers * 4 * shape.head_dim):
        return
    q, plan = _decode_queries(setup, batch, context)
    num_pages = batch * _pages_per_space(context)
    wide = random_pages(setup, num_pages * TOKENS_PER_PAGE)
    narrow = []
    for pages in wide:
        # as kv_views lays one layer out: the numbers of a page, then its scales
        stride = TOKENS_PER_PAGE * shape.num_kv_heads * (shape.head_dim + SCALE_BYTES)
        memory = torch.empty(num_pages * stride, dtype=torch.int8, device=setup.device)
        narrow.append(memory.as_strided(pages.shape, (stride, *pages.stride()[1:])))
        scales_of(narrow[-1]).fill_(4 / 127)
        narrow[-1].copy_((pages * (127 / 4)).round_().clamp_(-127, 127))
    seconds = setup.seconds(lambda: attention(q, *narrow, plan))
    yield setup.against_bandwidth(case, seconds, numbers * (shape.head_dim + SCALE_BYTES))
    other = setup.seconds(lambda: attention(q, *wide, plan))
    yield setup.beside(case, seconds, "the model's format", other)


def _prefill_attention(setup: Setup, tokens: int) -> Iterator[Measured]:
    shape = _shape(setup)
    case = f"attention: prompt of {tokens}"
    if not setup.has_time(case):
        return
    k, v = random_pages(setup, tokens)
    q = torch.randn(tokens, shape.num_heads, shape.head_dim, dtype=setup.sizes.dtype, device=setup.device)
    batch = build_batch(
        [Row(0, 0, (0,) * tokens, True)], ContiguousPages(len(k)), TOKENS_PER_PAGE, setup.device
    )
    rows = verify_tile_rows(shape, q.dtype, k.dtype, setup.device)
    plan = plan_attention(batch.spans, shape, setup.device, rows)
    seconds = setup.seconds(lambda: attention(q, k, v, plan))
    operations = 2 * tokens * tokens * shape.num_heads * shape.head_dim  # causal: half of two products
    peak = setup.arithmetic()
    yield Measured(
        case, "rate", operations / seconds / 1e12, "TFLOP/s", f"product, {peak / 1e12:.4g} TFLOP/s",
        operations / seconds / peak, setup.sizes.runs,
    )  # fmt: skip
    by_head = [x.flatten(0, -3)[:tokens].transpose(0, 1)[None] for x in (q, k, v)]
    other = setup.seconds(lambda: F.scaled_dot_product_attention(*by_head, is_causal=True, enable_gqa=True))
    yield setup.beside(case, seconds, "torch's attention", other)


def _product(setup: Setup, rows: int) -> Iterator[Measured]:
    sizes, config = setup.sizes, setup.sizes.model
    case = f"kernels: product of {rows} rows, {2 * config.intermediate_size} x {config.hidden_size}"
    if not setup.has_time(case):
        return
    weight = torch.randn(
        2 * config.intermediate_size, config.hidden_size, dtype=setup.sizes.dtype, device=setup.device
    )
    x = torch.randn(rows, config.hidden_size, dtype=setup.sizes.dtype, device=setup.device)
    opened = open_tuner()
    linear = TritonLinear() if opened is None else TritonLinear(*opened)
    seconds = setup.seconds(lambda: linear(x, weight, None))
    if rows < MANY_ROWS:
        yield setup.against_bandwidth(case, seconds, weight.nbytes)
    else:
        rate, peak = 2 * rows * weight.numel() / seconds, setup.arithmetic()
        yield Measured(
            case,
            "rate",
            rate / 1e12,
            "TFLOP/s",
            f"product, {peak / 1e12:.4g} TFLOP/s",
            rate / peak,
            sizes.runs,
        )
    yield setup.beside(case, seconds, "the library", setup.seconds(lambda: x @ weight.T))


def _integer_product(setup: Setup, rows: int, num_bits: int) -> Iterator[Measured]:
    """W8A8 or W4A8 with its rows rounded before it, beside the library's product in the model's format."""
    config = setup.sizes.model
    size_in, size_out = config.hidden_size, 2 * config.intermediate_size
    case = f"kernels: W{num_bits}A8 product of {rows} rows, {size_out} x {size_in}"
    if not setup.has_time(case):
        return
    weight = random_weight(size_out, size_in, setup.sizes.dtype, setup.device, f"w{num_bits}a8")
    assert not isinstance(weight, torch.Tensor)
    num_bytes = sum(
        part.nbytes
        for part in (
            (weight.values,)
            if isinstance(weight, Int8Weight)
            else (weight.codes, weight.group_scale, weight.group_offset)
        )
    )
    ops = TritonOps()
    ops.prepare_linear(weight)
    x = torch.randn(rows, size_in, dtype=setup.sizes.dtype, device=setup.device)
    seconds = setup.seconds(lambda: ops.linear(x, weight, None))
    yield setup.against_bandwidth(case, seconds, num_bytes)
    wide = weight.values.to(setup.sizes.dtype)
    yield setup.beside(case, seconds, "the library", setup.seconds(lambda: x @ wide.T))
