"""The generators: deterministic by seed, and right by construction."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from drivers.builtin import base_path
from drivers.training import dialogue, tasks
from drivers.training.document import Document
from drivers.training.evaluate import accepted_lengths, encoder, probe
from drivers.training.mixture import BATCH_TOKENS, STAGES, stage_at

TOKENIZER = Tokenizer.from_file(str(base_path() / "tokenizer.json"))
ENCODE = encoder(TOKENIZER)
PROSE = [f"It was a quiet day, and nobody in the {w} said a word." for w in ("house", "town", "ship", "army")]
MAKERS = [
    tasks.recall_stream,
    tasks.recall_haystack,
    tasks.recall_notes,
    tasks.copy_document,
    dialogue.chat_document,
]


def text_of(doc: Document) -> str:
    return TOKENIZER.decode(doc.ids, skip_special_tokens=False)


@pytest.mark.parametrize("make", MAKERS)
def test_same_seed_same_document(make: Callable[..., Document]) -> None:
    """A document depends on its random stream alone, starts with `<s>`, and weighs every token."""
    one, two = (make(random.Random(7), ENCODE, PROSE, 300) for _ in range(2))
    assert one.ids == two.ids
    assert one.weights == two.weights
    assert len(one.ids) == len(one.weights)
    assert one.ids[0] == TOKENIZER.token_to_id("<s>")
    assert any(one.weights)


@pytest.mark.parametrize("seed", range(8))
def test_recall_answers_are_the_facts(seed: int) -> None:
    """Every answer in a chat repeats what was told before it."""
    doc = tasks.recall_notes(random.Random(seed), ENCODE, PROSE, 400)
    head, *answers = text_of(doc).split("<|assistant|>The ")
    assert answers
    for answer in answers:
        assert f"The {answer.split('<|end|>')[0]}" in head


@pytest.mark.parametrize("style", tasks.STYLES)
@pytest.mark.parametrize("distance", [100, 700])
def test_probe_distance(style: str, distance: int) -> None:
    """A probe's fact lies about as far back as asked, and the answer is the told value."""
    doc, start = probe(random.Random(3), ENCODE, PROSE, distance, style)
    answer = TOKENIZER.decode(doc.ids[start:])
    value = re.findall(r"\w+", answer)[-1]
    before = TOKENIZER.decode(doc.ids[:start], skip_special_tokens=False)
    back = len(ENCODE(before[before.index(value) + len(value) :]))
    assert distance - 80 < back < distance + 80


def test_copies_are_exact() -> None:
    """Each assistant turn of a copy chat is the user's text."""
    rng = random.Random(0)
    found = 0
    while found < 5:
        text = text_of(tasks.copy_document(rng, ENCODE, PROSE, 300))
        for asked, said in re.findall(r"<\|user\|>[^:]*: (.*?)<\|end\|><\|assistant\|>(.*?)<\|end\|>", text):
            assert asked == said
            found += 1


def test_arithmetic_is_right() -> None:
    """Sums and differences are what Python says."""
    for seed in range(50):
        _, answer = dialogue.arithmetic(random.Random(seed))
        left, right = answer.split(" = ")
        assert eval(left) == int(right)


@pytest.mark.parametrize("make", dialogue.CHECKED)
def test_turns_are_short_lines(make: Callable[[random.Random], tuple[str, str]]) -> None:
    """Questions and answers are single short lines of text."""
    for seed in range(20):
        for text in make(random.Random(seed)):
            assert 0 < len(text) < 130
            assert "\n" not in text


def test_rows_fill_batches() -> None:
    """Each stage's row length divides the batch, and rows only grow."""
    lengths = [stage_at(p / 100).length for p in range(101)]
    assert lengths == sorted(lengths)
    assert lengths[-1] == 2048
    assert all(BATCH_TOKENS % n == 0 for n in lengths)
    assert all(sum(stage.shares.values()) == pytest.approx(1) for stage in STAGES)


def test_accepted_lengths() -> None:
    """A round ends at the first disagreement or after the look-ahead; the base's token follows."""
    assert accepted_lengths([1] * 10, [1] * 10) == [4, 4]
    assert accepted_lengths([1, 2, 3, 4], [1, 9, 9, 4]) == [1, 0, 1]
