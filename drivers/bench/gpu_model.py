"""Whole steps of a model with random weights: decode in batches, in each number format, and prompts.

Decode has two steps in flight, as graphs; what each of the two is worth is measured as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from drivers.bench.gpu_setup import Setup
from drivers.bench.gpu_weights import random_weight
from drivers.bench.rows import Measured
from drivers.model.config import ModelConfig
from drivers.model.kv_layout import kv_segments
from drivers.model.launch import DirectLauncher, GraphLauncher
from drivers.model.step_queue import MAX_IN_FLIGHT, StepQueue
from drivers.model.transformer import ModelDescription, Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.batch import ContiguousPages
from drivers.ops.int8 import Weight, scales_of
from drivers.triton_ops.ops import TritonOps
from llmos.device import KVFormat, Row

__all__ = [
    "measure_decode",
    "measure_formats",
    "measure_prefill",
    "open_cache",
    "open_queue",
    "random_transformer",
]

FORMATS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
TOKENS_PER_PAGE = 32
NUM_STEPS = 16  # of one timing


def random_transformer(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int,
    weights: str = "",
    kv: str = "",
) -> Transformer:
    """A model on triton's operations; logits stay small, and finite.

    Args:
        config: its shape.
        dtype: of what is computed.
        device: where it lies.
        max_model_len: positions.
        weights: "w8a8" or "w4a8"; else they are in `dtype`.
        kv: "int8"; else keys and values are in `dtype`.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def matrix(rows: int, columns: int) -> Weight:
        return random_weight(rows, columns, dtype, device, weights)

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=dtype, device=device)

    layers = tuple(
        LayerWeights(
            input_norm=ones(),
            qkv=matrix(q_size + 2 * kv_size, hidden),
            qkv_bias=None,
            q_norm=None,
            k_norm=None,
            output=matrix(hidden, q_size),
            output_bias=None,
            post_norm=ones(),
            gate_up=matrix(2 * inner, hidden),
            gate_up_bias=None,
            down=matrix(hidden, inner),
            down_bias=None,
        )
        for _ in range(config.num_layers)
    )
    embedding = torch.empty(config.vocab_size, hidden, dtype=dtype, device=device).normal_(std=hidden**-0.5)
    per_layer = (2 * q_size + 2 * kv_size + 3 * inner) * hidden
    name = FORMATS[dtype]
    info = ModelDescription(
        config.architecture, "", config.vocab_size, max_model_len, (), weights or name, kv or name,
        config.num_layers * per_layer + 2 * embedding.numel(), "triton",
    )  # fmt: skip
    made = Weights(embedding, layers, ones(), matrix(config.vocab_size, hidden))
    return Transformer(config, made, TritonOps(), info, kv_segments(config, info.kv))


class Cache:
    """Keys and values for so many spaces, each of so many tokens, in memory of torch's: random numbers."""

    def __init__(self, setup: Setup, model: Transformer, num_spaces: int, num_tokens: int) -> None:
        is_int8 = model.info.kv == "int8"
        per_page = model.segments[0].bytes_per_token * TOKENS_PER_PAGE
        index = ContiguousPages(-(-num_tokens // TOKENS_PER_PAGE))
        kv = KVFormat(model.info.kv, model.segments, per_page, TOKENS_PER_PAGE)
        size = num_spaces * index.pages_per_space * per_page
        frames = []
        for _ in range(2):
            if is_int8:
                numbers = torch.randint(-127, 128, (size,), dtype=torch.int8, device=setup.device)
            else:
                numbers = torch.empty(
                    size // setup.sizes.dtype.itemsize, dtype=setup.sizes.dtype, device=setup.device
                )
                numbers.normal_()
            frames.append(numbers.view(torch.uint8))
        self.pages = model.view_pages(frames, kv, index)
        for view in self.pages.views() if is_int8 else ():
            scales_of(view).fill_(1 / 73)  # as spread as normal numbers are


def measure_decode(setup: Setup, model: Transformer) -> Iterator[Measured]:
    """A step's wall time, tokens on the host, against reading weights, keys and values once."""
    sizes = setup.sizes
    for batch in sizes.batches:
        for context in sizes.contexts:
            yield from _decode_row(
                setup, model, f"step: decode, batch {batch}, context {context}", batch, context
            )
    context = sizes.contexts[0]
    for batch in sizes.ablation_batches:
        yield from _ablation_rows(setup, model, batch, context)


def measure_formats(setup: Setup) -> Iterator[Measured]:
    """The same with weights, and keys and values, of fewer bits: a model for each, as far as memory goes."""
    sizes = setup.sizes
    context = sizes.contexts[len(sizes.contexts) // 2]
    for weights, kv in (("", "int8"), ("w8a8", "int8"), ("w4a8", "int8")):
        name = f"{(weights or FORMATS[sizes.dtype]).upper()} weights, {kv} keys and values"
        if not setup.has_time(f"step: decode, {name}"):
            continue
        model = random_transformer(sizes.model, sizes.dtype, setup.device, context, weights, kv)
        for batch in sizes.ablation_batches:
            case = f"step: decode, {name}, batch {batch}, context {context}"
            yield from _decode_row(setup, model, case, batch, context)
        del model


def _decode_row(setup: Setup, model: Transformer, case: str, batch: int, context: int) -> Iterator[Measured]:
    if (cache := open_cache(setup, model, case, batch, context)) is None:
        return
    token_bytes = sum(segment.bytes_per_token for segment in model.segments)
    embedding_bytes = model.config.vocab_size * model.config.hidden_size * setup.sizes.dtype.itemsize
    seconds = _time_decode(setup, open_queue(setup, model, cache, batch), batch, context)
    read = model.weight_bytes - embedding_bytes + batch * context * token_bytes
    yield setup.against_bandwidth(case, seconds, read)


def _ablation_rows(setup: Setup, model: Transformer, batch: int, context: int) -> Iterator[Measured]:
    """What two steps in flight are worth, and what graphs are: the same step without."""
    case = f"step: decode, batch {batch}, context {context}, "
    if (cache := open_cache(setup, model, case + "ablation", batch, context)) is None:
        return

    def time_one(has_graphs: bool, num_in_flight: int) -> float:
        queue = open_queue(setup, model, cache, batch, has_graphs)
        return _time_decode(setup, queue, batch, context, num_in_flight)

    seconds = time_one(True, MAX_IN_FLIGHT)
    yield setup.beside(f"{case}two in flight", seconds, "one in flight", time_one(True, 1))
    yield setup.beside(f"{case}graphs", seconds, "kernel by kernel", time_one(False, MAX_IN_FLIGHT))


def open_cache(setup: Setup, model: Transformer, case: str, batch: int, context: int) -> Cache | None:
    """Keys and values for a case; None: there is no time or memory left for it."""
    token_bytes = sum(segment.bytes_per_token for segment in model.segments)
    if not setup.has_time(case) or not setup.has_memory(
        case, batch * (context + TOKENS_PER_PAGE) * token_bytes
    ):
        return None
    return Cache(setup, model, batch, context)


def open_queue(
    setup: Setup, model: Transformer, cache: Cache, batch: int, has_graphs: bool = True
) -> StepQueue:
    """A queue of steps on a cache; on a GPU those of lone tokens are recorded, unless they are not to be."""
    launcher = (GraphLauncher if setup.is_gpu and has_graphs else DirectLauncher)(setup.device)
    return StepQueue(model, cache.pages, batch, launcher)


def _time_decode(
    setup: Setup, queue: StepQueue, batch: int, context: int, num_in_flight: int = MAX_IN_FLIGHT
) -> float:
    """Seconds of a step; contexts stay as long as they are."""
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
            if queue.num_in_flight == num_in_flight:
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
            model.choose([row], cache.pages, [None])
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
