"""The event model: an event encoder, a causal transformer, and the two towers that meet in the next-item score.

B sequences, T events, D width, U distinct items, N targets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import N_GAP_BUCKETS, EventBatch
from recgpt.data.schema import DataSchema
from recgpt.data.window import WindowConfig
from recgpt.nn.embedding import ID_EMBEDDINGS, IdEmbeddingConfig
from recgpt.nn.features import FEATURE_EMBEDDINGS, ContentEmbedding, TimeGapEmbedding
from recgpt.nn.transformer import KeyValue, Transformer, TransformerConfig


class StateConfig(Section):
    """What a user state keeps besides its window."""

    max_seen: int = Field(default=100_000, ge=0)
    """Distinct items remembered for `exclude_seen`, the newest first to stay."""


class ModelConfig(TransformerConfig):
    """The event model."""

    id: IdEmbeddingConfig = IdEmbeddingConfig()
    """The item-id embedding."""
    id_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the items that have content or features whose id is hidden in a training batch: trains the content
    path for new items."""
    item_start: Literal["identity", "random"] = "identity"
    """How W_v starts. `identity`: a query starts as its last item's vector, a good prior where like follows like
    (little data); `random`: nothing to unlearn where the next item differs from the last."""
    window: WindowConfig = WindowConfig()
    """The window rule."""
    state: StateConfig = StateConfig()
    """User states."""


class ItemEncoder(nn.Module):
    """What is known of an item without its context: id + content + static features, [U, D]."""

    def __init__(self, config: ModelConfig, schema: DataSchema) -> None:
        super().__init__()
        self.id = ID_EMBEDDINGS[config.id.kind](config.id, config.dim)
        self.id_dropout = config.id_dropout
        self.content = ContentEmbedding(schema.content_dim, config.dim) if schema.content_dim else None
        self.features = _feature_modules(schema.features, config.dim)

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


class EventModel(nn.Module):
    """Causal transformer over events; hidden vectors become queries, items become vectors of the same unit sphere.

    Position t of a sequence has seen the first t events (position 0: none, a learned start vector).

    Args:
        config: sizes and parts.
        schema: the log's outcomes, context, item features.
    """

    def __init__(self, config: ModelConfig, schema: DataSchema) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.schema = config, schema
        self.items = ItemEncoder(config, schema)
        self.outcomes = _feature_modules(schema.outcomes, dim)
        self.context = _feature_modules(schema.context, dim)
        self.profile = _feature_modules(schema.profile, dim)
        self.gap = TimeGapEmbedding(N_GAP_BUCKETS, dim) if schema.has_time else None
        self.begin = nn.Parameter(torch.randn(dim) * 0.02)
        self.transformer = Transformer(config, config.window.length + 1)
        self.query = nn.Linear(dim, dim, bias=False)
        self.item = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.query.weight)
        if config.item_start == "identity":
            nn.init.eye_(self.item.weight)
        self.scale = 0.5 * math.sqrt(dim)

    def encode_items(self, batch: EventBatch) -> Tensor:
        """[U, D] of the batch's distinct items, shared by inputs and targets."""
        return self.items(batch.items, batch.features, batch.content)

    def embed(self, batch: EventBatch, encoded: Tensor) -> Tensor:
        """Event vectors [B, T, D]: the sum of what is known of each event."""
        x = F.embedding(batch.item, encoded)
        if self.gap is not None:
            x = x + self.gap(batch.gap)
        for modules, columns in ((self.outcomes, batch.outcomes), (self.context, batch.context)):
            for name, module in modules.items():
                if name in columns:
                    x = x + module(columns[name])
        return x * self.scale

    def beginning(self, n_sequences: int, profile: Mapping[str, Tensor]) -> Tensor:
        """The first token of every window, [B, 1, D]: a learned vector and what is known of the user."""
        x = self.begin.expand(n_sequences, -1)
        for name, module in self.profile.items():
            if name in profile:
                x = x + module(profile[name])
        return (x * self.scale).unsqueeze(1)

    def forward(self, batch: EventBatch, encoded: Tensor | None = None) -> Tensor:
        """Hidden vectors [B, T + 1, D] of all positions."""
        encoded = self.encode_items(batch) if encoded is None else encoded
        x = self.embed(batch, encoded)
        first = self.beginning(len(x), batch.profile).to(x.dtype)
        hidden, _ = self.transformer(torch.cat((first, x), 1))
        return hidden

    def extend(self, batch: EventBatch, past: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vectors [1, T, D] of further events after cached positions, and the longer cache."""
        x = self.embed(batch, self.encode_items(batch))
        hidden, own = self.transformer(x, past, past[0][0].shape[2])
        return hidden, [
            (torch.cat((k, new_k), 2), torch.cat((v, new_v), 2))
            for (k, v), (new_k, new_v) in zip(past, own, strict=True)
        ]

    def begin_cache(self, profile: Mapping[str, Tensor]) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vector [D] of the empty history, and the cache that holds the first token alone.

        Args:
            profile: name -> int64 or float32 [1], what is known of the user.
        """
        hidden, cache = self.transformer(self.beginning(1, profile))
        return hidden[0, 0], cache

    def queries(self, hidden: Tensor) -> Tensor:
        """Q = L2norm(W_q h): [..., D] -> unit [..., D], float32."""
        return F.normalize(self.query(hidden).float(), dim=-1)

    def vectors(self, encoded: Tensor) -> Tensor:
        """V = L2norm(W_v e): [U, D] -> unit [U, D], float32 (zero for an item of which nothing is known)."""
        return F.normalize(self.item(encoded).float(), dim=-1)


def _feature_modules(kinds: Any, dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: FEATURE_EMBEDDINGS[kind](dim) for name, kind in kinds.items()})
