"""How often tokens occurred, as a device has it: a row for each space whose penalties ask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from attrs import frozen

from drivers.ops.transfer import send
from native.sampling import Draw

__all__ = ["Counted", "count_seen", "write_counts"]

NOTHING, SEEN, OUTPUT = -1, 0, 1  # what a token that is drawn is noted as


@frozen(eq=False)
class Counted:
    """Counts for rows of logits.

    Attributes:
        counts: [num_places, vocab_size], int32, on the device: 0 for a token that did not occur, else 1, and
            1 more for each time in the output.
        places: for each row of logits, its row of counts; -1: it has none.
        notes: for each row of logits, what its token is noted as there: NOTHING, SEEN or OUTPUT.
    """

    counts: torch.Tensor
    places: Sequence[int]
    notes: Sequence[int]


def write_counts(counts: torch.Tensor, places: Sequence[int], draws: Sequence[Draw]) -> None:
    """Set rows of counts to what draws say, without waiting for the device; each place is there once."""
    if not places:
        return
    counts.index_fill_(0, send(torch.tensor(places), counts.device), 0)
    of_row = np.repeat(np.array(places, dtype=np.int64), [len(draw.seen_ids) for draw in draws])
    ids = np.concatenate([draw.seen_ids for draw in draws])
    values = 1 + np.concatenate([draw.num_output for draw in draws])
    entries = send(torch.from_numpy(np.stack((of_row, ids, values))), counts.device)
    counts[entries[0], entries[1]] = entries[2].to(counts.dtype)


def count_seen(draws: Sequence[Draw | None], vocab_size: int, device: torch.device) -> Counted:
    """Counts of what draws themselves say, to be used once."""
    asking = [(row, draw) for row, draw in enumerate(draws) if draw is not None and len(draw.seen_ids)]
    counts = torch.empty((len(asking), vocab_size), dtype=torch.int32, device=device)
    write_counts(counts, range(len(asking)), [draw for _, draw in asking])
    places = [-1] * len(draws)
    for place, (row, _) in enumerate(asking):
        places[row] = place
    return Counted(counts, places, [NOTHING] * len(draws))
