"""What only the native forward pass does: choices within it, any page table."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from model_zoo import Memory, make_native, random_model

from drivers.model.native_transformer import explain_unfit
from drivers.ops.batch import ContiguousPages
from llmos.device import Row
from native.sampling import Choice, Draw, sample

ROWS = [Row(asid, 0, tuple(range(asid, asid + 3 + 5 * asid)), True) for asid in range(6)]


@pytest.mark.parametrize("vocab_size", [101, 1700])
def test_choices_are_those_of_the_logits(vocab_size):
    """Greedy and drawn rows, mixed anyhow: each gets what its logits give alone, on any threads.

    1,700 tokens are several items with threads, and one item that is surveyed in pieces without.
    """
    draws = [Draw(temperature=0.9, uniform=0.1 + 0.15 * i, top_k=20 * (i % 2), num_top=i) for i in range(6)]
    logits = Memory(random_model(native_threads=1, vocab_size=vocab_size), 6).run(*ROWS).numpy()
    for num_threads in (1, 2, 3):
        model = random_model(native_threads=num_threads, vocab_size=vocab_size)
        for asking in (0, 63, 0b101010, 0b000111):
            asked = [draw if asking >> i & 1 else None for i, draw in enumerate(draws)]
            memory = Memory(model, 6)
            choices = model.choose(ROWS, memory.pages, asked)
            for choice, draw, row in zip(choices, asked, logits, strict=True):
                assert choice == (sample(row, draw) if draw else Choice(int(row.argmax())))


@pytest.mark.parametrize("vocab_size", [101, 1700])
@pytest.mark.parametrize("draw", [None, Draw(), Draw(temperature=1.0, uniform=0.5)])
def test_logits_that_are_not_finite_are_counted(draw, vocab_size):
    """A row whose hidden state is NaN has none that are finite; the rows beside it keep their choices."""
    model = random_model(native_threads=1, vocab_size=vocab_size)
    later = [Row(row.asid, len(row.tokens), (7,), True) for row in ROWS]
    results = []
    for is_poisoned in (False, True):
        memory = Memory(model, 6)
        memory.run(*ROWS)
        if is_poisoned:
            memory.pages.layers[0].keys[memory.page_index(2, 0)] = torch.nan
        results.append(model.choose(later, memory.pages, [draw] * 6))
    good, poisoned = results
    assert not any(choice.num_bad for choice in good)
    assert [choice.num_bad for choice in poisoned] == [0, 0, vocab_size, 0, 0, 0]
    assert [*poisoned[:2], *poisoned[3:]] == [*good[:2], *good[3:]]


def test_a_bad_weight_of_the_vocabulary_shows():
    """One weight of the head that is NaN makes one logit bad, asked for or not, and is seen."""
    reference = random_model()
    weights = reference._weights
    head = weights.head.clone()
    head[13, 5] = torch.nan
    model = make_native(reference.config, evolve(weights, head=head), reference.info, 1)
    memory = Memory(model, 6)
    asked = [None, Draw(temperature=1.0, uniform=0.5)] * 3
    choices = model.choose(ROWS, memory.pages, asked)
    assert [choice.num_bad for choice in choices] == [1] * 6


def test_pages_by_formula_are_pages_by_table():
    """A closed formula and a table of the same pages give the same bits."""
    model = random_model(native_threads=2)
    memory = Memory(model, 6)
    formula = ContiguousPages(memory.pages_per_space)
    by_formula = model.run(ROWS, evolve(memory.pages, index=formula))
    by_table = model.run(ROWS, evolve(memory.pages, index=lambda asid, vpn: formula(asid, vpn)))
    assert torch.equal(by_formula, by_table)


def test_what_kernels_cannot_serve_is_explained():
    """A head of 12 dimensions is refused by name; a head of 16 is not."""
    config = random_model().config
    assert explain_unfit(config) is None
    assert "head_dim 12" in explain_unfit(evolve(config, head_dim=12))
