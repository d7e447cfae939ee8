"""The wired start: a model that was never trained already repeats what it saw."""

from __future__ import annotations

import pytest
import torch

from drivers.training.model import Llama, Shape, base_shape, draft_shape
from drivers.training.wiring import wire_induction


def repeats(shape: Shape, wired: bool) -> float:
    """Part of the second half of a repeated random sequence that the model predicts."""
    torch.manual_seed(0)
    model = Llama(shape)
    if wired:
        wire_induction(model)
    ids = torch.randint(0, shape.vocab_size, (1, 60)).repeat(1, 2)
    with torch.no_grad():
        guess = model(ids)[0].argmax(-1)
    return (guess[61:-1] == ids[0, 62:]).float().mean().item()


@pytest.mark.parametrize(("shape", "floor"), [(base_shape(2560), 0.5), (draft_shape(2560), 0.1)])
def test_wired_model_repeats(shape: Shape, floor: float) -> None:
    """Chance is 1 in 2,560; a random start has it, a wired one is far above."""
    assert repeats(shape, wired=False) < 0.05
    assert repeats(shape, wired=True) > floor
