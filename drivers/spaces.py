"""The spaces of a session, beside their pages: the token that each sampled last, and what failed."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from drivers.backend import Backend, outlive
from drivers.note import note
from drivers.page_table import ArenaError
from drivers.session import Session
from drivers.step_results import StepResults
from llmos.device import Bind, CopyPage, Edit, Map, Release, Reserve, Row, Step

__all__ = ["Spaces", "explain_no_token"]


@attrs.define(eq=False)
class Spaces:
    """Applies edits, and tells good rows from bad ones. A failed edit breaks its space until the release."""

    session: Session
    backend: Backend
    _sampled: dict[int, tuple[int, int]] = attrs.field(factory=dict, init=False)  # asid: position, token
    _broken: dict[int, str] = attrs.field(factory=dict, init=False)  # asid: what failed

    def note_sampled(self, sampled: dict[int, tuple[int, int]]) -> None:
        """Spaces have new tokens: for each its position, and the token."""
        self._sampled.update(sampled)

    def forget_sampled(self, asids: Iterable[int]) -> None:
        """The rows of some spaces failed: whatever they sampled last is no token."""
        for asid in asids:
            self._sampled.pop(asid, None)

    def has_sampled(self, asid: int, position: int) -> bool:
        """Whether a space's last token is that of a position."""
        return self._sampled.get(asid, (-1, -1))[0] == position

    def find_good_rows(self, step: Step, results: StepResults) -> dict[int, Row]:
        """Apply edits; the rows that can run, by index, without a token where only the device knows it.

        Raises:
            Exception: the device is beyond use.
        """
        good: dict[int, Row] = {}
        failed = self._apply(step.edits)
        seen: set[int] = set()
        for index, row in enumerate(step.rows):
            resolved = self._resolve(row)
            message = failed or self._explain_bad_row(row, resolved, row.asid in seen)
            seen.add(row.asid)
            if message is None and resolved is not None:
                good[index] = resolved
            else:
                results.faults[index] = message or "it has no tokens"
        return good

    def fill_in(self, rows: tuple[Row, ...], good: dict[int, Row], results: StepResults) -> dict[int, Row]:
        """Good rows, all with tokens: no step is in flight, so what was sampled is known."""
        filled: dict[int, Row] = {}
        for index, row in good.items():
            if (resolved := self._resolve(row)) is not None:
                filled[index] = resolved
            else:
                results.faults[index] = explain_no_token(rows[index])
        return filled

    def _apply(self, edits: tuple[Edit, ...]) -> str | None:
        """Apply every edit; return why the whole step cannot run, if so. Raises when the device is lost."""
        failed = None
        for edit in edits:
            try:
                self._apply_one(edit)
            except Exception as error:  # the edits behind it must still be applied
                if not isinstance(error, ArenaError | OSError):
                    outlive(self.backend, error)
                message = f"{type(edit).__name__}: {error}"
                note(message)
                if isinstance(edit, CopyPage):
                    failed = message  # it does not say whose page it is
                else:
                    self._broken[edit.asid] = message
        return failed

    def _apply_one(self, edit: Edit) -> None:
        session = self.session
        match edit:
            case Map():
                session.arena.map(edit)
            case Bind():
                session.pooler.bind(edit)
                if edit.pooling is None:
                    id = edit.grammar
                    session.sampler.bind(edit, None if id is None else session.grammars.get(id))
            case Reserve(asid):
                session.arena.reserve(asid)
            case Release(asid):
                self._broken.pop(asid, None)
                self._sampled.pop(asid, None)
                session.sampler.release(asid)
                session.pooler.release(asid)
                if session.pipeline is not None:
                    session.pipeline.release(asid)
                session.arena.release(asid)
            case CopyPage():
                session.arena.copy_page(edit)

    def _resolve(self, row: Row) -> Row | None:
        """Fill in the token that the space sampled last; none, where a step in flight samples it.

        Returns:
            The row, or None: nothing was sampled for this position, or will be.
        """
        if row.tokens:
            return row
        position, token = self._sampled.get(row.asid, (-1, -1))
        if position == row.start:
            return Row(row.asid, row.start, (token,), row.sample)
        pipeline = self.session.pipeline
        is_coming = pipeline is not None and pipeline.is_coming(row.asid, row.start)
        return Row(row.asid, row.start, (), row.sample) if is_coming else None

    def _explain_bad_row(self, row: Row, resolved: Row | None, is_second: bool) -> str | None:
        """Say why a row cannot run, or None."""
        session = self.session
        if (message := self._broken.get(row.asid)) is not None:
            return message
        if is_second:
            return f"space {row.asid} has two rows in one step"
        if resolved is None:
            return explain_no_token(row)
        known = resolved if resolved.tokens else Row(row.asid, row.start, (0,), row.sample)
        if (message := session.model.explain_bad_row(known)) is not None:
            return message
        if (message := session.pooler.explain_bad_row(row)) is not None:
            return message
        num_pages = session.arena.kv.num_pages(row.start + row.num_tokens)
        try:
            session.arena.finish_maps(row.asid, num_pages)
        except (ArenaError, OSError) as error:
            return f"Map: {error}"
        if (num_mapped := session.arena.num_mapped_pages(row.asid)) < num_pages:
            return f"space {row.asid} needs {num_pages} pages, and {num_mapped} are mapped"
        return None


def explain_no_token(row: Row) -> str:
    """Say that a row asks for a token that was never sampled."""
    return f"space {row.asid} has no sampled token for position {row.start}"
