"""Where the keys and values of a step lie: what a model runs on besides its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from drivers.ops.batch import PageIndex

__all__ = ["KVPages", "LayerPages"]


@frozen(eq=False)
class LayerPages:
    """The pages of one layer: [num_pages, tokens_per_page, num_kv_heads, head_dim] each, any strides.

    Native kernels have orders of their own, see `native_kv_views`. In int8 the scales are where `scales_of`
    finds them.
    """

    keys: torch.Tensor
    values: torch.Tensor


@frozen(eq=False)
class KVPages:
    """The pages of every space, as views of frames that somebody else owns. Made by `Model.view_pages`.

    Attributes:
        layers: dimension 0 of each view counts pages.
        index: where a space's virtual page lies in that dimension; asked for every page up to a row's last
            position.
    """

    layers: tuple[LayerPages, ...]
    index: PageIndex

    @classmethod
    def of(cls, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], index: PageIndex) -> KVPages:
        """From a view for each layer."""
        return cls(tuple(map(LayerPages, keys, values)), index)

    def views(self) -> list[torch.Tensor]:
        """All of them, in no order that means something."""
        return [view for layer in self.layers for view in (layer.keys, layer.values)]
