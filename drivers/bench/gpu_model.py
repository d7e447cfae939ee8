"""Whole steps of a model with random weights: decode in batches with two steps in flight, and prompts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from drivers.bench.gpu_setup import Setup
from drivers.bench.rows import Measured
from drivers.model.config import ModelConfig
from drivers.model.kv_layout import kv_segments, kv_views
from drivers.model.launch import DirectLauncher, GraphLauncher
from drivers.model.step_queue import MAX_IN_FLIGHT, StepQueue
from drivers.model.transformer import ModelDescription, Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.batch import ContiguousPages
from drivers.triton_ops.ops import TritonOps
from llmos.device import KVFormat, Row

__all__ = ["measure_decode", "measure_prefill", "random_transformer"]

FORMATS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
TOKENS_PER_PAGE = 32
NUM_STEPS = 16  # of one timing


def random_transformer(
    config: ModelConfig, dtype: torch.dtype, device: torch.device, max_model_len: int
) -> Transformer:
    """A model on triton's operations; logits stay small, and finite."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.empty(rows, columns, dtype=dtype, device=device).normal_(std=columns**-0.5)

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=dtype, device=device)

    layers = tuple(
        LayerWeights(
            ones(), matrix(q_size + 2 * kv_size, hidden), None, None, None, matrix(hidden, q_size), None,
            ones(), matrix(2 * inner, hidden), None, matrix(hidden, inner), None,
        )
        for _ in range(config.num_layers)
    )  # fmt: skip
    embedding, head = matrix(config.vocab_size, hidden), matrix(config.vocab_size, hidden)
    num_parameters = sum(
        part.numel() for layer in layers for part in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    name = FORMATS[dtype]
    info = ModelDescription(
        config.architecture, "", config.vocab_size, max_model_len, (), name, name,
        num_parameters + 2 * embedding.numel(), "triton",
    )  # fmt: skip
    weights = Weights(embedding, layers, ones(), head)
    return Transformer(config, weights, TritonOps(), info, kv_segments(config, name))


class Cache:
    """Keys and values for so many spaces, each of so many tokens, in memory of torch's: random numbers."""

    def __init__(self, setup: Setup, model: Transformer, num_spaces: int, num_tokens: int) -> None:
        per_page = model.segments[0].bytes_per_token * TOKENS_PER_PAGE
        self.pages = ContiguousPages(-(-num_tokens // TOKENS_PER_PAGE))
        kv = KVFormat(model.info.kv, model.segments, per_page, TOKENS_PER_PAGE)
        size = num_spaces * self.pages.pages_per_space * per_page // setup.sizes.dtype.itemsize
        self.k, self.v = (
            kv_views(
                torch.empty(size, dtype=setup.sizes.dtype, device=setup.device).normal_().view(torch.uint8),
                model.config, kv,
            )
            for _ in range(2)
        )  # fmt: skip


def measure_decode(setup: Setup, model: Transformer) -> Iterator[Measured]:
    """A step's wall time, tokens on the host, against reading weights, keys and values once."""
    embedding_bytes = model.config.vocab_size * model.config.hidden_size * setup.sizes.dtype.itemsize
    token_bytes = sum(segment.bytes_per_token for segment in model.segments)
    for batch in setup.sizes.batches:
        for context in setup.sizes.contexts:
            case = f"step: decode, batch {batch}, context {context}"
            kv_bytes = batch * (context + TOKENS_PER_PAGE) * token_bytes
            if not setup.has_time(case) or not setup.has_memory(case, kv_bytes):
                continue
            launcher = GraphLauncher(setup.device) if setup.is_gpu else DirectLauncher(setup.device)
            cache = Cache(setup, model, batch, context)
            queue = StepQueue(model, cache.k, cache.v, cache.pages, batch, launcher)
            seconds = _time_decode(setup, queue, batch, context)
            read = model.weight_bytes - embedding_bytes + batch * context * token_bytes
            yield setup.against_bandwidth(case, seconds, read)
            del cache, queue, launcher


def _time_decode(setup: Setup, queue: StepQueue, batch: int, context: int) -> float:
    """Seconds of a step, with two in flight; contexts stay as long as they are."""
    first = [Row(asid, context - 1, (1,), True) for asid in range(batch)]
    rows = [Row(asid, context - 1, (), True) for asid in range(batch)]
    draws = [None] * batch
    for _ in range(2):  # compiles; replays
        queue.launch(first, draws)
        queue.collect()
    times = []
    num_steps = NUM_STEPS if setup.is_gpu else 2
    for _ in range(setup.sizes.runs):
        began = time.perf_counter()
        for _ in range(num_steps):
            if queue.num_in_flight == MAX_IN_FLIGHT:
                queue.collect()
            queue.launch(rows, draws)
        while queue.num_in_flight:
            queue.collect()
        times.append((time.perf_counter() - began) / num_steps)
    return statistics.median(times)


def measure_prefill(setup: Setup, model: Transformer) -> Iterator[Measured]:
    """Tokens a second of one prompt in one step, against the peak of products."""
    config = model.config
    for tokens in setup.sizes.prompts:
        case = f"step: prompt of {tokens}"
        if not setup.has_time(case):
            continue
        cache = Cache(setup, model, 1, tokens)
        row = Row(0, 0, tuple(index % config.vocab_size for index in range(tokens)), True)

        def run(row: Row = row, cache: Cache = cache) -> float:
            began = time.perf_counter()
            model.choose([row], cache.pages, cache.k, cache.v, [None])
            return time.perf_counter() - began

        run()
        seconds = statistics.median(run() for _ in range(min(3, setup.sizes.runs)))
        num_linear = model.info.num_parameters - 2 * config.vocab_size * config.hidden_size
        operations = 2 * num_linear * tokens + (
            2 * tokens * tokens * config.num_layers * config.num_heads * config.head_dim
        )
        peak = setup.arithmetic()
        yield Measured(
            case, "throughput", tokens / seconds, "tokens/s", f"product, {peak / 1e12:.4g} TFLOP/s",
            operations / seconds / peak, setup.sizes.runs,
        )  # fmt: skip
