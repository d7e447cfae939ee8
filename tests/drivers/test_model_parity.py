"""The forward pass against transformers and against golden completions of a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_zoo import FAMILIES, Memory, load_model, load_native, save_checkpoint

from llmos.device import Row

STORIES = Path(__file__).parents[2] / ".." / "shared" / "data" / "stories260k"

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

CASES = {
    **{architecture: (architecture, {}) for architecture in FAMILIES},
    "llama3 rope": ("LlamaForCausalLM", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("LlamaForCausalLM", {"rope_parameters": LINEAR_ROPE}),
    "tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "window": ("MistralForCausalLM", {"sliding_window": 24}),
    "no window": ("MistralForCausalLM", {"sliding_window": None}),
    "sharded": ("Qwen3ForCausalLM", {"max_shard_size": "100KB"}),
    "tied qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


LOADERS = pytest.mark.parametrize("load", [load_model, load_native], ids=["torch", "native"])


@LOADERS
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case, load, tmp_path):
    """Every position's logits agree within 1e-4 in fp32, and greedy decoding chooses the same tokens."""
    import transformers

    architecture, overrides = CASES[case]
    save_checkpoint(tmp_path, architecture, **overrides)
    assert (tmp_path / "model.safetensors.index.json").exists() == (case == "sharded")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = load(tmp_path)
    prompt = torch.randint(131, (1, 90), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = oracle(prompt).logits[0]
    tokens = tuple(prompt[0].tolist())

    memory = Memory(model)
    for position in (0, 1, 30, 89):
        got = memory.run(Row(0, 0, tokens[: position + 1], True))[0]
        torch.testing.assert_close(got, expected[position], atol=1e-4, rtol=1e-4)
    ours, _ = Memory(model).generate(tokens, 12)
    with torch.no_grad():
        theirs = prompt
        for _ in range(12):
            theirs = torch.cat((theirs, oracle(theirs).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    assert ours == theirs[0, 90:].tolist()


@LOADERS
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.35), ("fp16", 0.05)])
def test_half_precision_stays_close(dtype, tolerance, load, tmp_path):
    """A checkpoint loaded as a half format gives logits near those of fp32."""
    save_checkpoint(tmp_path, "LlamaForCausalLM", initializer_range=0.1)
    tokens = tuple(range(40))
    expected = Memory(load_model(tmp_path)).run(Row(0, 0, tokens, True))
    got = Memory(load(tmp_path, dtype=dtype)).run(Row(0, 0, tokens, True))
    assert got.dtype == torch.float32
    assert 0 < (got - expected).abs().max() < tolerance


@pytest.mark.skipif(not STORIES.exists(), reason="the stories260k checkpoint is not beside the project")
@LOADERS
def test_stories_are_told_as_recorded(load):
    """A trained model's first logits and 60 greedy tokens equal the recorded ones for every prompt."""
    model = load(STORIES)
    assert (model.info.num_parameters, set(model.info.eos_token_ids)) == (260_032, {1, 2})
    golden = json.loads((STORIES / "golden.json").read_text())
    for case in golden["cases"]:
        tokens, logits = Memory(model).generate(case["prompt_ids"], len(case["completion_ids"]))
        first = logits[0, case["first_step_top5_ids"]]
        torch.testing.assert_close(first, torch.tensor(case["first_step_top5_logits"]), atol=1e-4, rtol=0)
        assert tokens == case["completion_ids"]
