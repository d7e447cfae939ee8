"""What a checkpoint's config.json says, reduced to what the forward pass needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from drivers.model.errors import ModelError

__all__ = ["ARCHITECTURES", "ModelConfig", "RopeConfig", "parse_config", "read_config"]

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@frozen
class Family:
    """How the architectures that share this forward pass differ when their config is silent."""

    qkv_bias: bool = False  # always there, whatever `attention_bias` says
    output_bias: bool = False  # follows `attention_bias`
    qk_norm: bool = False
    window_switch: bool = False  # `sliding_window` counts only with `use_sliding_window`


ARCHITECTURES = {
    "LlamaForCausalLM": Family(output_bias=True),
    "MistralForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(qkv_bias=True, window_switch=True),
    "Qwen3ForCausalLM": Family(output_bias=True, qk_norm=True, window_switch=True),
}


@frozen
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched to longer contexts."""

    theta: float
    kind: Literal["default", "linear", "llama3", "factors"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0
    factors: tuple[float, ...] = ()  # of "factors": one for each pair of dimensions


@frozen
class ModelConfig:
    """A decoder-only transformer of the Llama shape."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_epsilon: float
    max_positions: int
    rope: RopeConfig
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    sliding_window: int | None
    dtype: str  # of the checkpoint: "fp32", "fp16", "bf16"
    eos_token_ids: tuple[int, ...]


def read_config(folder: Path) -> ModelConfig:
    """Read config.json and, where there is one, generation_config.json.

    Raises:
        ModelError: a file is absent or is not a JSON object, or says something that is not supported.
    """
    generation = folder / "generation_config.json"
    return parse_config(
        _read_json(folder / "config.json"), _read_json(generation) if generation.exists() else {}
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def parse_config(config: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """Interpret the two files' contents; fields that inference does not need are ignored.

    Raises:
        ModelError: naming the architecture, field or value that is missing or not supported.
    """
    architectures = config.get("architectures") or ["(none given)"]
    architecture = architectures[0]
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"architecture {architecture} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[architecture]
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unnamed")
        raise ModelError(f"config.json: quantization_config ({method}) is not supported")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"config.json: hidden_act {activation!r} is not supported; supported: 'silu'")

    hidden_size = _positive(config, "hidden_size")
    num_heads = _positive(config, "num_attention_heads")
    num_kv_heads = _positive(config, "num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of "
            f"num_key_value_heads {num_kv_heads}"
        )
    head_dim = _positive(config, "head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim {head_dim} is odd; rotary embedding needs pairs")
    max_positions = _positive(config, "max_position_embeddings")
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    if dtype not in DTYPES:
        raise ModelError(f"config.json: dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    epsilon = config.get("rms_norm_eps")
    if not isinstance(epsilon, float | int) or epsilon <= 0:
        raise ModelError(f"config.json: rms_norm_eps is {epsilon!r}; a positive number is needed")
    attention_bias = bool(config.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=_positive(config, "intermediate_size"),
        num_layers=_positive(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_epsilon=float(epsilon),
        max_positions=max_positions,
        rope=_parse_rope(config, max_positions),
        qkv_bias=family.qkv_bias or (family.output_bias and attention_bias),
        output_bias=family.output_bias and attention_bias,
        mlp_bias=architecture == "LlamaForCausalLM" and bool(config.get("mlp_bias", False)),
        qk_norm=family.qk_norm,
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        sliding_window=_parse_window(config, family, max_positions),
        dtype=DTYPES[dtype],
        eos_token_ids=_merge_eos(config.get("eos_token_id"), generation.get("eos_token_id")),
    )


def _positive(config: dict[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if value is None:
        raise ModelError(f"config.json: {name} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"config.json: {name} is {value!r}; a positive integer is needed")
    return value


def _parse_rope(config: dict[str, Any], max_positions: int) -> RopeConfig:
    # transformers 5 writes all of it in rope_parameters; older releases rope_theta beside rope_scaling
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"config.json: rope settings are {rope!r}; an object is needed")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ModelError(f"config.json: partial_rotary_factor {partial} is not supported")

    def number(name: str, default: float | None = None) -> float:
        value = rope.get(name, default)
        if not isinstance(value, float | int) or isinstance(value, bool) or value <= 0:
            raise ModelError(f"config.json: rope field {name} is {value!r}; a positive number is needed")
        return float(value)

    theta = number("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    match kind:
        case "default":
            return RopeConfig(theta)
        case "linear":
            return RopeConfig(theta, "linear", number("factor"))
        case "llama3":
            return RopeConfig(
                theta,
                "llama3",
                number("factor"),
                number("low_freq_factor"),
                number("high_freq_factor"),
                int(number("original_max_position_embeddings", max_positions)),
            )
        case _:
            raise ModelError(
                f"config.json: rope type {kind!r} is not supported; supported: default, linear, llama3"
            )


def _parse_window(config: dict[str, Any], family: Family, max_positions: int) -> int | None:
    window = config.get("sliding_window")
    if family.window_switch and not config.get("use_sliding_window", False):
        window = None
    if window is None or config["architectures"][0] == "LlamaForCausalLM":
        return None
    window = _positive(config, "sliding_window")
    num_layers = _positive(config, "num_hidden_layers")
    layers = set(config.get("layer_types") or ())
    first_windowed = config.get("max_window_layers", 0) if family.window_switch else 0
    if layers == {"full_attention"} or (not layers and first_windowed >= num_layers):
        return None
    if len(layers) > 1 or (not layers and first_windowed > 0):
        raise ModelError("config.json: sliding_window on some of the layers only is not supported")
    return window if window < max_positions else None


def _merge_eos(*values: Any) -> tuple[int, ...]:
    merged: dict[int, None] = {}
    for value in values:
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int):
                merged[token] = None
    return tuple(merged)
