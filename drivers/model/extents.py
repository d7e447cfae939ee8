"""How far what a device keeps of each space goes: it goes on by itself, or the host sends all of it again."""

from __future__ import annotations

from attrs import frozen

from native.sampling import Tally

__all__ = ["Extents"]


@frozen
class _Extent:
    """Of one space."""

    owner: object
    num_tokens: int


class Extents:
    """For some spaces: whose tokens the device has taken into account, and how many."""

    def __init__(self) -> None:
        self._extents: dict[int, _Extent] = {}  # by space
        self._coming: dict[int, _Extent] = {}  # once the step is launched that was prepared

    def begin(self) -> None:
        """Prepare a step. Where no `confirm` follows, the host sends again what that step is about."""
        self._coming.clear()

    def must_send(self, space: int, tally: Tally | None) -> bool:
        """Whether the host has to send what a space's next draw goes on from; None: in any case.

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
