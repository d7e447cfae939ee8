"""The shipped folders: small, consistent, loadable by others, and able to recall."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from drivers.builtin import base_path, draft_path
from drivers.training.evaluate import answers, encoder, recall
from drivers.training.model import Llama, base_shape, draft_shape, load_model, save_model
from drivers.training.tokenizer import ASSISTANT, BOS, END, USER

FOLDERS = [base_path(), draft_path()]
PROSE = [f"It was a quiet day, and nobody in the {w} said a word." for w in ("house", "town", "ship", "army")]


def test_size() -> None:
    """Everything shipped stays within 25 MB."""
    files = [p for p in base_path().parent.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 25_000_000
    assert {p.suffix for p in files} <= {".py", ".md", ".json", ".safetensors", ".pyc"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_config_matches_tensors(folder: Path) -> None:
    """Shapes follow from the config, names are the Llama ones, and ids are the tokenizer's."""
    config = json.loads((folder / "config.json").read_text())
    shape = {"base": base_shape, "draft": draft_shape}[folder.name](config["vocab_size"])
    with torch.device("meta"):
        expected = {k: list(v.shape) for k, v in Llama(shape).state_dict().items()}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {k: file.get_slice(k).get_shape() for k in file.keys()} == expected  # noqa: SIM118
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config["vocab_size"]
    assert config["bos_token_id"] == tokenizer.token_to_id("<s>")
    assert config["eos_token_id"] == [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|end|>")]
    assert config["max_position_embeddings"] >= 2048


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_transformers_agrees(folder: Path) -> None:
    """What if another implementation loads the folder? It computes the same logits."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("It was in July, 1805, and the speaker was", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, load_model(folder)(ids), atol=2e-3, rtol=1e-3)
    chat = [{"role": "user", "content": "Hi!"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == f"{BOS}{USER}Hi!{END}{ASSISTANT}"


def test_save_and_load(tmp_path: Path) -> None:
    """What was saved comes back, rounded to bfloat16."""
    model = Llama(draft_shape(300))
    save_model(model, tmp_path, {"pad": 0, "bos": 1, "eos": 2, "end": 6})
    loaded = load_model(tmp_path)
    for name, p in model.named_parameters():
        assert torch.equal(p.to(torch.bfloat16).float(), loaded.get_parameter(name).data)


@pytest.fixture(scope="module")
def base() -> Llama:
    return load_model(base_path()).eval()


@pytest.mark.parametrize(("distance", "floor"), [(100, 0.7), (1000, 0.5), (1900, 0.3)])
def test_recall(base: Llama, distance: int, floor: float) -> None:
    """The model finds a value far back; chance is below one in a hundred."""
    tokenizer = Tokenizer.from_file(str(base_path() / "tokenizer.json"))
    assert recall(base, tokenizer, PROSE, distance, 8) >= floor


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is your name?", "I am the built-in model of llmos."),
        ("What is 2 + 3?", "2 + 3 = 5"),
    ],
)
def test_chat(base: Llama, question: str, answer: str) -> None:
    """Short questions get their answers, and the turn ends."""
    encode = encoder(Tokenizer.from_file(str(base_path() / "tokenizer.json")))
    ids = encode(f"{BOS}{USER}{question}{END}{ASSISTANT}")
    assert answers(base, ids + encode(f"{answer}{END}"), len(ids))
