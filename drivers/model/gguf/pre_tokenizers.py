"""How a byte-level vocabulary's text is cut into words before merging, by the name that a GGUF file gives.

A file holds only the name. The patterns are those of the models' own tokenizers; a name that is not here is
refused, because a wrong cut gives wrong tokens without any error.
"""

from __future__ import annotations

from attrs import frozen

__all__ = ["PRE_TOKENIZERS", "PreTokenizer"]

CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + WORDS + r"|\p{N}{1,3}" + REST
QWEN2 = CONTRACTIONS + WORDS + r"|\p{N}" + REST
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@frozen
class PreTokenizer:
    """Patterns applied one after another, each cutting the pieces that the one before left."""

    patterns: tuple[str, ...]
    takes_whole_words: bool = False  # a word that is a token is that token, whatever the merges say
    begins_text: bool = False  # a text begins with the BOS token unless the file says otherwise
    composes: bool = False  # text is brought to Unicode's composed form (NFC) first


BY_DIGIT = PreTokenizer((r"\p{N}", GPT2))
GPT2_LIKE = PreTokenizer((GPT2,))
LLAMA3_LIKE = PreTokenizer((LLAMA3,), takes_whole_words=True, begins_text=True)
QWEN2_LIKE = PreTokenizer((QWEN2,), composes=True)

PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt"), GPT2_LIKE),
    **dict.fromkeys(("starcoder", "refact", "command-r", "smollm", "codeshell"), BY_DIGIT),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral"), LLAMA3_LIKE),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2_LIKE),
    "tekken": PreTokenizer((TEKKEN,), takes_whole_words=True, begins_text=True),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    "deepseek-v3": PreTokenizer((r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3)),
}
