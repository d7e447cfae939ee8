"""What only the native forward pass does: greedy choices without logits, any page table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from model_zoo import Memory, make_native, random_model

from drivers.model.batch import ContiguousPages
from drivers.model.native_transformer import explain_unfit
from llmos.device import Row

ROWS = [Row(asid, 0, tuple(range(asid, asid + 3 + 5 * asid)), True) for asid in range(6)]


def test_greedy_choices_are_those_of_the_logits():
    """Whichever rows ask for logits, every row's best token is the lowest id of its largest logit."""
    model = random_model(native_threads=2)
    logits = Memory(model, 6).run(*ROWS).numpy()
    for asking in (0, 63, 0b101010, 0b000111):
        needs = [bool(asking >> i & 1) for i in range(6)]
        memory = Memory(model, 6)
        scores = model.score(ROWS, memory.page_index, memory.k_pages, memory.v_pages, needs)
        assert list(scores.best) == logits.argmax(axis=1).tolist()
        assert not any(scores.num_bad)
        for need, given, expected in zip(needs, scores.logits, logits, strict=True):
            assert (given is not None) == need
            assert given is None or np.array_equal(given, expected)


@pytest.mark.parametrize("needs_logits", [False, True])
def test_logits_that_are_not_finite_are_counted(needs_logits):
    """A row whose hidden state is NaN has none that are finite; the rows beside it keep their bits."""
    model = random_model(native_threads=1)
    later = [Row(row.asid, len(row.tokens), (7,), True) for row in ROWS]
    results = []
    for is_poisoned in (False, True):
        memory = Memory(model, 6)
        memory.run(*ROWS)
        if is_poisoned:
            memory.k_pages[0][memory.page_index(2, 0)] = torch.nan
        scores = model.score(later, memory.page_index, memory.k_pages, memory.v_pages, [needs_logits] * 6)
        kept = [None if row is None else row.copy() for row in scores.logits]
        results.append((scores.best, scores.num_bad, kept))
    (good_best, good_bad, good_logits), (best, num_bad, logits) = results
    assert not any(good_bad)
    assert list(num_bad) == [0, 0, 101, 0, 0, 0]
    for i in (0, 1, 3, 4, 5):
        assert best[i] == good_best[i]
        assert not needs_logits or np.array_equal(logits[i], good_logits[i])


def test_a_bad_weight_of_the_vocabulary_shows():
    """One weight of the head that is NaN makes one logit bad, asked for or not, and is seen."""
    reference = random_model()
    weights = reference._weights
    head = weights.head.clone()
    head[13, 5] = torch.nan
    model = make_native(reference.config, evolve(weights, head=head), reference.info, 1)
    memory = Memory(model, 6)
    scores = model.score(ROWS, memory.page_index, memory.k_pages, memory.v_pages, [False] * 6)
    assert list(scores.num_bad) == [1] * 6


def test_pages_by_formula_are_pages_by_table():
    """A closed formula and a table of the same pages give the same bits."""
    model = random_model(native_threads=2)
    memory = Memory(model, 6)
    formula = ContiguousPages(memory.pages_per_space)
    by_formula = model.run(ROWS, formula, memory.k_pages, memory.v_pages)
    by_table = model.run(ROWS, lambda asid, vpn: formula(asid, vpn), memory.k_pages, memory.v_pages)
    assert torch.equal(by_formula, by_table)


def test_what_kernels_cannot_serve_is_explained():
    """A head of 12 dimensions is refused by name; a head of 16 is not."""
    config = random_model().config
    assert explain_unfit(config) is None
    assert "head_dim 12" in explain_unfit(evolve(config, head_dim=12))
