"""The forward pass on native/cpu: a whole step in one call, without torch.

Weights in fp32, fp16 and bf16 are multiplied in fp32; w8a8 and w4a8 take activations that are rounded to int8
row by row, and sum integers. Everything between two products is fp32, and keys and values have a format of
their own, in the order that `native_kv_views` describes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from native._cpu import ffi, lib

from drivers.model.config import ModelConfig
from drivers.model.footprint import count_bytes
from drivers.model.kv_layout import kv_segments, native_kv_views
from drivers.model.packed import PackedWeights
from drivers.model.rope import rope_tables
from drivers.model.transformer import ModelDescription, explain_bad_row
from drivers.ops.batch import ContiguousPages, PageIndex, ResolvedRow
from drivers.ops.kv_pages import KVPages
from llmos.device import KVFormat
from native.arrays import aligned_empty
from native.sampling import Choice, Draw, read_choice, write_draw

__all__ = ["KV_FORMATS", "NativeTransformer", "explain_unfit"]

KV_FORMATS = {
    "fp32": lib.LLMOS_FP32,
    "fp16": lib.LLMOS_FP16,
    "bf16": lib.LLMOS_BF16,
    "int8": lib.LLMOS_INT8,
}
MAX_HEAD_DIM = 256


def explain_unfit(config: ModelConfig) -> str | None:
    """Say why a model cannot run here, or None when it can."""
    if config.head_dim % 8 or config.head_dim > MAX_HEAD_DIM:
        return f"head_dim {config.head_dim} is not a multiple of 8 up to {MAX_HEAD_DIM}"
    return None


class NativeTransformer:
    """A loaded model on native/cpu. Implements `Model`; the bits differ from `Transformer`'s.

    Args:
        config: of a model that `explain_unfit` has nothing against.
        weights: packed.
        info: what the kernel wants to know; `info.kv` is one of KV_FORMATS.
        num_threads: that share a step.
        processors: one for each of them to stay on, the calling thread included; empty: none.

    Raises:
        OSError: no threads can be started, or there is no such processor.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: PackedWeights,
        info: ModelDescription,
        num_threads: int,
        processors: Sequence[int] = (),
    ) -> None:
        self.config, self.info, self.segments = config, info, kv_segments(config, info.kv)
        self.num_threads = num_threads
        self._weights = weights
        self._kept: list[object] = []  # memory that C structures point to
        self._model = self._describe(weights)
        pool = ffi.new("llmos_pool **")
        others = ffi.new("int32_t[]", list(processors[1:num_threads])) if processors else ffi.NULL
        if error := lib.llmos_pool_open(num_threads, others, pool):
            raise OSError(error, f"cannot start {num_threads} threads on processors {list(processors)}")
        if processors:
            os.sched_setaffinity(0, processors[:1])
        self._pool = ffi.gc(pool[0], lib.llmos_pool_close)
        self._tokens_per_page = 0
        self._bound_to: KVPages | None = None
        self._kv: Any = None
        self._step = _StepBuffers(0, 0)

    def _describe(self, weights: PackedWeights) -> Any:
        config = self.config
        layers = ffi.new("llmos_layer[]", config.num_layers)
        for layer, given in zip(layers, weights.layers, strict=True):
            layer.input_norm, layer.post_norm = self._vector(given.input_norm), self._vector(given.post_norm)
            layer.q_norm, layer.k_norm = self._vector(given.q_norm), self._vector(given.k_norm)
            layer.qkv, layer.output = given.qkv.struct[0], given.output.struct[0]
            layer.gate_up, layer.down = given.gate_up.struct[0], given.down.struct[0]
        model = ffi.new("llmos_model *")
        model.num_layers, model.vocab_size = config.num_layers, config.vocab_size
        model.hidden_size, model.intermediate_size = config.hidden_size, config.intermediate_size
        model.epsilon = config.rms_norm_epsilon
        model.embedding_format = int(weights.embedding_format)
        model.embedding = ffi.cast("void *", weights.embedding.ctypes.data)
        model.layers = layers
        model.final_norm = self._vector(weights.final_norm)
        model.head = weights.head.struct[0]
        cos, sin = rope_tables(config.rope, config.head_dim, self.info.max_model_len, torch.device("cpu"))
        model.cosines, model.sines = self._vector(cos.numpy()), self._vector(sin.numpy())
        model.weight_bytes = weights.step_bytes
        self._kept.append(layers)
        return model

    def _vector(self, values: np.ndarray | None) -> Any:
        if values is None:
            return ffi.NULL
        self._kept.append(values)
        return ffi.cast("float *", values.ctypes.data)

    def view_pages(self, frames: Sequence[torch.Tensor], kv: KVFormat, index: PageIndex) -> KVPages:
        """See Model, and `native_kv_views` for the order."""
        self._tokens_per_page = kv.tokens_per_page
        k_frames, v_frames = frames
        keys = native_kv_views(k_frames, self.config, kv, is_key=True)
        values = native_kv_views(v_frames, self.config, kv, is_key=False)
        return KVPages.of(keys, values, index)

    @property
    def weight_bytes(self) -> int:
        """See Model."""
        return count_bytes(self._weights)

    def explain_bad_row(self, row: ResolvedRow) -> str | None:
        """See Model."""
        return explain_bad_row(row, self.config, self.info.max_model_len)

    def run(self, rows: Sequence[ResolvedRow], pages: KVPages) -> torch.Tensor:
        """See Model."""
        num_samples = sum(len(row.targets) + row.sample for row in rows)
        _, logits, _ = self._forward(rows, pages, [Draw()] * num_samples)
        return torch.from_numpy(logits.copy()) if num_samples else torch.empty((0, self.config.vocab_size))

    def choose(
        self, rows: Sequence[ResolvedRow], pages: KVPages, draws: Sequence[Draw | None]
    ) -> list[Choice]:
        """See Model."""
        return self.choose_and_tell(rows, pages, draws, ())[0]

    def choose_and_tell(
        self,
        rows: Sequence[ResolvedRow],
        pages: KVPages,
        draws: Sequence[Draw | None],
        told: Sequence[int],
    ) -> tuple[list[Choice], npt.NDArray[np.float32]]:
        """See Model."""
        if not self._weights.head_is_finite:
            draws = [draw or Draw() for draw in draws]
        choices, _, hidden = self._forward(rows, pages, draws, told)
        return choices, hidden

    def _forward(
        self,
        rows: Sequence[ResolvedRow],
        pages: KVPages,
        draws: Sequence[Draw | None],
        told: Sequence[int] = (),
    ) -> tuple[list[Choice], np.ndarray, np.ndarray]:
        """Choices; logits of rows with a draw, in order, which the next call overwrites; hidden states."""
        if pages is not self._bound_to:
            self._bind(pages)
        page_index = pages.index
        tokens: list[int] = []
        spans: list[int] = []
        table: list[int] = []
        samples: list[int] = []
        tokens_per_page = self._tokens_per_page
        is_contiguous = isinstance(page_index, ContiguousPages)
        for row in rows:
            num_tokens = len(row.tokens)
            spans += (row.start, num_tokens, len(tokens))
            if is_contiguous:
                spans.append(page_index(row.asid, 0))
            else:
                spans.append(len(table))
                num_pages = (row.start + num_tokens - 1) // tokens_per_page + 1
                table += [page_index(row.asid, vpn) for vpn in range(num_pages)]
            tokens += row.tokens
            samples += range(len(tokens) - num_tokens, len(tokens) - num_tokens + len(row.targets))
            if row.sample:
                samples.append(len(tokens) - 1)
        order = sorted(range(len(samples)), key=lambda index: draws[index] is not None)  # greedy ones first
        drawn = [draw for draw in draws if draw is not None]
        num_greedy = len(samples) - len(drawn)
        buffers = self._reserve(len(tokens), len(samples))
        step = buffers.step
        buffers.tokens[0 : len(tokens)] = tokens
        buffers.samples[0 : len(samples)] = [samples[i] for i in order]
        logits = buffers.logits(len(drawn), self.config.vocab_size)
        step.num_tokens, step.num_spans = len(tokens), len(rows)
        step.num_greedy, step.num_samples = num_greedy, len(samples)
        span_memory = ffi.new("int32_t[]", spans)
        table_memory = ffi.NULL if is_contiguous else ffi.new("int32_t[]", table)
        step.spans, step.page_table = ffi.cast("llmos_span *", span_memory), table_memory
        requests = ffi.new("llmos_draw[]", len(drawn))
        kept = [write_draw(requests[i], draw, self.config.vocab_size) for i, draw in enumerate(drawn)]
        step.draws = requests
        hidden = np.empty((len(told), self.config.hidden_size), dtype=np.float32)
        told_memory = ffi.new("int32_t[]", list(told))
        if told:
            step.num_hidden, step.hidden_tokens = len(told), told_memory
            step.hidden = ffi.cast("float *", hidden.ctypes.data)
        lib.llmos_forward(self._pool, self._model, self._kv, step, buffers.scratch)
        if told:
            step.num_hidden = 0
        choices = [Choice(-1)] * len(samples)
        for place, index in enumerate(order):
            request = requests[place - num_greedy] if place >= num_greedy else None
            choices[index] = read_choice(buffers.choices[place], request)
        del kept  # not before C is done with it
        return choices, logits[: len(drawn)], hidden

    def _bind(self, pages: KVPages) -> None:
        config, keys, values = self.config, pages.layers[0].keys, pages.layers[0].values
        kv = ffi.new("llmos_kv *")
        kv.format = KV_FORMATS[self.info.kv]
        kv.num_heads, kv.num_kv_heads, kv.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        kv.tokens_per_page, kv.window = self._tokens_per_page, config.sliding_window or 0
        kv.page_bytes = keys.stride(0) * keys.itemsize
        kv.keys = ffi.cast("void *", keys.data_ptr())
        kv.values = ffi.cast("void *", values.data_ptr())
        if lib.llmos_kv_check(kv):
            raise ValueError(
                f"pages of {self._tokens_per_page} tokens, {kv.page_bytes} bytes, cannot be attended to"
            )
        self._bound_to, self._kv = pages, kv

    def _reserve(self, num_tokens: int, num_samples: int) -> _StepBuffers:
        buffers = self._step
        if num_tokens > buffers.num_tokens or num_samples > buffers.num_samples:
            # half as much again, so that steps which grow slowly do not allocate each time
            if num_tokens > buffers.num_tokens:
                num_tokens = max(num_tokens, buffers.num_tokens * 3 // 2)
            buffers = _StepBuffers(max(num_tokens, buffers.num_tokens), max(num_samples, buffers.num_samples))
            buffers.open_scratch(
                lib.llmos_forward_scratch_bytes(
                    self._pool, self._model, self._kv, buffers.num_tokens, buffers.num_samples
                )
            )
            self._step = buffers
        return buffers


class _StepBuffers:
    """Memory in which a step is handed to C, for so many tokens and samples."""

    def __init__(self, num_tokens: int, num_samples: int) -> None:
        self.num_tokens, self.num_samples = num_tokens, num_samples
        self.tokens = ffi.new("int32_t[]", num_tokens)
        self.samples = ffi.new("int32_t[]", num_samples)
        self.choices = ffi.new("llmos_choice[]", num_samples)
        self.step = ffi.new("llmos_step *")
        self.step.token_ids, self.step.samples = self.tokens, self.samples
        self.step.choices = self.choices
        self._logits = np.empty((0, 0), dtype=np.float32)

    def open_scratch(self, size_bytes: int) -> None:
        """Allocate the kernels' memory; it takes none until it is written."""
        self._scratch = aligned_empty(size_bytes)
        self.scratch = ffi.cast("void *", self._scratch.ctypes.data)

    def logits(self, num_rows: int, vocab_size: int) -> np.ndarray:
        """Memory for logits [at least num_rows, vocab_size]; the same as long as it is large enough."""
        if len(self._logits) < num_rows:
            self._logits = np.empty((num_rows, vocab_size), dtype=np.float32)
            self.step.logits = ffi.cast("float *", self._logits.ctypes.data)
        return self._logits
