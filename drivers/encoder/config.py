"""The shape of a BERT-like encoder, from its folder: every setting is known, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attrs import frozen

from drivers.model.embedding_config import read_json
from drivers.model.errors import ModelError

__all__ = ["EncoderConfig", "is_encoder", "read_encoder_config"]

ARCHITECTURES = ("BertModel", "BertForSequenceClassification")
ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}  # torch's names of the two


@frozen
class EncoderConfig:
    """What the forward pass needs to know."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    max_positions: int
    max_input_tokens: int  # at most max_positions: so long were the texts that it was trained for
    num_token_types: int
    epsilon: float  # of the norms
    gelu: str  # "none", "tanh": the approximation
    separator: int | None = None  # token between the two texts of a reranker; None: it is none

    @property
    def scores_pairs(self) -> bool:
        """Whether it is a reranker."""
        return self.separator is not None

    @property
    def head_dim(self) -> int:
        """Numbers of one head."""
        return self.hidden_size // self.num_heads


def is_encoder(path: str) -> bool:
    """Does a model only make vectors? Blocks. False where that cannot be read: its driver will say why."""
    try:
        given = read_json(Path(path) / "config.json")
    except (ModelError, OSError):
        return False
    return _architecture_of(given) in ARCHITECTURES


def read_encoder_config(folder: Path) -> EncoderConfig:
    """Read config.json, and what sentence-transformers adds to it.

    Raises:
        ModelError: naming the file and the setting at fault.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no config.json")
    given = read_json(path)
    architecture = _architecture_of(given)
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{path}: architecture {architecture} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    activation = given.get("hidden_act", "gelu")
    _check(path, "hidden_act", activation, activation in ACTIVATIONS, ", ".join(ACTIVATIONS))
    position = given.get("position_embedding_type", "absolute")
    _check(path, "position_embedding_type", position, position == "absolute", "absolute")
    _check(path, "is_decoder", True, not given.get("is_decoder"), "false")
    max_positions = _size(path, given, "max_position_embeddings")
    config = EncoderConfig(
        architecture=architecture,
        vocab_size=_size(path, given, "vocab_size"),
        hidden_size=_size(path, given, "hidden_size"),
        intermediate_size=_size(path, given, "intermediate_size"),
        num_layers=_size(path, given, "num_hidden_layers"),
        num_heads=_size(path, given, "num_attention_heads"),
        max_positions=max_positions,
        max_input_tokens=min(max_positions, _read_max_length(folder) or max_positions),
        num_token_types=_size(path, given, "type_vocab_size"),
        epsilon=float(given.get("layer_norm_eps", 1e-12)),
        gelu=ACTIVATIONS[activation],
        separator=_read_separator(folder, given) if architecture != "BertModel" else None,
    )
    heads = config.num_heads
    fits = config.hidden_size % heads == 0
    _check(path, "num_attention_heads", heads, fits, f"a divisor of hidden_size, {config.hidden_size}")
    return config


def _read_separator(folder: Path, given: dict[str, Any]) -> int:
    """The token that a reranker's tokenizer puts between two texts."""
    path = folder / "config.json"
    num_labels = len(given.get("id2label") or {}) or given.get("num_labels", 2)
    _check(path, "the number of labels", num_labels, num_labels == 1, "1: a reranker has one score")
    _check(path, "type_vocab_size", given.get("type_vocab_size"), given.get("type_vocab_size", 0) >= 2, "2")
    name = read_json(folder / "tokenizer_config.json").get("sep_token", "[SEP]")
    for token in read_json(folder / "tokenizer.json").get("added_tokens", []):
        if token.get("content") == name:
            return int(token["id"])
    raise ModelError(f"{folder / 'tokenizer.json'} has no token {name!r}, which stands between two texts")


def _read_max_length(folder: Path) -> int | None:
    path = folder / "sentence_bert_config.json"
    length = read_json(path).get("max_seq_length")
    is_good = length is None or (isinstance(length, int) and length >= 1)
    _check(path, "max_seq_length", length, is_good, "1 or more")
    return length if isinstance(length, int) else None


def _size(path: Path, given: dict[str, Any], name: str) -> int:
    value = given.get(name)
    if isinstance(value, int) and value >= 1:
        return value
    raise ModelError(f"{path}: {name} is {value!r}; it must be 1 or more")


def _architecture_of(given: dict[str, Any]) -> str:
    named = given.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "none"


def _check(path: Path, name: str, value: object, is_good: bool, allowed: str) -> None:
    if not is_good:
        raise ModelError(f"{path}: {name} is {value!r}; it must be {allowed}")
