"""A model read from GGUF computes what the same model computes from its Hugging Face folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from attrs import evolve
from gguf_files import add_tensor, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from model_zoo import FAMILIES, Memory, load_model, load_native, save_checkpoint

from drivers.builtin import base_path
from drivers.model.config import RopeConfig, read_config
from drivers.model.errors import ModelError
from drivers.model.gguf.config import read_gguf_config
from drivers.model.gguf.file import GgufFile
from drivers.model.loader import open_model
from drivers.model.source import open_source
from llmos.device import Row

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROOT = Path(__file__).parents[2]
PROMPT = (1, 300, 512, 77, 2000, 431, 999)


def logits(model):
    """Of a prompt long enough that rope, windows and head order show."""
    tokens = tuple(int(token) for token in np.random.default_rng(3).integers(0, model.info.vocab_size, 90))
    return Memory(model).run(Row(0, 0, tokens, True))


def add_words(writer):
    """Give a file the least of a vocabulary that counts as one."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "ab"])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        *((family, {}) for family in FAMILIES),
        ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("MistralForCausalLM", {"sliding_window": 24}),
        ("Qwen3ForCausalLM", {"attention_bias": True}),
        ("Qwen2ForCausalLM", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}}),
    ],
)
def test_families_are_the_same_to_the_bit(tmp_path, architecture, overrides):
    """Config and logits of a file with fp32 weights are the folder's, biases and head order included."""
    save_checkpoint(tmp_path / "folder", architecture, **overrides)
    path = write_gguf(tmp_path / "folder", tmp_path / "m.gguf", change=add_words)
    # only a window makes a file's llama a Mistral
    config = evolve(open_source(path)[0], architecture=architecture)
    assert config == read_config(tmp_path / "folder")
    assert torch.equal(logits(load_model(path)), logits(load_model(tmp_path / "folder")))


def test_llama3_scaling_is_read_from_its_factors(tmp_path):
    """Frequencies that the converter has stretched are those that the folder's config asks for, to fp32."""
    save_checkpoint(tmp_path / "folder", "LlamaForCausalLM", rope_parameters=LLAMA3)
    path = write_gguf(tmp_path / "folder", tmp_path / "m.gguf", change=add_words)
    rope = open_source(path)[0].rope
    assert (rope.kind, rope.theta, len(rope.factors)) == ("factors", 10000.0, 8)
    assert 1.0 in rope.factors
    assert 8.0 in rope.factors
    stretched, plain = load_model(path), load_model(tmp_path / "folder")
    torch.testing.assert_close(logits(stretched), logits(plain), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "fp32"), ("F16", "fp16"), ("BF16", "bf16")])
def test_floating_point_gives_the_same_tokens(tmp_path, kind, dtype):
    """The built-in model in a format of its own number of bits has the folder's greedy tokens and logits."""
    path = write_gguf(base_path(), tmp_path / "m.gguf", kind, tokenizer=True)
    found, expected = load_native(path), load_native(base_path(), dtype)
    assert found.info.dtype == dtype
    assert found.info.eos_token_ids == expected.info.eos_token_ids
    tokens, scores = Memory(found).generate(PROMPT, 12)
    expected_tokens, expected_scores = Memory(expected).generate(PROMPT, 12)
    assert tokens == expected_tokens
    assert torch.equal(scores, expected_scores)


@pytest.mark.parametrize(("kind", "tolerance"), [("Q8_0", 0.02), ("Q5_1", 0.15), ("Q4_0", 0.5)])
def test_blocks_stay_close_to_the_model(tmp_path, kind, tolerance):
    """Block formats move the built-in model's distributions as far as their bits let expect."""
    path = write_gguf(base_path(), tmp_path / "m.gguf", kind, tokenizer=True)
    found, expected = (logits(load_native(source, "fp32")).double() for source in (path, base_path()))
    divergence = (expected.softmax(1) * (expected.log_softmax(1) - found.log_softmax(1))).sum(1).mean()
    assert 0 < divergence < tolerance


@pytest.mark.parametrize("weights", ["w8a8", "w4a8"])
def test_integer_formats_are_made_from_files(tmp_path, weights):
    """Weights read from a file are packed as the folder's are, to the bit; blocks are taken for bf16."""
    path = write_gguf(base_path(), tmp_path / "m.gguf", "BF16", tokenizer=True)
    assert torch.equal(logits(load_native(path, weights)), logits(load_native(base_path(), weights)))
    blocks = write_gguf(base_path(), tmp_path / "blocks.gguf", "Q4_0", tokenizer=True)
    assert open_model(blocks).config.dtype == "bf16"
    assert not torch.equal(logits(load_native(blocks, weights)), logits(load_native(path, weights)))


def test_a_model_in_parts_is_the_same_model(tmp_path):
    """Files of seven tensors each give what one file gives."""
    whole = write_gguf(base_path(), tmp_path / "m.gguf", "Q8_0", tokenizer=True)
    first = write_gguf(base_path(), tmp_path / "p-00001-of-00006.gguf", "Q8_0", tokenizer=True, parts=7)
    assert len(list(tmp_path.glob("p-*.gguf"))) == 6
    assert torch.equal(logits(load_native(first)), logits(load_native(whole)))


def test_the_experiment_with_formats_runs(tmp_path):
    """The experiment that compares sources prints a row for the folder and for a file of its weights."""
    path = write_gguf(base_path(), tmp_path / "m.gguf", "Q8_0", tokenizer=True)
    script = ROOT / "docs" / "experiments" / "gguf_formats.py"
    command = [sys.executable, str(script), str(base_path()), str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480, check=False)
    assert result.returncode == 0, result.stderr
    folder, file = (line.split() for line in result.stdout.splitlines()[1:])
    assert (folder[0], folder[3]) == ("base", "0.00000")  # as it was published
    assert 0 < float(file[3]) < float(file[5])


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder to make files of."""
    folder = tmp_path_factory.mktemp("small")
    save_checkpoint(folder, "LlamaForCausalLM", num_hidden_layers=1)
    return folder


def replace(key, value):
    """What overwrites a metadata value of the writer's."""

    def change(writer):
        add_words(writer)
        for metadata in writer.kv_data:
            if key in metadata:
                metadata[key].value = value

    return change


def put(add):
    """What adds to a file that is whole."""

    def change(writer):
        add_words(writer)
        add(writer)

    return change


CHANGES = {
    "architecture": (replace("general.architecture", "gemma"), "architecture gemma is not supported"),
    "experts": (put(lambda writer: writer.add_expert_count(8)), "llama.expert_count: mixtures"),
    "heads": (replace("llama.attention.head_count", 0), "llama.attention.head_count is 0"),
    "groups": (replace("llama.attention.head_count_kv", 3), "is not a multiple of"),
    "epsilon": (replace("llama.attention.layer_norm_rms_epsilon", 0.0), "rms_norm_eps is 0.0"),
    "infinity": (replace("llama.attention.layer_norm_rms_epsilon", float("inf")), "rms_epsilon is inf"),
    "value size": (replace("llama.attention.value_length", 8), "llama.attention.value_length is 8"),
    "rotated": (replace("llama.rope.dimension_count", 8), "llama.rope.dimension_count is 8"),
    "shape": (replace("llama.feed_forward_length", 100), r"ffn_gate\.weight has shape \[176, 64\], the"),
    "layers": (replace("llama.block_count", 2), r"no tensor for model\.layers\.1\.input_layernorm"),
    "no end": (replace("tokenizer.ggml.eos_token_id", 5), "tokenizer.ggml.eos_token_id is 5, outside"),
    "yarn": (
        put(lambda writer: (writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                            writer.add_rope_scaling_factor(4.0))), "rope type 'yarn' is not supported",
    ),
    "stranger": (
        put(lambda writer: add_tensor(writer, "blk.0.attn_sinks.weight", np.ones(4), "F32")),
        r"tensor blk\.0\.attn_sinks\.weight has no place in LlamaForCausalLM",
    ),
    "factors": (
        put(lambda writer: add_tensor(writer, "rope_freqs.weight", np.ones(4), "F32")),
        r"tensor rope_freqs\.weight is F32 \[4\]; F32 \[8\] is needed",
    ),
    "zero factor": (
        put(lambda writer: add_tensor(writer, "rope_freqs.weight", np.zeros(8), "F32")), "not positive",
    ),
    "no vocabulary": (lambda writer: None, "tokenizer.ggml.tokens is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_does_not_fit_is_refused_by_name(tmp_path, small, case):
    """A message names the file, and the key, tensor or value at fault."""
    change, message = CHANGES[case]
    path = write_gguf(small, tmp_path / "bad.gguf", change=change)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value)


def test_a_vocabulary_alone_is_no_model(tmp_path):
    """A file without tensors, and one without its embedding, are refused."""
    path = tmp_path / "vocabulary.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    add_words(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"no matrix token_embd\.weight"):
        read_gguf_config(GgufFile.open(path))


def test_older_names_of_scaling_are_read(tmp_path, small):
    """The linear scale has an older key; and a scale of one, or the word none, means no scaling."""
    for change, rope in (
        (
            put(lambda writer: writer.add_float32("llama.rope.scale_linear", 2.5)),
            RopeConfig(1e4, "linear", 2.5),
        ),
        (put(lambda writer: writer.add_rope_scaling_factor(1.0)), RopeConfig(1e4)),
        (put(lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)), RopeConfig(1e4)),
    ):
        path = write_gguf(small, tmp_path / "m.gguf", change=change)
        assert read_gguf_config(GgufFile.open(path)).rope == rope


VALUES = st.one_of(
    st.integers(-2, 70), st.integers(0, (1 << 64) - 1), st.floats(), st.booleans(), st.text(max_size=5),
    st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip


@settings(max_examples=300)
@given(data=st.data())
def test_any_shape_is_taken_or_refused(tmp_path_factory, small, data):
    """Metadata of any types and values describe the model that is there, or are refused by name."""
    path = tmp_path_factory.getbasetemp() / "shape.gguf"
    if not path.exists():
        write_gguf(small, path, change=add_words)
    file = GgufFile.open(path)
    keys = st.sampled_from([key for key in file.metadata if not key.startswith("tokenizer.")])
    changes = data.draw(st.dictionaries(keys, VALUES, min_size=1, max_size=2))
    message = str(path)
    try:
        read_gguf_config(evolve(file, metadata={**file.metadata, **changes}))
    except ModelError as error:
        message = str(error)
    assert message.startswith(str(path))
