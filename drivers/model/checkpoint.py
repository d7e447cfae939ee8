"""A folder of safetensors files, opened for reading and checked before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from attrs import define, frozen
from safetensors import SafetensorError, safe_open

from drivers.model.content_hash import HashedFile, hash_files
from drivers.model.errors import ModelError

__all__ = ["Checkpoint", "TensorEntry"]

MAX_HEADER_BYTES = 100 << 20  # the format's own limit
FLOAT_DTYPES = ("F32", "F16", "BF16", "F64")


@frozen
class TensorEntry:
    """Where one tensor is."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "F32", "BF16"
    num_bytes: int


@define(eq=False)
class Checkpoint:
    """The tensors of model.safetensors, or of the shards that model.safetensors.index.json lists."""

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read every header. Pickled weights are never opened.

        Raises:
            ModelError: there are no safetensors, a shard is missing, or a file is truncated or malformed.
        """
        index = folder / "model.safetensors.index.json"
        single = folder / "model.safetensors"
        weight_map: dict[str, str] = {}
        if single.exists():
            files = [single]
        elif index.exists():
            try:
                weight_map = dict(json.loads(index.read_bytes())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise ModelError(f"{index} has no usable weight_map: {error}") from None
            for name in weight_map.values():
                if not isinstance(name, str) or Path(name).name != name:
                    raise ModelError(f"{index} names a file outside the folder: {name!r}")
            files = [folder / name for name in sorted(set(weight_map.values()))]
        else:
            raise ModelError(f"{folder} holds neither model.safetensors nor model.safetensors.index.json")
        tensors: dict[str, TensorEntry] = {}
        for file in files:
            for entry in _read_header(file):
                tensors[entry.name] = entry
        for name, file_name in weight_map.items():
            if name not in tensors or tensors[name].file.name != file_name:
                raise ModelError(f"{folder / file_name}: tensor {name} is missing, though the index lists it")
        return cls(folder, tuple(files), tensors)

    @property
    def text_folder(self) -> Path:
        """Where tokenizer.json and its like are."""
        return self.folder

    def entry(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """The entry of a tensor that must have this shape.

        Raises:
            ModelError: it is missing, has another shape, or is not stored as floating point.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise ModelError(f"{self.folder}: tensor {name} is missing")
        if entry.shape != shape:
            raise ModelError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, the config says {list(shape)}"
            )
        if entry.dtype not in FLOAT_DTYPES:
            raise ModelError(
                f"{entry.file}: tensor {name} is stored as {entry.dtype}, which is not supported"
            )
        return entry

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into memory, as stored.

        Raises:
            ModelError: the file changed or cannot be read.
        """
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt") as reader:
                tensor: torch.Tensor = reader.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: tensor {name} cannot be read: {error}") from None

    def content_hash(self) -> str:
        """Hex digest over config.json and the weight files; see hash_files."""
        files = [HashedFile(file, file.name, _header_end(file)) for file in self.files]
        return hash_files((self.folder / "config.json").read_bytes(), files)


def _header_end(file: Path) -> int:
    with file.open("rb") as reader:
        return 8 + int.from_bytes(reader.read(8), "little")


def _read_header(file: Path) -> list[TensorEntry]:
    # safetensors checks that offsets are dense and that the file is exactly as long as they say; opening it
    # once here therefore finds truncation before a single weight is read
    try:
        size = file.stat().st_size
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as reader:
            header_bytes = int.from_bytes(reader.read(8), "little")
            if header_bytes > min(size, MAX_HEADER_BYTES):
                raise ModelError(f"{file}: header of {header_bytes} bytes in a file of {size}")
            header = json.loads(reader.read(header_bytes))
    except FileNotFoundError:
        raise ModelError(f"{file} does not exist, though the checkpoint lists it") from None
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} is not a whole safetensors file: {error}") from None
    return [
        TensorEntry(
            name,
            file,
            tuple(value["shape"]),
            value["dtype"],
            value["data_offsets"][1] - value["data_offsets"][0],
        )
        for name, value in header.items()
        if name != "__metadata__"
    ]
