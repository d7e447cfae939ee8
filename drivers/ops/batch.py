"""A step's rows as flat tensors: what every layer of the forward pass reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from attrs import frozen

from drivers.ops.transfer import send

__all__ = ["Batch", "ContiguousPages", "PageIndex", "ResolvedRow", "Span", "build_batch"]

PageIndex = Callable[[int, int], int]  # (asid, vpn) -> index into dimension 0 of every layer's page tensors


@frozen
class ContiguousPages:
    """A PageIndex that is a closed formula: the pages of a space lie one behind the other."""

    pages_per_space: int

    def __call__(self, asid: int, vpn: int) -> int:
        """Where a page lies."""
        return asid * self.pages_per_space + vpn


class ResolvedRow(Protocol):
    """A row whose tokens are known: `llmos.device.Row` fits once its empty `tokens` was filled in."""

    @property
    def asid(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def sample(self) -> bool: ...

    @property
    def targets(self) -> Sequence[int]: ...


@frozen
class Span:
    """One row's place in the flat tensors, and the pages that hold its keys and values."""

    offset: int  # of its first token in the flat tensors
    start: int  # absolute position of its first token
    num_tokens: int
    pages: tuple[int, ...]  # page index for vpn 0, 1, ... up to the row's last position

    @property
    def end(self) -> int:
        """One past the row's last absolute position: how many keys its last token sees."""
        return self.start + self.num_tokens


@frozen(eq=False)
class Batch:
    """The rows of one step, flattened. All tensors are int64 on the model's device."""

    token_ids: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens] absolute
    pages: torch.Tensor  # [num_tokens] page index that each token's key and value are written to
    slots: torch.Tensor  # [num_tokens] token slot inside that page
    sample_indices: torch.Tensor  # [num_samples] flat indices of the tokens that logits are wanted of
    spans: tuple[Span, ...]  # one for each row, in order
    tokens_per_page: int

    @property
    def num_tokens(self) -> int:
        """Positions that this batch computes."""
        return self.token_ids.shape[0]


def build_batch(
    rows: Sequence[ResolvedRow],
    page_index: PageIndex,
    tokens_per_page: int,
    device: torch.device | str = "cpu",
) -> Batch:
    """Flatten rows, in order.

    Args:
        rows: at least one row; each has at least one token.
        page_index: where a space's virtual page lies in the page tensors.
        tokens_per_page: of the KV format.
        device: where the tensors shall lie.

    Raises:
        ValueError: there are no rows, or a row has no tokens.
    """
    if not rows:
        raise ValueError("a batch needs at least one row")
    token_ids: list[int] = []
    positions: list[int] = []
    pages: list[int] = []
    sample_indices: list[int] = []
    spans: list[Span] = []
    for row in rows:
        num_tokens = len(row.tokens)
        if num_tokens == 0:
            raise ValueError(f"the row of space {row.asid} at position {row.start} has no tokens")
        end = row.start + num_tokens
        row_pages = tuple(page_index(row.asid, vpn) for vpn in range((end - 1) // tokens_per_page + 1))
        spans.append(Span(len(token_ids), row.start, num_tokens, row_pages))
        token_ids += row.tokens
        positions += range(row.start, end)
        pages += [row_pages[position // tokens_per_page] for position in range(row.start, end)]
        first = len(token_ids) - num_tokens
        sample_indices += range(first, first + len(row.targets))
        if row.sample:
            sample_indices.append(len(token_ids) - 1)
    position_tensor = torch.tensor(positions, dtype=torch.int64)
    flat = send(
        torch.stack(
            (
                torch.tensor(token_ids, dtype=torch.int64),
                position_tensor,
                torch.tensor(pages, dtype=torch.int64),
                position_tensor % tokens_per_page,
            )
        ),
        device,
    )
    return Batch(
        token_ids=flat[0],
        positions=flat[1],
        pages=flat[2],
        slots=flat[3],
        sample_indices=send(torch.tensor(sample_indices, dtype=torch.int64), device),
        spans=tuple(spans),
        tokens_per_page=tokens_per_page,
    )
