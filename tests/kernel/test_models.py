"""What an operator may call a model, and what it is then called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmos.models import NoSuchModel, resolve_model, served_name

RESOLVE = """
import sys
from llmos.models import NoSuchModel, resolve_model
try:
    print(resolve_model(sys.argv[1], ""))
except NoSuchModel as error:
    print(error)
"""


def test_a_folder_and_a_file_are_models(tmp_path: Path) -> None:
    """A folder with a config.json and a file with GGUF's magic number are taken, however they are reached."""
    assert resolve_model("builtin", "/there") == "/there"
    (tmp_path / "config.json").write_text("{}")
    assert resolve_model(str(tmp_path), "") == str(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF and more")
    (tmp_path / "link.bin").symlink_to(tmp_path / "m.gguf")
    assert resolve_model(str(tmp_path / "m.gguf"), "") == str(tmp_path / "m.gguf")
    assert resolve_model(str(tmp_path / "link.bin"), "") == str(tmp_path / "link.bin")


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    """A folder without config.json, another kind of file and nonsense are refused with what was expected."""
    with pytest.raises(NoSuchModel, match=r"has no config\.json; a Hugging Face folder is needed"):
        resolve_model(str(tmp_path), "")
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(NoSuchModel, match=r"has no config\.json; name one of its files: a\.gguf, b\.gguf"):
        resolve_model(str(tmp_path), "")
    for data in (b"", b"GG", b"PK\3\4"):
        (tmp_path / "model.bin").write_bytes(data)
        with pytest.raises(NoSuchModel, match=r"model\.bin is a file, but no GGUF"):
            resolve_model(str(tmp_path / "model.bin"), "")
    for name in ("nonsense", "/a/b", "./a/b", "a//b.gguf", "/x.gguf", "a/b/c", "a/b/c.bin", "a/"):
        with pytest.raises(NoSuchModel, match="is not a hub id"):
            resolve_model(name, "")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/qwen3-0.6b", "qwen3-0.6b"),
        ("/models/qwen3-0.6b/", "qwen3-0.6b"),
        ("/models/Qwen3-0.6B-Q4_K_M.gguf", "Qwen3-0.6B-Q4_K_M"),
        ("/models/Big-00001-of-00003.GGUF", "Big"),
        ("/models/.gguf", ".gguf"),
        ("/models/a.gguf.d", "a.gguf.d"),
    ],
)
def test_names_leave_out_the_ending(path: str, name: str) -> None:
    """A model is called like its folder, or like its file without ending and part number."""
    assert served_name(path) == name


def test_files_of_the_hub(tmp_path: Path) -> None:
    """An id with a file names that file of the hub's snapshot, here of one that was downloaded before."""
    snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "0123456789" / "sub"
    snapshot.mkdir(parents=True)
    (snapshot.parents[2] / "refs").mkdir()
    (snapshot.parents[2] / "refs" / "main").write_text("0123456789")
    (snapshot / "m.gguf").write_bytes(b"GGUF")

    def resolve(model: str) -> str:
        environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, "-c", RESOLVE, model],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.strip()

    assert resolve("owner/name/sub/m.gguf") == str(snapshot / "m.gguf")
    assert resolve("owner/name/other.gguf") == "hub id owner/name has no file other.gguf"
    assert resolve("owner/another/m.gguf").startswith("hub id owner/another: ")
