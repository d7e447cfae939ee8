"""Loading: what is read, what is refused, and by which name."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from model_zoo import Memory, load_model, save_checkpoint
from safetensors.torch import load_file, save_file

from drivers.model.checkpoint import Checkpoint
from drivers.model.config import ModelConfig, RopeConfig, parse_config
from drivers.model.errors import ModelError
from drivers.model.kv_layout import kv_segments, kv_views
from drivers.model.rope import rope_tables
from llmos.device import KVFormat, Row, Segment, choose_kv_format

BASE = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 100, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One checkpoint in a single file."""
    folder = tmp_path_factory.mktemp("saved")
    save_checkpoint(folder, "LlamaForCausalLM")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the checkpoint that a test may spoil."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    """A checkpoint in several files."""
    save_checkpoint(tmp_path, "LlamaForCausalLM", max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    return tmp_path


def change_config(folder, **fields):
    """Overwrite fields of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(folder, change):
    """Rewrite model.safetensors after `change` has edited its dict."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# --- config -------------------------------------------------------------------------------------------------


def test_absent_fields_take_their_defaults():
    """A minimal config means full multi-head attention, plain rope, no biases, no window, fp32."""
    config = parse_config(BASE, {})
    assert config == ModelConfig(
        "LlamaForCausalLM", 100, 64, 128, 2, 4, 4, 16, 1e-5, 256, RopeConfig(10000.0), False, False, False,
        False, False, None, "fp32", (),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_theta": 5e5}, RopeConfig(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(5e5)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, RopeConfig(1e4, "linear", 2.0)),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 7.0, "factor": 2}},
            RopeConfig(7.0, "linear", 2.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 128),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(5e5, "llama3", 8.0, 1.0, 4.0, 128),
        ),
    ],
)
def test_rope_is_read_in_both_spellings(fields, expected):
    """Old rope_theta beside rope_scaling, and new rope_parameters, mean the same."""
    assert parse_config(BASE | fields, {}).rope == expected


@pytest.mark.parametrize(
    ("architecture", "fields", "window"),
    [
        ("MistralForCausalLM", {"sliding_window": None}, None),
        ("MistralForCausalLM", {"sliding_window": 64}, 64),
        ("MistralForCausalLM", {"sliding_window": 256}, None),
        ("LlamaForCausalLM", {"sliding_window": 64}, None),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}, None),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0}, 64),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": True,
                              "max_window_layers": 2}, None),
        ("Qwen3ForCausalLM", {"sliding_window": 64, "use_sliding_window": True,
                              "layer_types": ["sliding_attention"] * 2}, 64),
    ],
)  # fmt: skip
def test_windows(architecture, fields, window):
    """A sliding window counts where the family says so and when it is shorter than the context."""
    assert parse_config(BASE | {"architectures": [architecture]} | fields, {}).sliding_window == window


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, None, (2,)), (2, [2, 1], (2, 1)), ([5, 6], 7, (5, 6, 7)), (None, [3], (3,)), (None, None, ())],
)
def test_end_tokens_are_merged(config, generation, expected):
    """Ends of sequence from both files, integers or lists, each once and in order."""
    assert (
        parse_config(BASE | {"eos_token_id": config}, {"eos_token_id": generation}).eos_token_ids == expected
    )


@pytest.mark.parametrize(("key", "dtype"), [("dtype", "bfloat16"), ("torch_dtype", "bfloat16")])
def test_number_format_is_read_in_both_spellings(key, dtype):
    """`dtype` and the older `torch_dtype` both say what the checkpoint holds."""
    assert parse_config(BASE | {key: dtype}, {}).dtype == "bf16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"architectures": None}, "architecture (none given)"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config (awq)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"type": "linear"}}, "rope field factor is None"),
        ({"rope_scaling": "long"}, "rope settings are 'long'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope field low_freq_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": True,
          "max_window_layers": 1}, "on some of the layers"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 64,
          "layer_types": ["full_attention", "sliding_attention"]}, "on some of the layers"),
    ],
)  # fmt: skip
def test_unsupported_configs_are_refused_by_name(fields, message):
    """The refusal names the architecture or the field, and what was found there."""
    with pytest.raises(ModelError) as refusal:
        parse_config(BASE | fields, {})
    assert message in str(refusal.value)


# --- weights ------------------------------------------------------------------------------------------------


def test_a_loaded_model_describes_itself(saved):
    """Architecture, sizes, hash, end tokens and segments are what the checkpoint says."""
    reports = []
    model = load_model(saved, progress=lambda *report: reports.append(report))
    num_parameters = sum(tensor.numel() for tensor in load_file(saved / "model.safetensors").values())
    info = model.info.model_info("tiny", str(saved))
    assert (info.architecture, info.vocab_size, info.max_model_len) == ("LlamaForCausalLM", 131, 512)
    assert (info.eos_token_ids, info.dtype, info.num_parameters) == ((1,), "fp32", num_parameters)
    assert len(bytes.fromhex(info.hash)) == 32
    assert model.segments == (Segment("K", 3 * 2 * 16 * 4), Segment("V", 3 * 2 * 16 * 4))
    done, totals, names = zip(*reports, strict=True)
    assert list(done) == sorted(done)
    assert set(totals) == {done[-1]} == {num_parameters * 4}
    assert len(set(names)) == len(names) == 3 * 9 + 3


def test_shards_load_as_a_single_file_does(saved, shards):
    """The same weights in one file and in several give the same logits, bit for bit."""
    row = Row(0, 0, tuple(range(30)), True)
    assert torch.equal(Memory(load_model(shards)).run(row), Memory(load_model(saved)).run(row))


def test_loading_follows_the_number_format(saved, folder):
    """`auto` takes the checkpoint's format, and every format can be converted to."""
    change_config(folder, dtype="bfloat16")
    assert load_model(folder).info.dtype == "bf16"
    for dtype, size_bytes in (("fp32", 4), ("fp16", 2), ("bf16", 2)):
        model = load_model(saved, dtype=dtype, max_model_len=64)
        assert (model.info.dtype, model.info.max_model_len) == (dtype, 64)
        assert model.segments[0].bytes_per_token == 3 * 2 * 16 * size_bytes


def test_the_hash_follows_content(saved, folder, monkeypatch):
    """Copies share a hash, in full and sampled; one changed weight or setting changes it."""
    original = load_model(saved).info.hash
    assert load_model(folder).info.hash == original
    change_config(folder, rope_theta=5000.0)
    assert load_model(folder).info.hash != original
    (folder / "config.json").write_bytes((saved / "config.json").read_bytes())
    change_tensors(folder, lambda tensors: tensors["model.norm.weight"][0].add_(1))
    assert load_model(folder).info.hash != original
    monkeypatch.setattr("drivers.model.content_hash.FULL_HASH_BYTES", 0)
    sampled = load_model(saved).info.hash
    assert sampled == load_model(saved).info.hash
    assert sampled not in (original, load_model(folder).info.hash)


def test_tied_checkpoints_may_repeat_the_head(folder):
    """With tied embeddings a stored lm_head is ignored and the parameters count once."""
    untied = load_model(folder).info.num_parameters
    change_config(folder, tie_word_embeddings=True)
    assert load_model(folder).info.num_parameters == untied - 131 * 64


def remove_norm(tensors):
    del tensors["model.norm.weight"]


def cut_projection(tensors):
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name][:16].clone()


def add_stranger(tensors):
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def make_integer(tensors):
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (remove_norm, ["model.norm.weight", "is missing"]),
        (
            cut_projection,
            ["model.safetensors", "model.layers.1.self_attn.k_proj.weight", "[16, 64]", "[32, 64]"],
        ),
        (add_stranger, ["model.layers.0.self_attn.q_proj.bias", "has no place in LlamaForCausalLM"]),
        (make_integer, ["model.layers.2.mlp.up_proj.weight", "stored as I8"]),
    ],
)
def test_wrong_tensors_are_refused_before_any_is_read(folder, spoil, parts):
    """A missing, misshapen, unknown or integer tensor is named with its file, and no weight was read yet."""
    change_tensors(folder, spoil)
    reports = []
    with pytest.raises(ModelError) as refusal:
        load_model(folder, progress=lambda *report: reports.append(report))
    assert all(part in str(refusal.value) for part in parts)
    assert not reports


@pytest.mark.parametrize("num_bytes", [0, 7, 100, 5000, -1])
def test_truncated_files_are_refused(folder, num_bytes):
    """A file cut short anywhere is named."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    with pytest.raises(ModelError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(folder)


def test_a_missing_or_incomplete_shard_is_refused(shards):
    """An absent shard, a tensor that its shard lacks, and a broken index are named."""
    index_file = shards / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    name, shard = next(iter(index["weight_map"].items()))
    content = (shards / shard).read_bytes()
    (shards / shard).unlink()
    with pytest.raises(ModelError, match=f"{shard} does not exist"):
        load_model(shards)
    tensors = {"other": torch.zeros(1)}
    save_file(tensors, shards / shard)
    with pytest.raises(ModelError, match=f"{shard}: tensor {name} is missing"):
        load_model(shards)
    (shards / shard).write_bytes(content)
    index["weight_map"][name] = "../elsewhere.safetensors"
    index_file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="outside the folder"):
        load_model(shards)
    index_file.write_text("{}")
    with pytest.raises(ModelError, match="no usable weight_map"):
        load_model(shards)


def test_a_file_that_vanishes_while_loading_is_named(folder):
    """A read that fails after the checks is still a named refusal."""
    checkpoint = Checkpoint.open(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"tensor model\.norm\.weight cannot be read"):
        checkpoint.read("model.norm.weight")


def test_pickled_weights_are_never_opened(folder):
    """A folder with only pytorch_model.bin is refused, and the pickle inside does not run."""
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "exploded"), "w"))

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"holds neither model\.safetensors nor"):
        load_model(folder)
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "w4a8"}, "weights 'w4a8' are not supported here"),
        ({"max_model_len": 513}, "max_model_len 513 is outside 1 to 512"),
        ({"max_model_len": 0}, "max_model_len 0"),
    ],
)
def test_bad_arguments_are_refused(saved, arguments, message):
    """A number format or length that cannot be served is named with its limit."""
    with pytest.raises(ModelError, match=message):
        load_model(saved, **arguments)


def test_unreadable_folders_are_refused(folder, tmp_path):
    """No folder, no config, and a config that is not a JSON object are told apart."""
    with pytest.raises(ModelError, match="is neither a folder nor a GGUF file"):
        load_model(tmp_path / "absent")
    change_config(folder, eos_token_id=131)
    with pytest.raises(ModelError, match="eos_token_id 131 is outside the vocabulary of 131"):
        load_model(folder)
    for content, message in (
        (b"[1]", "not a JSON object"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
    ):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ModelError, match=message):
            load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json does not exist"):
        load_model(folder)


# --- layout and angles --------------------------------------------------------------------------------------


def test_kv_addresses_are_a_closed_formula(saved):
    """Element (page, layer, token, head, dim) lies where the formula says, and views share the buffer."""
    config = load_model(saved).config
    kv = choose_kv_format("fp16", kv_segments(config, "fp16"), 192 * 5 + 10)
    assert kv.tokens_per_page == 5
    buffer = torch.zeros(7 * kv.frame_bytes, dtype=torch.uint8)
    views = kv_views(buffer, config, kv)
    assert [view.shape for view in views] == [(7, 5, 2, 16)] * 3
    for page, layer, token, head, dim in ((0, 0, 0, 0, 0), (3, 1, 4, 1, 15), (6, 2, 4, 1, 15)):
        views[layer][page, token, head, dim] = 1.0
        address = page * kv.frame_bytes + 2 * (((layer * 5 + token) * 2 + head) * 16 + dim)
        assert buffer[address : address + 2].view(torch.float16).item() == 1.0
        views[layer].zero_()
    with pytest.raises(ValueError, match="not flat frames"):
        kv_views(buffer[:-1], config, kv)
    with pytest.raises(ValueError, match="cannot hold 6 tokens"):
        kv_views(buffer, config, KVFormat("fp16", kv.segments, kv.frame_bytes, 6))


def test_rope_angles_stay_exact_far_out():
    """At position 100 000 the tables equal angles worked out in double precision."""
    cos, sin = rope_tables(RopeConfig(10000.0), 8, 100_001, torch.device("cpu"))
    angles = 100_000 * 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    torch.testing.assert_close(cos[-1].double(), angles.cos(), atol=1e-7, rtol=0)
    torch.testing.assert_close(sin[-1].double(), angles.sin(), atol=1e-7, rtol=0)
