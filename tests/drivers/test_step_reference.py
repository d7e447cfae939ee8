"""A whole step of native/cpu against NumPy, which follows the same integer rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from model_zoo import Memory, random_model
from native._cpu import ffi

from drivers.model.native_transformer import NativeTransformer
from drivers.model.rope import rope_tables
from drivers.ops.batch import ContiguousPages
from llmos.device import Row
from native.attention import KVLayout, attend, make_spans, rope_write_kv
from native.elementwise import rms_norm, silu_mul
from native.pack import PackedWeight

Floats = np.ndarray
NUM_SPACES = 6
ALL_THREADS = 1 << 40  # bytes of weights: as if the model were too large for one thread

# Prompts in chunks, then decodes beside prompts; 1, 8, 9 and 70 tokens lie on both sides of every block.
STEPS = [
    [(0, 0, 7)],
    [(0, 7, 1)],
    [(0, 8, 1), (1, 0, 7)],
    [(0, 9, 1), (1, 7, 1), (2, 0, 7)],
    [(3, 0, 70)],
    [(0, 10, 1), (1, 8, 1), (2, 7, 1), (3, 70, 1), (4, 0, 17)],
]


def step_rows(step: Sequence[tuple[int, int, int]]) -> list[Row]:
    """Rows whose tokens follow from space and position."""
    return [
        Row(asid, start, tuple((7 * asid + 3 * p * p + p) % 101 for p in range(start, start + count)), True)
        for asid, start, count in step
    ]


def quantise(x: Floats) -> tuple[np.ndarray, Floats]:
    """quantise.h in NumPy: every operation rounds once, in fp32."""
    largest = abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.clip(np.rint(x * inverse), -127, 127).astype(np.int32), largest / np.float32(127)


def product(weight: PackedWeight, x: Floats) -> Floats:
    """Integers times integers, then one factor for each row and column, as gemm.h says."""
    q, scale = quantise(x)
    y = (q @ weight.unpack_int8().astype(np.int32).T).astype(np.float32) * (weight.scale * scale)
    return y if weight.bias is None else y + weight.bias


class Reference:
    """A model's steps; `norm`, `activate` and `mix` are the fp32 parts between products."""

    def __init__(self, model: NativeTransformer) -> None:
        self.config, self.weights = model.config, model._weights
        self.cos, self.sin = (
            table.numpy()
            for table in rope_tables(
                self.config.rope, self.config.head_dim, model.info.max_model_len, torch.device("cpu")
            )
        )
        self.norm: Callable[[Floats, Floats], Floats] = partial(
            rms_norm, epsilon=self.config.rms_norm_epsilon
        )
        self.activate: Callable[[Floats], Floats] = silu_mul

    def mix(self, layer: int, rows: Sequence[Row], qkv: Floats) -> Floats:
        """Rotate, remember keys and values, and attend."""
        raise NotImplementedError

    def run(self, rows: Sequence[Row]) -> Floats:
        """Logits of every row's last token."""
        ids = [token for row in rows for token in row.tokens]
        x = self.weights.embedding[ids]
        for index, layer in enumerate(self.weights.layers):
            mixed = self.mix(index, rows, product(layer.qkv, self.norm(x, layer.input_norm)))
            x = x + product(layer.output, mixed)
            gate_up = product(layer.gate_up, self.norm(x, layer.post_norm))
            x = x + product(layer.down, self.activate(gate_up))
        last = np.cumsum([len(row.tokens) for row in rows]) - 1
        return product(self.weights.head, self.norm(x[last], self.weights.final_norm))


class SharedReference(Reference):
    """fp32 parts by the kernels, which have tests of their own: products must then agree to the bit."""

    def __init__(self, model: NativeTransformer) -> None:
        super().__init__(model)
        config = self.config
        self.layout = KVLayout(
            model.info.kv,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            16,
            window=config.sliding_window,
        )  # type: ignore[arg-type]
        self.pages_per_space = 512 // 16
        size = NUM_SPACES * self.pages_per_space * self.layout.page_bytes
        self.memory = [[np.zeros(size + 64, dtype=np.uint8) for _ in "kv"] for _ in range(config.num_layers)]

    def mix(self, layer: int, rows: Sequence[Row], qkv: Floats) -> Floats:
        """See Reference."""
        kv = self.layout.bind(
            *(ffi.cast("void *", m.ctypes.data + -m.ctypes.data % 64) for m in self.memory[layer])
        )
        first = np.cumsum([0, *(len(row.tokens) for row in rows)])
        spans = make_spans(
            [
                (r.start, len(r.tokens), int(f), r.asid * self.pages_per_space)
                for r, f in zip(rows, first, strict=False)
            ]
        )
        at = self.weights.layers[layer]
        rope_write_kv(
            kv, spans, None, qkv, self.cos, self.sin, at.q_norm, at.k_norm, self.config.rms_norm_epsilon
        )
        out = np.empty((len(qkv), self.config.num_heads * self.config.head_dim), dtype=np.float32)
        attend(kv, spans, None, qkv, out)
        return out


class PlainReference(Reference):
    """fp32 parts in fp64, after the textbook, with keys and values of fp32."""

    def __init__(self, model: NativeTransformer) -> None:
        super().__init__(model)
        self.kept: dict[tuple[int, int], list[Floats]] = {}
        self.norm, self.activate = self._norm, self._activate

    def _norm(self, x: Floats, weight: Floats) -> Floats:
        wide = x.astype(np.float64)
        mean = (wide**2).mean(axis=-1, keepdims=True)
        return (wide / np.sqrt(mean + self.config.rms_norm_epsilon) * weight).astype(np.float32)

    def _activate(self, gate_up: Floats) -> Floats:
        gate, up = np.split(gate_up.astype(np.float64), 2, axis=1)
        return (gate / (1 + np.exp(-gate)) * up).astype(np.float32)

    def _rotate(self, x: Floats, positions: np.ndarray) -> Floats:
        cos, sin = self.cos[positions, None].astype(np.float64), self.sin[positions, None].astype(np.float64)
        a, b = np.split(x, 2, axis=2)
        return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=2)

    def mix(self, layer: int, rows: Sequence[Row], qkv: Floats) -> Floats:
        """See Reference."""
        config, at, done, out = self.config, self.weights.layers[layer], 0, []
        group = config.num_heads // config.num_kv_heads
        for row in rows:
            count = len(row.tokens)
            positions = np.arange(row.start, row.start + count)
            heads = qkv[done : done + count].reshape(count, -1, config.head_dim)
            done += count
            q, k, v = np.split(heads, [config.num_heads, config.num_heads + config.num_kv_heads], axis=1)
            assert at.q_norm is not None
            assert at.k_norm is not None
            q, k = (
                self._rotate(self._norm(q, at.q_norm), positions),
                self._rotate(self._norm(k, at.k_norm), positions),
            )
            kept = self.kept.setdefault((layer, row.asid), [])
            kept.append(np.stack((k, v)))
            keys, values = np.concatenate(kept, axis=1).repeat(group, axis=2)
            scores = np.einsum("qhd,khd->hqk", q, keys) / np.sqrt(config.head_dim)
            scores[:, positions[:, None] < np.arange(len(keys))] = -np.inf
            weights = np.exp(scores - scores.max(axis=2, keepdims=True))
            weights /= weights.sum(axis=2, keepdims=True)
            out.append(np.einsum("hqk,khd->qhd", weights, values).reshape(count, -1))
        return np.concatenate(out).astype(np.float32)


def native_model(weights: str, kv: str, num_threads: int, **shape: Any) -> NativeTransformer:
    """A model whose steps are shared by all threads however small they are."""
    model = random_model(weights, native_threads=num_threads, kv=kv, **shape)
    assert isinstance(model, NativeTransformer)
    model._model.weight_bytes = ALL_THREADS
    return model


def run_native(model: NativeTransformer, memory: Memory, rows: Sequence[Row]) -> Floats:
    """Logits of every row; the best token of each is the first largest."""
    pages = evolve(memory.pages, index=ContiguousPages(memory.pages_per_space))
    choices = model.choose(rows, pages, [None] * len(rows))
    logits = model.run(rows, pages).numpy()
    assert [choice.token for choice in choices] == logits.argmax(axis=1).tolist()
    return logits


@pytest.mark.parametrize("kv", ["fp16", "int8"])
@pytest.mark.parametrize("weights", ["w8a8", "w4a8"])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_step_is_numpy_to_the_bit(weights: str, kv: str, num_threads: int) -> None:
    """Every step gives the logits of NumPy's integer products, bit for bit, on any number of threads."""
    model = native_model(weights, kv, num_threads)
    memory, reference = Memory(model, NUM_SPACES), SharedReference(model)
    for step in STEPS:
        rows = step_rows(step)
        np.testing.assert_array_equal(run_native(model, memory, rows), reference.run(rows))


@pytest.mark.parametrize("weights", ["w8a8", "w4a8"])
def test_step_is_near_the_textbook(weights: str) -> None:
    """Against fp64 parts after the textbook: a number between two integers may be rounded otherwise."""
    model = native_model(weights, "fp32", 2)
    memory, reference = Memory(model, NUM_SPACES), PlainReference(model)
    for step in STEPS:
        rows = step_rows(step)
        expected = reference.run(rows)
        error = abs(run_native(model, memory, rows) - expected).max() / abs(expected).max()
        assert error < 2e-3


@pytest.mark.parametrize("weights", ["fp32", "bf16", "w8a8", "w4a8"])
def test_company_and_threads_leave_no_trace(weights: str) -> None:
    """A row's logits are those of a quiet run on one thread, whatever is beside it on any threads."""
    quiet, busy = (native_model(weights, "fp16", threads, num_kv_heads=3) for threads in (1, 3))
    alone, together = Memory(quiet, NUM_SPACES), Memory(busy, NUM_SPACES)
    for step in STEPS:
        rows = step_rows(step)
        company = run_native(busy, together, rows)
        for row, logits in zip(rows, company, strict=True):
            np.testing.assert_array_equal(run_native(quiet, alone, [row])[0], logits)
