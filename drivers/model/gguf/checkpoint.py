"""The weights of a GGUF model, under the names and in the order of Hugging Face."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import torch
from attrs import define

from drivers.model.checkpoint import TensorEntry
from drivers.model.content_hash import HashedFile, hash_files
from drivers.model.errors import ModelError
from drivers.model.gguf.dequantise import dequantise
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.header import GgufTensor, read_bytes
from drivers.model.gguf.names import hugging_face_name
from drivers.model.gguf.text_folder import write_text_folder

__all__ = ["GgufCheckpoint"]

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_VALUES = 1 << 20  # decoded at a time: what lies between stays in the caches


@define(eq=False)
class GgufCheckpoint:
    """The same methods as Checkpoint.

    Attributes:
        file: the model.
        tensors: what there is, by Hugging Face's name; the factors of rope are the config's, and not here.
        rotated_heads: number of heads of the tensors whose rows the converter has put into the order of
            interleaved rotary embedding, by name; llmos rotates halves.
    """

    file: GgufFile
    tensors: dict[str, TensorEntry]
    rotated_heads: dict[str, int]
    _stored: dict[str, GgufTensor]

    @classmethod
    def open(cls, file: GgufFile, num_heads: int, num_kv_heads: int) -> GgufCheckpoint:
        """Name the tensors of a file.

        Args:
            file: the model.
            num_heads: query heads.
            num_kv_heads: key and value heads.
        """
        stored = {
            hugging_face_name(name): tensor
            for name, tensor in file.tensors.items()
            if name != "rope_freqs.weight"
        }
        tensors = {
            name: TensorEntry(name, tensor.file, tensor.shape, tensor.storage.name, tensor.num_bytes)
            for name, tensor in stored.items()
        }
        rotated: dict[str, int] = {}
        if file.metadata.get("general.architecture") == "llama":
            for part, heads in (("q_proj", num_heads), ("k_proj", num_kv_heads)):
                rotated |= {name: heads for name in stored if f".self_attn.{part}." in name}
        return cls(file, tensors, rotated, stored)

    @cached_property
    def text_folder(self) -> Path:
        """Where tokenizer.json and its like are: in the cache, written when first asked for.

        Raises:
            ModelError: see write_text_folder.
        """
        return write_text_folder(self.file)

    def entry(self, name: str, shape: tuple[int, ...]) -> TensorEntry:
        """See Checkpoint.

        Raises:
            ModelError: it is missing or has another shape.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise ModelError(f"{self.file.path}: there is no tensor for {name}")
        if entry.shape != shape:
            raise ModelError(
                f"{entry.file}: tensor {self._stored[name].name} has shape {list(entry.shape)}, "
                f"the metadata says {list(shape)}"
            )
        return entry

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor: floating point as stored, other formats as fp32.

        Raises:
            ModelError: the file changed, cannot be read, or has queries or keys that are not of whole heads.
        """
        tensor = self._stored[name]
        storage = tensor.storage
        if storage.name in FLOATS:
            values = torch.frombuffer(read_bytes(tensor, 0, tensor.num_bytes), dtype=FLOATS[storage.name])
        else:
            values = torch.empty(math.prod(tensor.shape), dtype=torch.float32)
            step = CHUNK_VALUES // storage.block_values * storage.block_bytes
            for start in range(0, tensor.num_bytes, step):
                blocks = read_bytes(tensor, start, min(step, tensor.num_bytes - start))
                first = start // storage.block_bytes * storage.block_values
                decoded = dequantise(blocks, storage)
                values[first : first + len(decoded)] = decoded
        values = values.view(tensor.shape)
        if (num_heads := self.rotated_heads.get(name)) is not None:
            if tensor.shape[0] % (2 * num_heads):
                raise ModelError(
                    f"{tensor.file}: tensor {tensor.name} {list(tensor.shape)} is not {num_heads} heads"
                )
            # dimension i of a head's first half and of its second were rows 2 i and 2 i + 1
            pairs = values.reshape(num_heads, -1, 2, *tensor.shape[1:])
            values = pairs.transpose(1, 2).reshape(tensor.shape)
        return values

    def content_hash(self) -> str:
        """Hex digest over all files, whatever they are called; see hash_files."""
        parts = enumerate(self.file.parts)
        return hash_files(b"GGUF", [HashedFile(part.path, str(at), part.num_bytes) for at, part in parts])
