"""Where a model's tensors come from, whatever the files are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from drivers.model.checkpoint import Checkpoint, TensorEntry
from drivers.model.config import ModelConfig, read_config
from drivers.model.errors import ModelError

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
        path: a Hugging Face folder.

    Raises:
        ModelError: naming the file and what is wrong with it.
    """
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder")
    return read_config(path), Checkpoint.open(path)
