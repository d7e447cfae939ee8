"""`llmos size`: what it says is what a driver would lay out, for any shape of model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivers.builtin import base_path
from drivers.model.config import parse_config
from drivers.model.loader import open_model
from drivers.size import FORMATS, measure
from llmos.cli import main
from llmos.size import MIB, ModelUnreadable, ask_sizes, pool_bytes

WIDTHS = {"fp32": 4, "fp16": 2, "bf16": 2}

LLAMA_1B = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 2048,
    "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 64, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "rope_theta": 5e5,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


def token_bytes(layers: int, heads: int, dim: int, name: str) -> int:
    """The formula of the operators' page: a key and a value for each layer and head."""
    return 2 * layers * heads * (dim + 4 if name == "int8" else dim * WIDTHS[name])


@given(
    layers=st.integers(1, 96), heads=st.sampled_from([1, 2, 8, 16]), dim=st.sampled_from([32, 64, 80, 128]),
    num_tokens=st.integers(1, 5000), num_processes=st.integers(1, 300),
)  # fmt: skip
def test_sizes_are_those_of_the_formula(
    layers: int, heads: int, dim: int, num_tokens: int, num_processes: int
) -> None:
    """A token takes what the formula says; the pool holds exactly so many processes, and no page more."""
    shape = LLAMA_1B | {"num_hidden_layers": layers, "num_key_value_heads": heads, "head_dim": dim}
    shape |= {"num_attention_heads": heads * 2, "hidden_size": heads * 2 * dim}
    sizes = measure(parse_config(shape, {}))
    assert [kv.name for kv in sizes["formats"]] == list(FORMATS)
    for kv in sizes["formats"]:
        assert sum(part.bytes_per_token for part in kv.segments) == token_bytes(layers, heads, dim, kv.name)
        num_frames, rest = divmod(pool_bytes(kv, num_tokens, num_processes), kv.frame_bytes)
        assert rest == 0
        left = num_frames
        for _ in range(num_processes):  # give each process the pages that its tokens need, one by one
            held = 0
            while held < num_tokens:
                left -= len(kv.segments)
                held += kv.tokens_per_page
        assert left == 0


def test_the_worked_example_is_right() -> None:
    """The numbers that the operators' page works with."""
    sizes = measure(parse_config(LLAMA_1B, {}))
    bf16, int8 = (next(kv for kv in sizes["formats"] if kv.name == name) for name in ("bf16", "int8"))
    page = (Path(__file__).parents[2] / "docs/operators.md").read_text(encoding="utf-8")
    for kv in (bf16, int8):
        assert f"{sum(part.bytes_per_token for part in kv.segments):,}" in page
    assert pool_bytes(bf16, 4096, 16) == 2048 * MIB
    assert pool_bytes(bf16, 4096, 24) == 3072 * MIB
    assert pool_bytes(int8, 4096, 28) <= 2048 * MIB < pool_bytes(int8, 4096, 29)
    assert "With `--kv int8` 28 of them" in page
    assert 1.2e9 < sizes["num_parameters"] < 1.3e9


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The built-in model's table; a folder needs only config.json; what cannot be is refused by name."""
    assert main(["size", "--context", "1024", "--processes", "32"]) == 0
    head, _, columns, *rows = capsys.readouterr().out.splitlines()
    num_parameters = open_model(base_path()).describe("bf16", "bf16").num_parameters
    assert head.startswith(f"llmos-base: {num_parameters:,} parameters, ")
    assert columns.split() == ["KV", "A", "TOKEN", "A", "PAGE", "A", "PROCESS", "POOL"]
    assert [row.split()[0] for row in rows] == list(FORMATS)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    assert ask_sizes(str(tmp_path)).max_model_len == 131_072
    assert main(["size", "--context", "4096"]) == 2
    assert "context is 4096; 1 to 2048" in capsys.readouterr().err
    assert main(["size", "--processes", "0"]) == 2
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B | {"architectures": ["Mamba"]}))
    with pytest.raises(ModelUnreadable, match="Mamba"):
        ask_sizes(str(tmp_path))
