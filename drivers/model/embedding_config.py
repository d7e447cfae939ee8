"""What a model's folder says of its vectors: how they are pooled, and the sizes that they may be cut to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from drivers.model.errors import ModelError
from llmos.device import EmbeddingInfo

__all__ = ["describe_embedding", "read_json"]

MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers
MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


def describe_embedding(folder: Path, size: int, poolings: tuple[str, ...]) -> EmbeddingInfo:
    """What vectors a model makes.

    Args:
        folder: of the checkpoint.
        size: numbers in a vector.
        poolings: what the implementation can do; the first is the default, unless the folder has another.

    Raises:
        ModelError: the folder wants a pooling that is not among them, or says something that cannot be.
    """
    if (wanted := _read_pooling(folder)) is not None:
        if wanted not in poolings:
            raise ModelError(
                f"{folder}: pooling {wanted!r} is not supported; supported: {', '.join(poolings)}"
            )
        poolings = (wanted, *(kind for kind in poolings if kind != wanted))
    config = read_json(folder / "config.json")
    listed = config.get("matryoshka_dimensions") or []
    if not isinstance(listed, list) or not all(isinstance(n, int) and 1 <= n <= size for n in listed):
        raise ModelError(
            f"{folder / 'config.json'}: matryoshka_dimensions is {listed!r}; sizes of 1 to {size}"
        )
    takes_any = config.get("is_matryoshka") is True and not listed
    return EmbeddingInfo(size, poolings, tuple(sorted(listed)), takes_any)


def _read_pooling(folder: Path) -> str | None:
    """The pooling that sentence-transformers would use; None: the folder does not say."""
    path: Path | None = None
    for module in read_json(folder / "modules.json", kind=list):
        kind = str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else "none"
        if kind not in MODULES:
            raise ModelError(
                f"{folder / 'modules.json'}: {kind} is not supported; supported: {', '.join(MODULES)}"
            )
        if kind == "Pooling":
            path = folder / str(module.get("path", "")) / "config.json"
    if path is None:
        return None
    found = [
        name for name, value in read_json(path).items() if name.startswith("pooling_mode_") and value is True
    ]
    unknown = [name for name in found if name not in MODES]
    if len(found) != 1 or unknown:
        raise ModelError(
            f"{path}: {', '.join(found) or 'nothing'} is switched on; one of {', '.join(MODES)} can be"
        )
    return MODES[found[0]]


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON file's content, empty where there is no such file. Raises ModelError: it is not of this kind."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return kind()
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{path}: {error}") from None
