"""The likelihood of known tokens: what a forward pass of the same model says, in any chunks and company."""

from __future__ import annotations

import pytest
import torch
from model_zoo import Memory, random_model

from drivers.model.transformer import explain_bad_row
from llmos.device import Row
from native.sampling import Draw, sample

TOKENS = tuple((3 * i * i + 5) % 101 for i in range(40))


@pytest.mark.parametrize("native_threads", [0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 7, 39])
def test_scores_are_those_of_a_direct_pass(native_threads: int, chunk: int) -> None:
    """Each position's log-probabilities are those of the logits of a prompt that ends there, bit by bit."""
    model = random_model(native_threads=native_threads)
    logits = [
        Memory(model).run(Row(0, 0, TOKENS[: end + 1], True))[0].numpy() for end in range(len(TOKENS) - 1)
    ]
    memory, choices = Memory(model, 2), []
    other = Row(1, 0, (4, 5, 6), True)
    for start in range(0, len(TOKENS) - 1, chunk):
        tokens = TOKENS[start : start + chunk]
        targets = TOKENS[start + 1 : start + chunk + 1]
        row = Row(0, start, tokens, False, targets)
        draws = [Draw(given=token, num_top=4) for token in targets]
        found = model.choose((row, other), memory.pages, [*draws, None])
        assert len(found) == len(targets) + 1
        choices += found[: len(targets)]
        assert found[-1].token == int(Memory(model).run(Row(0, 0, (4, 5, 6), True))[0].argmax())
    assert len(choices) == len(logits)
    for choice, row, token in zip(choices, logits, TOKENS[1:], strict=True):
        expected = torch.log_softmax(torch.from_numpy(row).double(), dim=0)
        assert choice.token == token
        assert choice.logprob == pytest.approx(expected[token].item(), abs=1e-9)
        assert choice.rank == int((expected > expected[token]).sum()) + 1
        assert list(choice.top_ids) == expected.topk(4).indices.tolist()
        if native_threads:
            assert choice == sample(row, Draw(given=token, num_top=4))


def test_targets_that_cannot_be_are_named() -> None:
    """More of them than tokens, or outside the vocabulary."""
    model = random_model()
    for targets in ((1, 2, 3), (101,), (-1,)):
        problem = explain_bad_row(Row(0, 0, (1, 2), False, targets), model.config, 100)
        assert problem == f"{len(targets)} targets for 2 tokens, in a vocabulary of 101"
