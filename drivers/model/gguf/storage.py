"""How a GGUF file stores the numbers of a tensor: which formats there are, and which of them can be read."""

from __future__ import annotations

from attrs import frozen

__all__ = ["REFUSED", "STORAGE", "Storage"]


@frozen
class Storage:
    """Blocks along a row, each of so many values and bytes."""

    name: str
    block_values: int
    block_bytes: int


STORAGE = {
    0: Storage("F32", 1, 4), 1: Storage("F16", 1, 2), 30: Storage("BF16", 1, 2),
    2: Storage("Q4_0", 32, 18), 3: Storage("Q4_1", 32, 20), 6: Storage("Q5_0", 32, 22),
    7: Storage("Q5_1", 32, 24), 8: Storage("Q8_0", 32, 34), 10: Storage("Q2_K", 256, 84),
    11: Storage("Q3_K", 256, 110), 12: Storage("Q4_K", 256, 144), 13: Storage("Q5_K", 256, 176),
    14: Storage("Q6_K", 256, 210),
}  # fmt: skip
REFUSED = {  # so that a message can say what it was
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
