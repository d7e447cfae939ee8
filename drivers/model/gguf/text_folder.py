"""The text side of a GGUF file as a folder, in the form that user space reads.

Folders are named by the hash of what is in them, so one is never stale, and two files with the same
vocabulary share one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from drivers.cache import cache_folder
from drivers.model.errors import ModelError
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.tokenizer import hugging_face_tokenizer, hugging_face_tokenizer_config
from drivers.model.gguf.vocabulary import Vocabulary

__all__ = ["write_text_folder"]

SAMPLING_KEYS = {  # newer files carry what their makers recommend
    "temperature": ("general.sampling.temp", 0.0),
    "top_k": ("general.sampling.top_k", 0),
    "top_p": ("general.sampling.top_p", 0.0),
    "min_p": ("general.sampling.min_p", 0.0),
    "repetition_penalty": ("general.sampling.penalty_repeat", 0.0),
}


def write_text_folder(file: GgufFile) -> Path:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json, unless they are there.

    Returns:
        The folder, in the cache.

    Raises:
        ModelError: the vocabulary is missing, malformed or of an unsupported kind, or the folder cannot be
            written.
    """
    vocabulary = Vocabulary.read(file)
    contents = {
        "generation_config.json": _encode(_generation_config(file, vocabulary)),
        "tokenizer.json": _encode(hugging_face_tokenizer(file, vocabulary)),
        "tokenizer_config.json": _encode(hugging_face_tokenizer_config(file, vocabulary)),
    }
    digest = hashlib.blake2b(b"\0".join(contents.values()), digest_size=16).hexdigest()
    folder = cache_folder("text") / digest
    if not _holds(folder, contents):
        _check(file, contents["tokenizer.json"])
        try:
            _write(folder, contents)
        except OSError as error:
            raise ModelError(
                f"{file.path}: its tokenizer cannot be written to {folder}: {error.strerror}; "
                "LLMOS_CACHE_DIR may name another place"
            ) from None
    return folder


def _encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _generation_config(file: GgufFile, vocabulary: Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {"eos_token_id": list(vocabulary.end_tokens)}
    if "bos_token" in vocabulary.special:
        config["bos_token_id"] = vocabulary.special["bos_token"]
    for name, (key, default) in SAMPLING_KEYS.items():
        if key in file.metadata:
            config[name] = file.get(key, default)
    return config


def _check(file: GgufFile, tokenizer: bytes) -> None:
    """Find out here, not in user space, whether the library takes what was put together."""
    try:
        Tokenizer.from_buffer(tokenizer)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise ModelError(f"{file.path}: its vocabulary makes no tokenizer: {error}") from None


def _holds(folder: Path, contents: dict[str, bytes]) -> bool:
    try:
        return all((folder / name).read_bytes() == data for name, data in contents.items())
    except OSError:
        return False


def _write(folder: Path, contents: dict[str, bytes]) -> None:
    """Make the folder, whole or not at all. Drivers that start together may race: one of them wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        made = Path(name) / "made"
        made.mkdir()
        for file_name, data in contents.items():
            (made / file_name).write_bytes(data)
        try:
            os.rename(made, folder)
        except OSError:
            if _holds(folder, contents):
                return
            os.rename(folder, Path(name) / "damaged")
            os.rename(made, folder)
