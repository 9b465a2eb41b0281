"""The item encoder: what is known of an item without its context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgpt.data.schema import DataSchema
from recgpt.nn.embedding import ID_EMBEDDINGS, IdEmbeddingConfig
from recgpt.nn.features import ContentEmbedding, feature_modules


class ItemEncoder(nn.Module):
    """The sum of an item's id, content and static features, [U, D].

    Args:
        id: the id embedding.
        schema: the items' features and the width of their content vectors.
        dim: width D.
        id_dropout: share of the items with content or features whose id is hidden in training.
    """

    def __init__(self, id: IdEmbeddingConfig, schema: DataSchema, dim: int, id_dropout: float) -> None:
        super().__init__()
        self.id = ID_EMBEDDINGS[id.kind](id, dim)
        self.id_dropout = id_dropout
        self.content = ContentEmbedding(schema.content_dim, dim) if schema.content_dim else None
        self.features = feature_modules(schema.features, dim)

    def forward(self, items: Tensor, features: dict[str, Tensor], content: Tensor | None) -> Tensor:
        """Hashes int64 [U] (0 = score by content alone) and what is known of them -> [U, D]."""
        if self.training and self.id_dropout > 0 and (self.content is not None or len(self.features) > 0):
            hidden = torch.rand(len(items), device=items.device) < self.id_dropout
            items = items.masked_fill(hidden & self._described(items, features, content), 0)
        x = self.id(items)
        if self.content is not None and content is not None:
            x = x + self.content(content)
        for name, module in self.features.items():
            if name in features:
                x = x + module(features[name])
        return x

    def _described(self, items: Tensor, features: dict[str, Tensor], content: Tensor | None) -> Tensor:
        """Bool [U], whether anything but the id is known of an item."""
        known = torch.zeros(len(items), dtype=torch.bool, device=items.device)
        if self.content is not None and content is not None:
            known |= content.any(-1) & ~content.isnan().any(-1)  # a zero vector says nothing either
        for name in self.features:
            if name in features:
                values = features[name]
                known |= ~values.isnan() if values.is_floating_point() else values != 0
        return known
