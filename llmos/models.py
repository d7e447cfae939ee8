"""From what an operator calls a model to a folder on this machine."""

from __future__ import annotations

from pathlib import Path

from llmos.errors import LlmosError

PATTERNS = ["*.json", "*.safetensors", "*.jinja"]  # never pickles


class NoSuchModel(LlmosError):
    """Neither a folder nor a hub id that can be had; the message says what was tried."""


def resolve_model(model: str, builtin: str) -> str:
    """Find the folder of a model, downloading it from the hub when `model` is an id there. Blocks.

    Args:
        model: "builtin", a folder, or a hub id like "owner/name".
        builtin: the folder of the built-in model.

    Raises:
        NoSuchModel.
    """
    if model == "builtin":
        return builtin
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise NoSuchModel(f"{folder} has no config.json; a Hugging Face folder is needed")
        return str(folder.resolve())
    if folder.exists():
        raise NoSuchModel(f"{folder} is a file; a Hugging Face folder is needed")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise NoSuchModel(f"no folder {model}, and it is not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model, allow_patterns=PATTERNS)  # shows its own progress bar
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise NoSuchModel(f"hub id {model}: {error}") from error
