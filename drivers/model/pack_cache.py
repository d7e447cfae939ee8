"""Packed weights on disk: made once for a model and a format, mapped from then on.

A file is named by the hash of what it was made from, and says how large and how old that was: other weights
have another name, edited ones another time, and another order of the packed numbers another layout. Whoever
packs holds a lock, so that devices which start together pack once. A file that is damaged is made anew;
without a disk, weights stay in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from drivers.model.array_file import ArrayFileError, open_arrays, write_arrays
from drivers.model.loader import OpenModel, ProgressCallback
from drivers.model.packed import PackedWeights, pack_arrays
from drivers.note import note
from native.pack import PACKED_LAYOUT

__all__ = ["load_packed", "pack_path"]


def pack_path(folder: Path, model_hash: str, weights: str) -> Path:
    """The file of a model's weights in one format."""
    return folder / f"{model_hash[:32]}-{weights}-{PACKED_LAYOUT}.pack"


def load_packed(
    opened: OpenModel,
    model_hash: str,
    weights: str,
    folder: Path,
    num_threads: int = 1,
    progress: ProgressCallback | None = None,
) -> PackedWeights:
    """Map a model's packed weights, and pack them first where that was never done.

    Args:
        opened: the model.
        model_hash: of its files.
        weights: one of WEIGHT_FORMATS.
        folder: where packed files lie; made if need be.
        num_threads: that pack, or check.
        progress: told of reading, as by a WeightReader.

    Raises:
        ModelError: the model cannot be read, or not be represented in this format.
    """
    is_float = weights in ("fp32", "fp16", "bf16")
    embedding = weights if is_float else opened.config.dtype
    path = pack_path(folder, model_hash, weights)
    about = {"model": model_hash, "files": _stamp(opened), "weights": weights, "embedding": embedding}

    def report(done_bytes: int, total_bytes: int, name: str) -> None:
        if progress is not None:
            progress(done_bytes, total_bytes, f"packing {weights}: {name}")

    def pack() -> Iterator[tuple[str, np.ndarray]]:
        reader = opened.reader(embedding, progress=report)
        return pack_arrays(weights, *reader.ends(), reader.layers(), num_threads=num_threads)

    def mapped(*, explain: bool) -> PackedWeights | None:
        try:
            file = open_arrays(path, num_threads)
            if file.about != about:
                raise ArrayFileError(f"{path} was made {_explain_other(file.about, about)}")
            found = PackedWeights.from_arrays(opened.config, weights, embedding, file.arrays)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if explain:
                note(f"packed weights are made anew: {error}")
            return None
        if progress is not None:
            progress(path.stat().st_size, path.stat().st_size, path.name)
        return found

    if (found := mapped(explain=False)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if (found := mapped(explain=True)) is not None:
                return found
            for leftover in folder.glob(f".{path.name}.*"):  # of one that was killed while it wrote
                leftover.unlink(missing_ok=True)
            write_arrays(path, about, pack())
            if (found := mapped(explain=True)) is not None:
                return found
    except OSError as error:
        note(f"packed weights are not kept: {error}")
    return PackedWeights.from_arrays(opened.config, weights, embedding, dict(pack()))


def _explain_other(found: object, wanted: dict[str, str]) -> str:
    """Say in what a packed file differs from the one that is wanted."""
    same_but_time = isinstance(found, dict) and {**found, "files": ""} == {**wanted, "files": ""}
    return (
        "from files of another size or time" if same_but_time else "from another model, or in another format"
    )


def _stamp(opened: OpenModel) -> str:
    """Sizes and times of a model's files: they tell of an edit that a hash of samples may miss."""
    files = sorted({entry.file for entry in opened.entries})
    return " ".join(f"{state.st_size}:{state.st_mtime_ns}" for state in (file.stat() for file in files))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is to be made. It goes with the process, however that ends."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
