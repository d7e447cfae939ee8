"""Filling in: how a model that was trained for it is shown a text with a hole.

Such a model knows a few special tokens that mark what comes before the hole, what comes after it, and the
place where it is to write what is missing (Bavarian et al. 2022). Which tokens these are, its tokenizer says.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from syscalls.text.tokenizer import TextModel

# Before, after, and in between the hole; each row is a family. Mistral's code models see what comes after
# first, and have no mark in between.
MARKS: tuple[tuple[str, str, str | None], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
    ("[PREFIX]", "[SUFFIX]", None),  # Codestral
)
REPOSITORIES = ("<|repo_name|>", "<reponame>", "<repo_name>")
FILES = ("<|file_sep|>", "<file_sep>", "<|file_separator|>")
ENDS = ("<|fim_pad|>", "<fim_pad>", "<fim-pad>", "▁<EOT>", "<|endoftext|>", "<|cursor|>")


@frozen
class FillIn:
    """The tokens that a model marks a hole with."""

    before: int
    after: int
    middle: int | None  # None: what comes after is shown first, and the model goes on from what comes before
    repository: int | None = None  # opens a project of several files
    file: int | None = None  # opens each of them
    ends: tuple[int, ...] = ()  # that end what is filled in, beside the model's own end tokens
    start: tuple[int, ...] = ()  # what every text begins with

    def join(self, before: Sequence[int], after: Sequence[int]) -> list[int]:
        """The prompt for what is missing between two texts in tokens, neither of which has special ones."""
        if self.middle is None:
            return [*self.start, self.after, *after, self.before, *before]
        return [*self.start, self.before, *before, self.after, *after, self.middle]


def find_fill_in(text: TextModel) -> FillIn | None:
    """Read from a tokenizer how its model is shown a hole; None: it was not trained for it."""
    known = text.added_token_ids([mark for row in MARKS for mark in row if mark is not None])
    for before, after, middle in MARKS:
        if before in known and after in known and (middle is None or middle in known):
            others = text.added_token_ids([*REPOSITORIES, *FILES, *ENDS])
            repository, file = (
                next((others[mark] for mark in marks if mark in others), None)
                for marks in (REPOSITORIES, FILES)
            )
            ends = [others[mark] for mark in ENDS if mark in others]
            ends += [mark for mark in (repository, file) if mark is not None]
            return FillIn(
                before=known[before],
                after=known[after],
                middle=None if middle is None else known[middle],
                repository=repository,
                file=file,
                ends=tuple(dict.fromkeys(ends)),
                start=_find_start(text),
            )
    return None


def _find_start(text: TextModel) -> tuple[int, ...]:
    """The begin token, where the tokenizer puts one before every text."""
    bos = text.special_tokens.get("bos_token")
    whole = text.encode("a")
    first = None if bos is None else text.tokenizer.token_to_id(bos)
    return (first,) if first is not None and whole[:1] == [first] else ()
