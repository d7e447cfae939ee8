"""Packed weights on disk: made once, mapped from then on, made anew when damaged, done without if need be."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from drivers.model import pack_cache
from drivers.model.array_file import open_arrays
from drivers.model.loader import open_model
from drivers.model.native_loader import load_native
from drivers.model.pack_cache import load_packed, pack_path
from drivers.model.packed import WEIGHT_FORMATS, PackedWeights
from llmos.device import Row
from tests.drivers.model_zoo import Memory, load_request

BUILTIN = Path(__file__).parents[2] / "drivers" / "builtin" / "draft"
HASH = "5" * 64


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache that does not exist yet."""
    return tmp_path / "cache" / "packed"


def load(folder: Path, weights: str = "w8a8", num_threads: int = 1) -> PackedWeights:
    """The built-in draft model, packed."""
    return load_packed(open_model(BUILTIN), HASH, weights, folder, num_threads)


def arrays(packed: PackedWeights) -> dict[str, bytes]:
    """What a model consists of."""
    found = {"embedding": packed.embedding, "final_norm": packed.final_norm, "head": packed.head.data}
    for index, layer in enumerate(packed.layers):
        found[f"{index}.qkv"], found[f"{index}.down"] = layer.qkv.data, layer.down.data
        found[f"{index}.norm"] = layer.input_norm
    return {name: array.tobytes() for name, array in found.items()}


@pytest.mark.parametrize("weights", list(WEIGHT_FORMATS))
def test_the_second_load_maps_what_the_first_made(folder, weights, monkeypatch):
    """The same bits, from a file that nobody wrote again."""
    first = arrays(load(folder, weights))
    path = pack_path(folder, HASH, weights)
    before = path.stat()
    monkeypatch.setattr(pack_cache, "pack_arrays", lambda *given, **more: pytest.fail("packed again"))
    second = load(folder, weights, num_threads=2)
    assert arrays(second) == first
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not second.head.data.flags.writeable


def test_a_damaged_file_is_made_anew(folder, capfd):
    """One flipped bit, a lost tail, and a file of another kind: said on stderr, and nobody else notices."""
    good = arrays(load(folder))
    path = pack_path(folder, HASH, "w8a8")
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (bytes(flipped), whole[:-100], b"GGUF" * 2000, b""):
        path.write_bytes(damaged)
        assert arrays(load(folder)) == good
        assert "packed weights are made anew" in capfd.readouterr().err
        assert path.read_bytes() == whole


def test_a_file_about_another_model_is_not_believed(folder, capfd):
    """It has the right name and a checksum that fits, but says that it is something else."""
    good = arrays(load(folder))
    other = load_packed(open_model(BUILTIN), "6" * 64, "w8a8", folder)
    assert arrays(other) == good
    shutil.copy(pack_path(folder, "6" * 64, "w8a8"), pack_path(folder, HASH, "w8a8"))
    assert arrays(load(folder)) == good
    assert "made from another model, or in another format" in capfd.readouterr().err
    assert open_arrays(pack_path(folder, HASH, "w8a8")).about["model"] == HASH


@pytest.mark.parametrize("obstacle", ["file in the way", "disk full"])
def test_without_a_disk_weights_stay_in_memory(folder, obstacle, monkeypatch, capfd):
    """The model serves, and standard error says why its weights are not kept."""
    if obstacle == "disk full":

        def full(path, about, made):
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(pack_cache, "write_arrays", full)
    else:
        folder.parent.mkdir(parents=True)
        folder.write_text("not a folder")
    unkept = arrays(load(folder))
    assert "packed weights are not kept" in capfd.readouterr().err
    monkeypatch.undo()
    if folder.is_file():
        folder.unlink()
    assert arrays(load(folder)) == unkept


def pack_in_a_process(folder: Path) -> int:
    """Load, and tell which file it was."""
    load(folder)
    return pack_path(folder, HASH, "w8a8").stat().st_ino


def test_devices_that_start_together_pack_once(folder):
    """Four processes at once: the file that the first one made is the one that all of them map."""
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        inodes = pool.map(pack_in_a_process, [folder] * 4, chunksize=1)
    assert len(set(inodes)) == 1
    names = {file.name for file in folder.iterdir()}
    path = pack_path(folder, HASH, "w8a8")
    assert names == {path.name, path.with_suffix(".lock").name}


def test_what_a_killed_packer_left_is_cleared_away(folder):
    """A temporary file of this model goes; another model's stays, its packer may be at work."""
    path = pack_path(folder, HASH, "w8a8")
    folder.mkdir(parents=True)
    (folder / f".{path.name}.x1y2").write_bytes(b"half")
    (folder / ".other.pack.x1y2").write_bytes(b"half")
    load(folder)
    assert not (folder / f".{path.name}.x1y2").exists()
    assert (folder / ".other.pack.x1y2").exists()


def test_a_shape_that_does_not_fit_is_made_anew(folder, capfd):
    """An index that fits its checksum, but lacks an array."""
    good = arrays(load(folder))
    path = pack_path(folder, HASH, "w8a8")
    file = open_arrays(path)
    kept = [(name, array) for name, array in file.arrays.items() if name != "final_norm"]
    pack_cache.write_arrays(path, file.about, kept)
    assert arrays(load(folder)) == good
    assert "final_norm is missing" in capfd.readouterr().err


def test_mapped_weights_give_the_tokens_of_packed_ones():
    """The logits of a model whose weights lie in a file are those of the same weights in memory."""
    opened = open_model(BUILTIN)
    request = load_request(BUILTIN, "w8a8")
    tokens = tuple(np.random.default_rng(3).integers(0, opened.config.vocab_size, 20).tolist())
    results = []
    for _ in range(2):
        model, _quality = load_native(opened, request, 1, lambda *report: None)
        results.append(Memory(model).run(Row(0, 0, tokens, True)).numpy().tobytes())
    assert results[0] == results[1]


def test_an_edited_model_is_packed_anew(folder, tmp_path, capfd):
    """Even where its hash is the same, as that of a large file's samples may be: its time is not."""
    model = tmp_path / "model"
    shutil.copytree(BUILTIN, model)
    before = arrays(load_packed(open_model(model), HASH, "fp32", folder))
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(1, 1))
    after = arrays(load_packed(open_model(model), HASH, "fp32", folder))
    assert after["final_norm"] != before["final_norm"]
    assert after["head"] == before["head"]
    assert "made from files of another size or time" in capfd.readouterr().err
