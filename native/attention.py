"""Keys and values in pages, and attention over them, on the CPU: native/cpu/attention.h for NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from attrs import field, frozen

from native._cpu import ffi, lib
from native.arrays import floats, stride

__all__ = [
    "FORMATS",
    "KVLayout",
    "attend",
    "bind_attend",
    "make_spans",
    "num_items",
    "rope_write_kv",
    "use_variant",
]

FORMATS = {"fp32": 0, "fp16": 1, "bf16": 2, "int8": 3}  # LLMOS_FP32 and so on

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]


@frozen
class KVLayout:
    """Where a layer's keys and values lie: attention.h has the formula.

    Args:
        format: "fp32", "fp16", "bf16" or "int8".
        num_heads: of queries; a multiple of num_kv_heads.
        num_kv_heads: of keys and values.
        head_dim: a multiple of 8, at most 256.
        tokens_per_page: a multiple of 16, or below that.
        page_bytes: from one page to the next, a multiple of 64; 0: one layer's bytes, rounded up.
        window: a token sees its last so many positions; None: all.

    Raises:
        ValueError: the kernels do not serve this shape.
    """

    format: Literal["fp32", "fp16", "bf16", "int8"]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tokens_per_page: int
    page_bytes: int = 0
    window: int | None = None
    struct: Any = field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        struct = ffi.new("llmos_kv *")
        struct.format = FORMATS[self.format]
        struct.num_heads, struct.num_kv_heads = self.num_heads, self.num_kv_heads
        struct.head_dim, struct.tokens_per_page = self.head_dim, self.tokens_per_page
        struct.window = self.window or 0
        struct.page_bytes = self.page_bytes or -(-lib.llmos_kv_layer_bytes(struct) // 64) * 64
        if lib.llmos_kv_check(struct):
            raise ValueError(f"{self} is not a shape that the kernels serve")
        object.__setattr__(self, "struct", struct)
        object.__setattr__(self, "page_bytes", struct.page_bytes)

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer's keys (or values) in a frame."""
        return int(lib.llmos_kv_layer_bytes(self.struct))

    def bind(self, keys: Any, values: Any) -> Any:
        """The C structure for one layer, whose first page's keys and values begin at these addresses."""
        struct = ffi.new("llmos_kv *", self.struct[0])
        struct.keys, struct.values = keys, values
        return struct


def make_spans(rows: list[tuple[int, int, int, int]]) -> Ints:
    """Rows (start, num_tokens, first, pages) as llmos_span wants them: int32 [num_rows, 4]."""
    return np.array(rows, dtype=np.int32).reshape(-1, 4)


def use_variant(variant: int) -> bool:
    """Make the whole process use a variant (0 plain, 1 AVX2, 2 AVX-512); False: it cannot run."""
    return not lib.llmos_use_kernels(variant)


def num_items(kv: Any, spans: Ints) -> int:
    """Work items of `attend`."""
    return int(lib.llmos_attention_items(kv, _spans(spans), len(spans)))


def rope_write_kv(
    kv: Any,
    spans: Ints,
    pages: Ints | None,
    qkv: Floats,
    cos: Floats,
    sin: Floats,
    q_norm: Floats | None = None,
    k_norm: Floats | None = None,
    epsilon: float = 1e-6,
    tokens: tuple[int, int] | None = None,
) -> None:
    """Normalise and rotate queries (in place) and keys; write keys and values.

    Args:
        kv: from `KVLayout.bind`.
        spans: from `make_spans`.
        pages: the page table that the spans point into; None: pages are consecutive.
        qkv: [num_tokens, (num_heads + 2 num_kv_heads) * head_dim], contiguous rows.
        cos: [num_positions, head_dim / 2]; sin likewise.
        q_norm: [head_dim], or None; k_norm likewise.
        epsilon: of these norms.
        tokens: the step's flat tokens [from, to); None: all.
    """
    rope = ffi.new("llmos_rope *")
    rope.cos, rope.sin, rope.epsilon = floats(cos), floats(sin), epsilon
    rope.q_norm = ffi.NULL if q_norm is None else floats(q_norm)
    rope.k_norm = ffi.NULL if k_norm is None else floats(k_norm)
    first, last = tokens or (0, len(qkv))
    lib.llmos_rope_write_kv(
        kv, rope, _spans(spans), len(spans), _table(pages), floats(qkv), stride(qkv), first, last
    )


def attend(
    kv: Any, spans: Ints, pages: Ints | None, q: Floats, out: Floats, items: tuple[int, int] | None = None
) -> None:
    """Causal attention of a step's rows.

    Args:
        kv: from `KVLayout.bind`; the step's own keys are written.
        spans: from `make_spans`.
        pages: the page table that the spans point into; None: pages are consecutive.
        q: [num_tokens, at least num_heads * head_dim], rotated.
        out: [num_tokens, num_heads * head_dim], written.
        items: [from, to) of `num_items`; None: all.
    """
    bind_attend(kv, spans, pages, q, out, items)()


def bind_attend(
    kv: Any, spans: Ints, pages: Ints | None, q: Floats, out: Floats, items: tuple[int, int] | None = None
) -> Callable[[], None]:
    """`attend` with its arguments checked once, to be called many times."""
    first, last = items or (0, num_items(kv, spans))
    scratch = np.empty(lib.llmos_attention_scratch_bytes(kv) + 64, dtype=np.uint8)
    scratch = scratch[-scratch.ctypes.data % 64 :]
    arguments = (
        kv, _spans(spans), len(spans), _table(pages), floats(q), stride(q), floats(out), stride(out),
        first, last, ffi.cast("void *", scratch.ctypes.data),
    )  # fmt: skip
    alive = (spans, pages, q, out, scratch)  # the arguments are bare addresses

    def run() -> None:
        assert alive
        lib.llmos_attention(*arguments)

    return run


def _spans(spans: Ints) -> Any:
    if spans.dtype != np.int32 or spans.ndim != 2 or spans.shape[1] != 4 or not spans.flags.c_contiguous:
        raise ValueError(f"spans are contiguous int32 [n, 4], not {spans.dtype} {spans.shape}")
    return ffi.cast("llmos_span *", spans.ctypes.data)


def _table(pages: Ints | None) -> Any:
    if pages is None:
        return ffi.NULL
    if pages.dtype != np.int32 or not pages.flags.c_contiguous:
        raise ValueError(f"a page table is contiguous int32, not {pages.dtype}")
    return ffi.cast("int32_t *", pages.ctypes.data)
