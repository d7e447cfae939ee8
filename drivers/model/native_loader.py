"""From a checkpoint to a model on native/cpu, in the format asked for or the fastest that is good enough."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
from attrs import evolve, frozen

from drivers.cache import cache_folder
from drivers.model.errors import ModelError
from drivers.model.loader import OpenModel, ProgressCallback
from drivers.model.native_transformer import KV_FORMATS, NativeTransformer
from drivers.model.pack_cache import load_packed
from drivers.model.packed import WEIGHT_FORMATS
from drivers.model.quality import SAMPLE_TEXT, measure_quality, read_tokens
from llmos.device import Load, Quality
from native.checksum import crc32c
from native.pack import PACKED_LAYOUT
from native.variant import best_variant

__all__ = ["load_native"]

QUANTISED = ("w4a8", "w8a8")  # fastest first
MEASUREMENT = 2  # of quality: another number when it is measured in another way


def load_native(
    opened: OpenModel,
    load: Load,
    num_threads: int,
    progress: ProgressCallback,
    processors: Sequence[int] = (),
) -> tuple[NativeTransformer, Quality | None]:
    """Load a model that `explain_unfit` has nothing against.

    Args:
        opened: the checkpoint.
        load: says in which formats.
        num_threads: that pack, and share a step.
        progress: told how far reading is.
        processors: see NativeTransformer.

    Returns:
        The model, and what its format costs, if it is a quantised one.

    Raises:
        ModelError: a format is not known or cannot hold the model, or the text cannot be read.
    """
    if load.weights not in ("auto", *WEIGHT_FORMATS):
        raise ModelError(
            f"weights {load.weights!r} are not supported; supported: auto, {', '.join(WEIGHT_FORMATS)}"
        )
    if load.kv not in ("auto", *KV_FORMATS):
        raise ModelError(f"kv {load.kv!r} is not supported; supported: auto, {', '.join(KV_FORMATS)}")
    loader = _Loader(opened, load, num_threads, progress, opened.source.content_hash(), processors)
    published = opened.config.dtype
    if load.weights == "auto":
        for weights in QUANTISED:
            measured = loader.quality(weights)
            if measured.kl_divergence <= load.max_divergence:
                return loader.model(weights), measured
        return loader.model(published), None
    quality = loader.quality(load.weights) if load.weights in QUANTISED else None
    return loader.model(load.weights), quality


@frozen(eq=False)
class _Loader:
    opened: OpenModel
    load: Load
    num_threads: int
    progress: ProgressCallback
    model_hash: str
    processors: Sequence[int] = ()

    def model(self, weights: str, kv: str | None = None) -> NativeTransformer:
        """The model in one format."""
        kv = kv or self._kv_beside(weights)
        packed = load_packed(
            self.opened, self.model_hash, weights, cache_folder("packed"), self.num_threads, self.progress
        )
        info = evolve(
            self.opened.describe(weights, kv), hash=self.model_hash, kernels=f"native-{best_variant()}"
        )
        return NativeTransformer(self.opened.config, packed, info, self.num_threads, self.processors)

    def _kv_beside(self, weights: str) -> str:
        if self.load.kv != "auto":
            return self.load.kv
        return "fp16" if weights in QUANTISED else weights

    def quality(self, weights: str) -> Quality:
        """What a format costs, measured once for a model and a text, and remembered."""
        text = Path(self.load.quality_text).expanduser() if self.load.quality_text else SAMPLE_TEXT
        try:
            text_hash = crc32c(text.read_bytes())
        except OSError as error:
            raise ModelError(f"quality text {text}: {error.strerror}") from None
        kv = self._kv_beside(weights)
        name = f"{self.model_hash[:32]}-{weights}-{kv}-{text_hash:08x}-{PACKED_LAYOUT}-{MEASUREMENT}.json"
        path = cache_folder("quality") / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=Quality)
        except (OSError, msgspec.DecodeError):
            pass  # never measured, or not legible: measure
        tokens, what = read_tokens(
            text, self.opened.source.text_folder, self.opened.config.vocab_size, self.opened.max_model_len
        )
        published = self.opened.config.dtype
        reference, candidate = self.model(published, published), self.model(weights)
        self.progress(1, 1, f"measuring {weights} on {what}")
        quality = measure_quality(reference, candidate, tokens, what)
        _keep(path, msgspec.json.encode(quality))
        return quality


def _keep(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all; where that is not possible it is measured again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(data)
        os.replace(file.name, path)
    except OSError:
        return
