"""Mirostat's mu of each space, as a device has it: the next draw goes on from it before the host knows it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drivers.model.extents import Extents
from drivers.ops.transfer import send
from native.sampling import Draw

__all__ = ["MirostatTable"]


class MirostatTable:
    """A number for each space.

    Args:
        max_spaces: asids are below it.
        device: where tokens are drawn.
    """

    def __init__(self, max_spaces: int, device: torch.device) -> None:
        self._mus = torch.zeros(max_spaces, dtype=torch.float64, device=device)
        self._extents = Extents()
        self._asids: torch.Tensor | None = None  # of the step that was prepared
        self.num_written = 0  # numbers that the host sent

    def prepare(self, draws: Sequence[Draw | None], spaces: Sequence[int | None]) -> torch.Tensor | None:
        """Mu of each draw by mirostat, in order, for the step that is launched next; None: there are none.

        `confirm` follows when it is launched. Where it does not, the host sends those numbers again.

        Args:
            draws: one for each row of logits.
            spaces: whose row of logits it is; None: nobody's.

        Raises:
            RuntimeError: neither side knows a token that a draw asks for.
        """
        asids, written = [], []
        self._extents.begin()
        self._asids = None
        for draw, space in zip(draws, spaces, strict=True):
            if draw is None or draw.mirostat is None:
                continue
            assert space is not None  # nobody else draws by mirostat
            asids.append(space)
            if self._extents.must_send(space, draw.mirostat.tally):
                written.append((space, draw.mirostat.mu))
        if not asids:
            return None
        if written:
            places = send(torch.tensor([space for space, _ in written]), self._mus.device)
            values = torch.tensor([mu for _, mu in written], dtype=torch.float64)
            self._mus[places] = send(values, self._mus.device)
            self.num_written += len(written)
        self._asids = send(torch.tensor(asids), self._mus.device)
        return self._mus[self._asids]

    def confirm(self, mus: torch.Tensor | None) -> None:
        """The step that was prepared is launched; what its draws have come to, in their order."""
        if self._asids is not None and mus is not None:
            self._mus[self._asids] = mus
        self._extents.confirm()

    def forget(self, space: int) -> None:
        """What was launched last for a space gave no token."""
        self._extents.forget(space)
