"""Small models for tests, and pages to run them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from drivers.model.config import ModelConfig, RopeConfig
from drivers.model.int8_loader import unpack_weights
from drivers.model.kv_layout import KV_DTYPES, kv_segments
from drivers.model.loader import ProgressCallback, load_reference, open_model
from drivers.model.native_loader import load_native as load_packed_model
from drivers.model.native_transformer import NativeTransformer
from drivers.model.packed import PackedWeights, pack_arrays
from drivers.model.transformer import Model, ModelDescription, Transformer
from drivers.model.weights import LayerWeights, Weights
from drivers.ops.batch import ContiguousPages, PageIndex
from drivers.ops.int8 import scales_of
from drivers.ops.interface import Ops
from drivers.ops.reference import ReferenceOps
from llmos.device import Load, Row, choose_kv_format

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
JUNK = 0xFF  # bytes of all ones are NaN in every number format


def random_model(
    dtype: str = "fp32",
    seed: int = 0,
    *,
    vocab_size: int = 101,
    hidden_size: int = 72,
    intermediate_size: int = 172,
    num_layers: int = 2,
    num_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    window: int | None = None,
    native_threads: int = 0,
    kv: str | None = None,
    ops: Ops | None = None,
    device: torch.device | str = "cpu",
) -> Model:
    """A model with every optional part switched on and sizes that no vector width divides.

    With native_threads, on native/cpu; else on `ops`, or the torch reference. Quantised weights come from
    the numbers of the fp32 model; kv, unless given, has the weights' format; beside integers fp16, and on
    `ops` fp32.
    """
    published = dtype if dtype in KV_DTYPES else "fp32"
    kv = kv or (dtype if dtype in KV_DTYPES else "fp16" if native_threads else published)
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int, scale: float = 0.15, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(size, generator=generator) * scale + mean).to(KV_DTYPES[published]).to(device)

    qkv_rows = (num_heads + 2 * num_kv_heads) * head_dim
    config = ModelConfig(
        "Qwen3ForCausalLM", vocab_size, hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads,
        head_dim, 1e-5, 512, RopeConfig(10000.0), True, True, True, True, True, window, published, (0,),
    )  # fmt: skip
    layers = tuple(
        LayerWeights(
            normal(hidden_size, mean=1.0), normal(qkv_rows, hidden_size), normal(qkv_rows),
            normal(head_dim, mean=1.0), normal(head_dim, mean=1.0),
            normal(hidden_size, num_heads * head_dim), normal(hidden_size), normal(hidden_size, mean=1.0),
            normal(2 * intermediate_size, hidden_size), normal(2 * intermediate_size),
            normal(hidden_size, intermediate_size), normal(hidden_size),
        )
        for _ in range(num_layers)
    )  # fmt: skip
    embedding = normal(vocab_size, hidden_size, scale=1.0)
    weights = Weights(embedding, layers, normal(hidden_size, mean=1.0), embedding)
    info = ModelDescription(config.architecture, "", vocab_size, 512, (0,), dtype, kv, embedding.numel())
    if native_threads:
        return make_native(config, weights, info, native_threads)
    if dtype in ("w8a8", "w4a8"):
        arrays = pack_arrays(dtype, embedding, weights.final_norm, weights.head, weights.layers)
        packed = PackedWeights.from_arrays(config, dtype, published, dict(arrays))
        weights = unpack_weights(packed, KV_DTYPES[published], torch.device(device))
    return Transformer(config, weights, ops or ReferenceOps(), info, kv_segments(config, kv))


def make_native(
    config: ModelConfig, weights: Weights, info: ModelDescription, num_threads: int
) -> NativeTransformer:
    """A model on native/cpu from weights in memory, packed in the format that `info` names."""
    arrays = pack_arrays(info.dtype, weights.embedding, weights.final_norm, weights.head, weights.layers)
    packed = PackedWeights.from_arrays(config, info.dtype, config.dtype, dict(arrays))
    return NativeTransformer(config, packed, info, num_threads)


def load_request(
    path: Path, weights: str = "auto", kv: str = "auto", max_model_len: int | None = None
) -> Load:
    """What a driver is told to load."""
    return Load(
        path=str(path), name="test", weights=weights, kv=kv, pool_bytes=None, frame_bytes=None, max_spaces=4,
        max_model_len=max_model_len, max_step_tokens=64,
    )  # fmt: skip


def load_model(
    path: Path,
    dtype: str = "auto",
    max_model_len: int | None = None,
    progress: ProgressCallback | None = None,
) -> Transformer:
    """A checkpoint on the torch reference."""
    request = load_request(path, dtype, max_model_len=max_model_len)
    return load_reference(open_model(path, max_model_len), request, torch.device("cpu"), progress)


def load_native(path: Path, dtype: str = "auto", max_model_len: int | None = None) -> NativeTransformer:
    """A checkpoint on native/cpu, on two threads, as it was published unless `dtype` says otherwise."""
    opened = open_model(path, max_model_len)
    request = load_request(path, opened.config.dtype if dtype == "auto" else dtype, "auto", max_model_len)
    return load_packed_model(opened, request, 2, lambda *report: None)[0]


def _with_scales(layer: torch.Tensor) -> torch.Tensor:
    """A layer's pages; in int8 on `Ops`, each head's numbers and the bytes of its scale behind them."""
    if layer.dtype != torch.int8:
        return layer
    return torch.cat([layer, scales_of(layer)[..., None].contiguous().view(torch.int8)], dim=-1)


class Memory:
    """Pages for a few spaces, over frames that hold junk until a token is written.

    They are scattered by the seed, or with None one behind the other.
    """

    def __init__(
        self, model: Model, num_spaces: int = 1, tokens_per_page: int = 16, seed: int | None = 0
    ) -> None:
        self.model = model
        bytes_per_token = model.segments[0].bytes_per_token
        self.kv = choose_kv_format(model.info.kv, model.segments, tokens_per_page * bytes_per_token)
        self.pages_per_space = self.kv.num_pages(model.info.max_model_len)
        num_pages = num_spaces * self.pages_per_space
        self.page_index: PageIndex = ContiguousPages(self.pages_per_space)
        if seed is not None:
            frames = torch.randperm(num_pages, generator=torch.Generator().manual_seed(seed)).tolist()
            self.page_index = lambda asid, vpn: frames[asid * self.pages_per_space + vpn]
        device = model.device if isinstance(model, Transformer) else "cpu"
        size = num_pages * self.kv.frame_bytes
        buffers = [torch.full((size,), JUNK, dtype=torch.uint8, device=device) for _ in "KV"]
        self.pages = model.view_pages(buffers, self.kv, self.page_index)

    def run(self, *rows: Row) -> torch.Tensor:
        """Run rows on these pages."""
        return self.model.run(rows, self.pages)

    def contents(self, asid: int, num_tokens: int) -> torch.Tensor:
        """All keys and values of a space: [2, layers, num_tokens, heads, dim]; int8: and its scale."""
        pages = [self.page_index(asid, vpn) for vpn in range(self.kv.num_pages(num_tokens))]
        sides = zip(*((layer.keys, layer.values) for layer in self.pages.layers), strict=True)
        return torch.stack(
            [
                torch.stack(
                    [self._tokens(_with_scales(view)[pages], side == 0)[:num_tokens] for view in views]
                )
                for side, views in enumerate(sides)
            ]
        )

    def _tokens(self, pages: torch.Tensor, is_key: bool) -> torch.Tensor:
        """Some pages of a layer by token: [num_tokens, heads, dim]."""
        if pages.dim() != 3:
            return pages.flatten(0, -3)
        size, (count, heads, head_bytes) = self.kv.tokens_per_page, pages.shape
        width, dim = min(size, 16), head_bytes // size - 4
        numbers, scales = pages.split([size * dim, 4 * size], dim=2)
        if is_key:  # [tile][dim / 4][token][dim % 4]
            numbers = numbers.reshape(count, heads, size // width, dim // 4, width, 4).transpose(3, 4)
        numbers = numbers.reshape(count, heads, size, dim)
        tokens = torch.cat([numbers, scales.reshape(count, heads, size, 4)], dim=3)
        return tokens.transpose(1, 2).flatten(0, 1)

    def generate(
        self, prompt: Sequence[int], num_tokens: int, asid: int = 0
    ) -> tuple[list[int], torch.Tensor]:
        """Greedy tokens, and the logits [num_tokens, vocab_size] that led to them."""
        tokens, logits, fed, start = list(prompt), [], tuple(prompt), 0
        for _ in range(num_tokens):
            logits.append(self.run(Row(asid, start, fed, True))[0])
            start += len(fed)
            fed = (int(logits[-1].argmax()),)
            tokens += fed
        return tokens[len(prompt) :], torch.stack(logits)


def save_checkpoint(
    folder: Path, architecture: str, *, max_shard_size: str = "1GB", **overrides: object
) -> None:
    """Write a tiny random checkpoint with transformers: biases and norms too are random."""
    import transformers

    name = architecture.removesuffix("ForCausalLM")
    settings: dict[str, object] = {
        "vocab_size": 131, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
        "tie_word_embeddings": False,
    }  # fmt: skip
    if name == "Qwen3":
        settings["head_dim"] = 32  # not hidden_size / num_attention_heads
    settings |= overrides
    torch.manual_seed(1)
    model = getattr(transformers, architecture)(getattr(transformers, f"{name}Config")(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
