"""Tokenizers made from GGUF metadata give the ids and the text that the models' own tokenizers give."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import MappingProxyType

import gguf
import pytest
from gguf_files import add_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from drivers.model.errors import ModelError
from drivers.model.gguf.file import GgufFile
from drivers.model.gguf.pre_tokenizers import PRE_TOKENIZERS
from drivers.model.gguf.text_folder import write_text_folder
from drivers.model.gguf.tokenizer import hugging_face_tokenizer
from drivers.model.gguf.vocabulary import SPECIAL_KEYS, Vocabulary
from syscalls.text.tokenizer import TextModel
from tests.syscalls.text.data import BUILTIN, SHARED_DATA, STORIES, make_byte_level, require

VECTORS = SHARED_DATA / "tokenizer-vectors"
TEXTS = [
    "", " ", "Hello, World!", "  two  spaces \n\n and\ttabs ", "3.14159 and 12345678", "I'll, I'VE, we'd",
    "naïve café — 100 €", "Ελληνικά, Русский, עברית, العربية", "日本語のテキスト、それと絵文字🙂🙂",
    "한국어 ไทย हिन्दी", "e\u0301 combining", "def f(x):\n    return x ** 2\r\n", "🚀👩‍👩‍👧", "</s> <s>",
    "\x00\x07\u2028",
]  # fmt: skip
WORDS = MappingProxyType({
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "<think>"],
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 4],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
})  # fmt: skip
PIECES = MappingProxyType({
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "▁ab", "zz"],
    "tokenizer.ggml.scores": [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0],
    "tokenizer.ggml.token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 5],
})  # fmt: skip


def metadata_file(metadata) -> GgufFile:
    """A file that has only metadata."""
    return GgufFile(Path("x.gguf"), dict(metadata), {}, ())


def open_text(metadata) -> TextModel:
    """What user space makes of metadata."""
    return TextModel.open(write_text_folder(metadata_file(metadata)))


# --- the same ids -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "deepseek-coder"])
def test_vectors_of_the_ggml_project(name):
    """Every input of the vectors has the ids that its author's tokenizer gave, and comes back as it was."""
    path = require(VECTORS / f"ggml-vocab-{name}.gguf")
    text = TextModel.open(write_text_folder(GgufFile.open(path)))
    inputs = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = Path(f"{path}.out").read_text().split("\n")
    assert len(inputs) > 40
    for given_text, line in zip(inputs, outputs, strict=True):
        ids = text.encode(given_text, add_special_tokens=False)
        assert ids == [int(word) for word in line.split()], given_text
        assert text.decode(ids, skip_special_tokens=False) == given_text


def test_a_sentence_piece_vocabulary(tmp_path):
    """Merges worked out from scores give the ids of a tokenizer.json that holds them."""
    folder = require(STORIES)
    tokens, scores = read_llama2c(folder / "original" / "tok512.bin")
    original = TextModel.open(folder)
    # llama2.c spells spaces and bytes in its own way
    spelled = [original.tokenizer.id_to_token(token_id) for token_id in range(512)]
    assert [token.replace("▁", " ") for token in spelled[259:]] == tokens[259:]
    found = open_text(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": spelled,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 253],
        }
    )
    corpus = require(SHARED_DATA / "text-corpora" / "tinystories_sample.txt").read_text()[:20000]
    for text in [*TEXTS, corpus]:
        assert found.encode(text) == original.encode(text), text
        assert found.decode(found.encode(text)) == original.decode(original.encode(text))
    assert found.special_tokens == original.special_tokens


def read_llama2c(path: Path) -> tuple[list[str], list[float]]:
    """Tokens and scores of a tokenizer in llama2.c's format."""
    data, at, tokens, scores = path.read_bytes(), 4, [], []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        tokens.append(data[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    return tokens, scores


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_a_byte_level_vocabulary(pre):
    """A trained byte-level tokenizer and what is made of its vocabulary and merges agree."""
    original = make_byte_level()
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        original.pre_tokenizer = pre_tokenizers.Sequence([digits, original.pre_tokenizer])
    model = json.loads(original.to_str())["model"]
    added = original.get_added_tokens_decoder()
    tokens = [original.id_to_token(token_id) for token_id in range(original.get_vocab_size())]
    found = open_text(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
            "tokenizer.ggml.token_type": [
                1 if token_id not in added else 3 if added[token_id].special else 4
                for token_id in range(len(tokens))
            ],
        }
    )
    for text in [*TEXTS, "a naïve word here", "<|end|>x"]:
        assert found.encode(text) == original.encode(text).ids, text
        assert found.decode(found.encode(text), skip_special_tokens=False) == text


@settings(max_examples=100)
@given(st.text(max_size=40))
def test_gpt2_cuts_as_the_library_does(text):
    """The pattern for gpt-2 cuts any text where the library's own byte-level rule cuts it."""
    ours = Tokenizer.from_str(json.dumps(tokenizer_of(WORDS))).pre_tokenizer
    assert ours.pre_tokenize_str(text) == pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(
        text
    )


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_cut_keeps_the_text(pre):
    """Each named pattern is one that the library takes, cuts the text somewhere, and loses nothing."""
    cut = Tokenizer.from_str(json.dumps(tokenizer_of({**WORDS, "tokenizer.ggml.pre": pre}))).pre_tokenizer
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in filter(None, TEXTS):
        pieces = [piece for piece, _ in cut.pre_tokenize_str(text)]
        assert "".join(pieces) == whole.pre_tokenize_str(text)[0][0]
    assert len(cut.pre_tokenize_str("one two, three")) > 3


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("llama-bpe", ["I", "'LL", "Ġpay", "Ġ", "123", "45", "ĠĠ", "ĠUSD", "!!Ċ", "x"]),
        ("qwen2", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠUSD", "!!Ċ", "x"]),
        ("gpt-2", ["I", "'", "LL", "Ġpay", "Ġ12345", "ĠĠ", "ĠUSD", "!!", "Ċ", "x"]),
        ("smollm", ["I", "'", "LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠUSD", "!!", "Ċ", "x"]),
        ("tekken", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "4", "5", "ĠĠ", "ĠUSD", "!!Ċ", "x"]),
    ],
)
def test_names_cut_differently(pre, pieces):
    """Contractions, digits and line ends are cut as each name says."""
    cut = Tokenizer.from_str(json.dumps(tokenizer_of({**WORDS, "tokenizer.ggml.pre": pre}))).pre_tokenizer
    assert [piece for piece, _ in cut.pre_tokenize_str("I'LL pay 12345   USD!!\nx")] == pieces


def test_only_some_compose():
    """Text is brought to composed characters where the model's own tokenizer does it, and only there."""
    for pre, expected in (("qwen2", "\u00e9"), ("gpt-2", "e\u0301")):
        tokenizer = Tokenizer.from_str(json.dumps(tokenizer_of({**WORDS, "tokenizer.ggml.pre": pre})))
        assert (tokenizer.normalizer is not None) == (pre == "qwen2")
        text = "e\u0301"
        assert (tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text) == expected


def test_the_files_own_tokenizer_wins(tmp_path):
    """A tokenizer.json that a file carries is used as it is: here the built-in model's."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_tokenizer(writer, BUILTIN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, original = TextModel.open(write_text_folder(GgufFile.open(path))), TextModel.open(BUILTIN)
    for text in TEXTS:
        assert found.encode(text) == original.encode(text)
        assert found.decode(found.encode(text)) == original.decode(original.encode(text))
    assert found.eos_token_ids == original.eos_token_ids
    chat = [{"role": "user", "content": "hi"}]
    assert found.chat_template.render(chat) == original.chat_template.render(chat)


# --- special tokens -----------------------------------------------------------------------------------------


def test_marks_around_a_text():
    """BOS and EOS are put where the flags say; without a flag by the kind of tokenizer."""

    def ids(base, **flags):
        named = {f"tokenizer.ggml.add_{name}_token": on for name, on in flags.items()}
        return open_text({**base, **named}).encode("ab")

    assert ids(WORDS) == [4]
    assert ids(WORDS, bos=True) == [0, 4]
    assert ids(WORDS, bos=True, eos=True) == [0, 4, 1]
    assert ids({**WORDS, "tokenizer.ggml.pre": "llama-bpe"}) == [0, 4]
    assert ids(PIECES) == [1, 9]
    assert ids(PIECES, bos=False) == [9]
    assert ids({**PIECES, "tokenizer.ggml.add_space_prefix": False}) == [1, 8]


def test_kinds_of_tokens():
    """Control tokens are special, a user's own are text, and unused ones are never made by merging."""
    text = open_text(WORDS)
    assert text.encode("<think>ab</s>") == [5, 4, 1]
    assert text.decode([5, 4, 1]) == "<think>ab"
    merges = tokenizer_of(PIECES)["model"]["merges"]
    assert [tuple(pair) for pair in merges] == [("a", "b"), ("▁", "a"), ("▁", "ab"), ("▁a", "b")]
    assert open_text(PIECES).encode("\nz", add_special_tokens=False) == [4, 3, 0]


def test_end_tokens_are_those_of_the_model_and_of_its_turns():
    """Ends of text and of turns are taken by key, and by name where they are control tokens."""
    tokens = [*WORDS["tokenizer.ggml.tokens"], "<|im_end|>", "<|end|>", "<|eot_id|>"]
    metadata = {
        **WORDS,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 4, 3, 1, 3],
        "tokenizer.ggml.eot_token_id": 8,
    }
    assert Vocabulary.read(metadata_file(metadata)).end_tokens == (1, 8, 6)
    assert open_text(metadata).eos_token_ids == (1, 8, 6)


def test_repeated_spellings_are_told_apart():
    """Rows that pad a vocabulary may repeat a spelling; its first id is the one that is meant."""
    text = open_text({
        **WORDS,
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "<think>", "ab", ""],
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 4, 5, 5],
    })  # fmt: skip
    assert text.encode("ab") == [4]
    assert text.vocab_size == 8


# --- the folder ---------------------------------------------------------------------------------------------


def test_the_folder_is_made_once_and_mended(tmp_path, monkeypatch):
    """The same vocabulary has the same folder, which is not written again unless it is damaged."""
    monkeypatch.setenv("LLMOS_CACHE_DIR", str(tmp_path))
    folder = write_text_folder(metadata_file(WORDS))
    assert folder.parent == tmp_path / "text"
    names = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    before = {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}
    assert write_text_folder(metadata_file(WORDS)) == folder
    assert {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()} == before
    assert write_text_folder(metadata_file({**WORDS, "tokenizer.ggml.pre": "smollm"})) != folder
    (folder / "tokenizer.json").write_bytes(b"{")
    (folder / "tokenizer_config.json").unlink()
    assert write_text_folder(metadata_file(WORDS)) == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: data for name, (_, data) in before.items()
    }
    assert len(list((tmp_path / "text").iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """Where there is no room for the text files the load fails, and says what to set."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLMOS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"x\.gguf: its tokenizer cannot be written to .*LLMOS_CACHE_DIR"):
        write_text_folder(metadata_file(WORDS))


def test_templates_and_sampling_are_handed_on():
    """Chat templates, special tokens and the makers' sampling values are where user space looks for them."""
    metadata = {
        **WORDS,
        "tokenizer.chat_template": "one",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "two",
        "general.sampling.temp": 0.5,
        "general.sampling.top_k": 20,
    }
    folder = write_text_folder(metadata_file(metadata))
    text = TextModel.open(folder)
    assert (text.chat_template.source(), text.chat_template.source(with_tools=True)) == ("one", "two")
    assert text.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [1], "bos_token_id": 0, "temperature": 0.5, "top_k": 20}


# --- refusals -----------------------------------------------------------------------------------------------


def tokenizer_of(metadata) -> dict[str, object]:
    """The contents of tokenizer.json."""
    file = metadata_file(metadata)
    return hugging_face_tokenizer(file, Vocabulary.read(file))


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (WORDS, {"pre": "jais-2"}, "tokenizer.ggml.pre jais-2 is not supported; supported: default, gpt-2"),
        (WORDS, {"model": "rwkv"}, "tokenizer.ggml.model rwkv is not supported; supported: llama, gpt2"),
        (WORDS, {"tokens": []}, "tokenizer.ggml.tokens is missing"),
        (WORDS, {"tokens": [1]}, "tokenizer.ggml.tokens is not an array of str"),
        (WORDS, {"token_type": [1]}, "tokenizer.ggml.token_type: 1 types for 6 tokens"),
        (WORDS, {"token_type": [1, 1, 1, 1, 1, 9]}, "tokenizer.ggml.token_type: 9 is not a valid TokenKind"),
        (WORDS, {"merges": []}, "tokenizer.ggml.merges is missing"),
        (WORDS, {"merges": ["a c"]}, "tokenizer.ggml.merges: 'a c' is not of the vocabulary"),
        (WORDS, {"merges": ["ab"]}, "tokenizer.ggml.merges: 'ab' is not of the vocabulary"),
        (WORDS, {"bos_token_id": 6}, "tokenizer.ggml.bos_token_id is 6, outside the vocabulary of 6"),
        (WORDS, {"eos_token_id": -1}, "tokenizer.ggml.eos_token_id is -1, outside"),
        (WORDS, {"tokens": ["[UNUSED1]", ""] * 3}, "spellings repeat, and so do their substitutes"),
        (PIECES, {"scores": [0.0]}, "tokenizer.ggml.scores: 1 for 11 tokens"),
        (PIECES, {"scores": [float("nan")] * 11}, "tokenizer.ggml.scores: a score is not a number"),
        (WORDS, {"add_bos_token": 1}, "tokenizer.ggml.add_bos_token is 1; a bool is needed"),
    ],
)  # fmt: skip
def test_vocabularies_are_refused_by_name(base, changes, message):
    """A message names the file, and the key and the limit at fault."""
    metadata = {**base, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    with pytest.raises(ModelError, match=message) as caught:
        write_text_folder(metadata_file(metadata))
    assert str(caught.value).startswith("x.gguf: ")


@pytest.mark.parametrize(
    "embedded", ["{", "[]", "{}", '{"model": {"type": "Nothing"}}', "[" * 100_000, '"\\ud800"']
)
def test_a_broken_embedded_tokenizer_is_refused(embedded):
    """A tokenizer.json in a file is refused when it is none."""
    with pytest.raises(
        ModelError, match=r"x\.gguf: (tokenizer\.huggingface\.json|its vocabulary makes no tokenizer)"
    ):
        write_text_folder(metadata_file({**WORDS, "tokenizer.huggingface.json": embedded}))


VALUES = st.one_of(
    st.integers(-3, 1 << 33), st.floats(), st.booleans(), st.text(max_size=5), st.just("llama"),
    st.lists(st.one_of(st.text(max_size=2), st.sampled_from(["a b", "ab", "▁"])), max_size=12),
    st.lists(st.integers(-1, 7), max_size=12), st.lists(st.floats(width=32), min_size=9, max_size=11),
)  # fmt: skip
KEYS = st.sampled_from([
    *WORDS, *PIECES, *SPECIAL_KEYS.values(), "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.chat_template", "tokenizer.chat_templates",
    "tokenizer.huggingface.json", "general.sampling.temp", "tokenizer.ggml.eot_token_id",
])  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from([WORDS, PIECES]), st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
def test_any_vocabulary_is_taken_or_refused(base, changes):
    """Metadata of any types and values make a folder that user space can open, or a named refusal."""
    try:
        folder = write_text_folder(metadata_file({**base, **changes}))
    except ModelError as error:
        message = str(error)
    else:
        message = "x.gguf"
        TextModel.open(folder).encode("ab a")
    assert message.startswith("x.gguf")
