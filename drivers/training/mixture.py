"""What one training step sees: rows of prose and tasks, drawn by (seed, step) alone.

Because a batch depends on nothing else, a run that resumes from a checkpoint sees the same data.
The curriculum grows the rows: recall and copying are learned cheaply over short rows, then stretched.
"""

from __future__ import annotations

import random

import attrs
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from drivers.training.corpus import Book, sentences
from drivers.training.dialogue import chat_document
from drivers.training.tasks import copy_document, recall_document

BATCH_TOKENS = 8192
EARLY = {"en": 0.45, "ja": 0.05, "recall": 0.20, "copy": 0.08, "chat": 0.22}
LATE = {
    "en": 0.30,
    "ja": 0.04,
    "recall": 0.32,
    "copy": 0.12,
    "chat": 0.22,
}  # the books repeat, the tasks do not


@attrs.frozen
class Stage:
    """From `start` (a part of the run) on: rows of `length` tokens, drawn by `shares`."""

    start: float
    length: int
    shares: dict[str, float]


STAGES = (Stage(0.00, 256, EARLY), Stage(0.35, 512, EARLY), Stage(0.58, 1024, EARLY), Stage(0.76, 2048, LATE))


def stage_at(progress: float) -> Stage:
    """The stage at `progress` in [0, 1] through the run."""
    return [stage for stage in STAGES if progress >= stage.start][-1]


class Mixture:
    """The data of a run. Prose is encoded once; tasks are generated as they are needed."""

    def __init__(self, tokenizer: Tokenizer, books: list[Book], seed: int) -> None:
        self.seed = seed
        self.encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.bos = tokenizer.token_to_id("<s>")
        self.prose = {
            language: np.array(
                [i for b in books if b.language == language for i in self.encode(b.train)], dtype=np.int32
            )
            for language in ("en", "ja")
        }
        self.sentences = [s for b in books if b.language == "en" for s in sentences(b.train)]

    def row(
        self, rng: random.Random, num_tokens: int, shares: dict[str, float]
    ) -> tuple[list[int], list[float]]:
        """`num_tokens + 1` token ids and the weight of each."""
        kind = rng.choices(list(shares), list(shares.values()))[0]
        if kind in self.prose:
            text = self.prose[kind]
            start = rng.randrange(len(text) - num_tokens)
            return [self.bos, *text[start : start + num_tokens].tolist()], [1.0] * (num_tokens + 1)
        make = {"recall": recall_document, "copy": copy_document, "chat": chat_document}[kind]
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= num_tokens:
            doc = make(rng, self.encode, self.sentences, num_tokens - len(ids))
            ids += doc.ids
            weights += doc.weights
        return ids[: num_tokens + 1], weights[: num_tokens + 1]

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and weights of a step, each `(rows, row_length)`."""
        rng = random.Random(f"{self.seed}/{step}")
        stage = stage_at(progress)
        rows = [self.row(rng, stage.length, stage.shares) for _ in range(BATCH_TOKENS // stage.length)]
        ids = torch.tensor([r[0] for r in rows])
        weights = torch.tensor([r[1] for r in rows])
        return ids[:, :-1], ids[:, 1:], weights[:, 1:].contiguous()
