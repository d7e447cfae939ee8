"""Up to which token a device has counted for each space: it goes on from there, or the host sends all."""

from __future__ import annotations

from attrs import frozen

from native.sampling import Tally

__all__ = ["Extents"]


@frozen
class _Extent:
    """What the device has counted for one space."""

    owner: object
    num_tokens: int


class Extents:
    """For each space that the device counts for: whose tokens, and how many of them."""

    def __init__(self) -> None:
        self._extents: dict[int, _Extent] = {}  # by space
        self._coming: dict[int, _Extent] = {}  # once the step is launched that was prepared

    def begin(self) -> None:
        """Prepare a step. Where no `confirm` follows, the host sends again what that step is about."""
        self._coming.clear()

    def must_send(self, space: int, tally: Tally | None) -> bool:
        """Whether the host has to send what a space's next draw depends on. Without a tally: always.

        Raises:
            RuntimeError: neither side knows a token that the draw asks for.
        """
        known = self._extents.pop(space, None)
        if tally is None:
            return True
        is_stale = known != _Extent(tally.owner, tally.position)
        if is_stale and tally.num_known != tally.position:
            raise RuntimeError(
                f"space {space} draws at {tally.position}, and {tally.num_known} tokens are counted"
            )
        self._coming[space] = _Extent(tally.owner, tally.position + 1)
        return is_stale

    def confirm(self) -> None:
        """The step that was prepared is launched."""
        self._extents |= self._coming
        self._coming.clear()

    def forget(self, space: int) -> None:
        """What was launched last for a space gave no token."""
        self._extents.pop(space, None)
