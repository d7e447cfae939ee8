"""Where a model's tensors come from, whatever the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from drivers.model.checkpoint import Checkpoint, TensorEntry
from drivers.model.config import ModelConfig, read_config
from drivers.model.errors import ModelError
from drivers.model.gguf.checkpoint import GgufCheckpoint
from drivers.model.gguf.config import read_gguf_config
from drivers.model.gguf.file import GgufFile

__all__ = ["Source", "open_source"]


class Source(Protocol):
    """An opened checkpoint, under the tensor names of Hugging Face."""

    @property
    def tensors(self) -> Mapping[str, TensorEntry]:
        """What there is, by name."""

    @property
    def text_folder(self) -> Path:
        """Where tokenizer.json and its like are."""

    def entry(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """The entry of a tensor that must have this shape. Raises ModelError."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as stored. Raises ModelError."""

    def content_hash(self) -> str:
        """Hex digest: equal for equal configuration and weights."""


def open_source(path: Path) -> tuple[ModelConfig, Source]:
    """Open a model's files and check them, before a weight is read.

    Args:
        path: a Hugging Face folder, or a GGUF file, the first one when there are several.

    Raises:
        ModelError: naming the file and what is wrong with it.
    """
    if path.is_file():
        file = GgufFile.open(path)
        config = read_gguf_config(file)
        return config, GgufCheckpoint.open(file, config.num_heads, config.num_kv_heads)
    if not path.is_dir():
        raise ModelError(f"{path} is neither a folder nor a GGUF file")
    return read_config(path), Checkpoint.open(path)
