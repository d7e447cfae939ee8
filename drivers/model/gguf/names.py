"""What Hugging Face calls the tensors of a GGUF file."""

from __future__ import annotations

import re

__all__ = ["hugging_face_name"]

ENDS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAME = re.compile(r"(?:blk\.(\d{1,6})\.)?(\w+)\.(weight|bias)", re.ASCII)


def hugging_face_name(name: str) -> str:
    """Translate a tensor's name; one that has no counterpart stays as it is, and will find no place."""
    found = NAME.fullmatch(name)
    if found is None:
        return name
    layer, part, kind = found.groups()
    if layer is None:
        return f"{ENDS[part]}.{kind}" if part in ENDS else name
    return f"model.layers.{int(layer)}.{PARTS[part]}.{kind}" if part in PARTS else name
