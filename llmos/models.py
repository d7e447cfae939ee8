"""From what an operator calls a model to a folder or a file on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from llmos.errors import LlmosError

PATTERNS = ["*.json", "*.safetensors", "*.jinja"]  # never pickles
GGUF_MAGIC = b"GGUF"
GGUF_ENDING = re.compile(r"(?:-00001-of-\d{5})?\.gguf\Z", re.IGNORECASE)  # perhaps the first of several parts


class NoSuchModel(LlmosError):
    """No folder, file or hub id that can be had; the message says what was tried."""


def resolve_model(model: str, builtin: str) -> str:
    """Find a model's folder or GGUF file, downloading it when `model` names one on the hub. Blocks.

    Args:
        model: "builtin", a folder, a GGUF file, a hub id like "owner/name", or one with a file, like
            "owner/name/model-q4_k_m.gguf"; of a model in several files the first.
        builtin: the folder of the built-in model.

    Raises:
        NoSuchModel.
    """
    if model == "builtin":
        return builtin
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = ", ".join(sorted(file.name for file in path.glob("*.gguf"))[:8])
            hint = f"name one of its files: {files}" if files else "a Hugging Face folder is needed"
            raise NoSuchModel(f"{path} has no config.json; {hint}")
        return str(path.resolve())
    if path.exists():
        if not _is_gguf(path):
            raise NoSuchModel(
                f"{path} is a file, but no GGUF; a Hugging Face folder or a GGUF file is needed"
            )
        return str(path.absolute())  # the name in a link may say more than its target's: parts of one model
    owner, _, name = model.partition("/")
    name, _, file = name.partition("/")
    if not (owner and name) or model.startswith((".", "/", "~")) or (file and not GGUF_ENDING.search(file)):
        raise NoSuchModel(f"no folder or file {model}, and it is not a hub id (owner/name)")
    return _download(f"{owner}/{name}", file)


def served_name(path: str) -> str:
    """What a model is called when nobody gave it a name: as its folder, or its file without the ending."""
    name = Path(path).name
    return GGUF_ENDING.sub("", name) or name


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    except OSError as error:
        raise NoSuchModel(f"{path} cannot be read: {error.strerror}") from None


def _download(hub_id: str, file: str) -> str:
    """Bring a model onto this machine: its folder, or one file of it with the parts that belong to it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [re.sub(r"-00001-of-(\d{5})", r"-*-of-\1", file)] if file else PATTERNS
    try:
        folder = snapshot_download(hub_id, allow_patterns=patterns)  # shows its own progress bar
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NoSuchModel(f"hub id {hub_id}: {error}") from error
    if not file:
        return folder
    if not (Path(folder) / file).is_file():
        raise NoSuchModel(f"hub id {hub_id} has no file {file}")
    return str(Path(folder) / file)
