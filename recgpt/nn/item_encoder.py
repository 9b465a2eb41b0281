"""The item encoder: what is known of an item without its context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgpt.data.items import ItemTable
from recgpt.data.schema import DataSchema
from recgpt.errors import ConfigError
from recgpt.nn.content import ContentConfig, ContentEmbedding, says_something
from recgpt.nn.features import feature_modules, is_known
from recgpt.nn.ids import IdEmbedding
from recgpt.nn.numbers import NumericKind


class ItemEncoder(nn.Module):
    """The sum of an item's id, content and static features, [U, D].

    Args:
        id: the id embedding, whose table categorical features may share.
        schema: the items' features and the width of their content vectors.
        dim: width D.
        id_dropout: share of the items with content or features whose id is hidden in training.
        numeric: how numbers are embedded.
        content: what of a content vector enters besides a linear map.

    Raises:
        ConfigError: `content` asks for bins, and the items have no content vectors.
    """

    def __init__(
        self,
        id: IdEmbedding,
        schema: DataSchema,
        dim: int,
        id_dropout: float,
        numeric: NumericKind = "knots",
        content: ContentConfig | None = None,
    ) -> None:
        super().__init__()
        self.id = id
        self.id_dropout = id_dropout
        for key in ("bins", "norm_bins") if content is not None and not schema.content_dim else ():
            if asked := getattr(content, key):
                raise ConfigError(
                    f"model.content.{key}: {asked}, but the items have no content vectors; name data.items.embedding, "
                    f"vectors or text, or drop it"
                )
        self.content = ContentEmbedding(schema.content_dim, dim, content) if schema.content_dim else None
        self.features = feature_modules(schema.features, dim, numeric, category=id.share("feature"))

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

    def fit(self, items: ItemTable) -> None:
        """Lay grids of content over the items with a training event, before the first step; they are saved weights."""
        if self.content is not None and self.content.fitted and items.embedding is not None:
            self.content.fit(torch.from_numpy(items.embedding[items.n_train_events > 0]))

    def _described(self, items: Tensor, features: dict[str, Tensor], content: Tensor | None) -> Tensor:
        """Bool [U], whether anything but the id is known of an item."""
        known = torch.zeros(len(items), dtype=torch.bool, device=items.device)
        if self.content is not None and content is not None:
            known |= says_something(content)
        for name in self.features:
            if name in features:
                known |= is_known(features[name])
        return known
