"""Where the keys and values of a step lie: what a model runs on besides its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from drivers.ops.batch import PageIndex

__all__ = ["KVPages"]


@frozen(eq=False)
class KVPages:
    """The pages of every space, as views of frames that somebody else owns. Made by `Model.view_pages`.

    Attributes:
        keys: a view for each layer; dimension 0 counts pages, and the others are the model's own. Those of
            `Transformer` are [num_pages, tokens_per_page, num_kv_heads, head_dim].
        values: likewise.
        index: where a space's virtual page lies in dimension 0; asked for every page up to a row's last
            position.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    index: PageIndex
