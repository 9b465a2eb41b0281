"""The event model: an event encoder, a causal transformer, and the two towers that meet in the next-item score.

B sequences, T events, D width, U distinct items, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import EventBatch
from recgpt.data.schema import DataSchema
from recgpt.data.window import WindowConfig
from recgpt.nn.embedding import IdEmbeddingConfig
from recgpt.nn.event_encoder import EventEncoder
from recgpt.nn.item_encoder import ItemEncoder
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


class EventModel(nn.Module):
    """Causal transformer over events; hidden vectors become queries, items become vectors of the same unit sphere.

    Position t of a sequence has seen the first t events (position 0: none, a learned start vector).

    Args:
        config: sizes and parts.
        schema: the log's outcomes, context, item features.
        known: int64 [n], hashes of the run's items, for an id embedding that keeps a list.
    """

    def __init__(self, config: ModelConfig, schema: DataSchema, known: NDArray[np.int64] | None = None) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.schema = config, schema
        self.items = ItemEncoder(config.id, schema, dim, config.id_dropout)
        self.encoder = EventEncoder(schema, dim)
        self.transformer = Transformer(config, config.window.length + 1)
        self.query = nn.Linear(dim, dim, bias=False)
        self.item = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.query.weight)
        if config.item_start == "identity":
            nn.init.eye_(self.item.weight)

    def encode_items(self, batch: EventBatch) -> Tensor:
        """[U, D] of the batch's distinct items, shared by inputs and targets."""
        return self.items(batch.items, batch.features, batch.content)

    def forward(self, batch: EventBatch, encoded: Tensor | None = None) -> Tensor:
        """Hidden vectors [B, T + 1, D] of all positions."""
        encoded = self.encode_items(batch) if encoded is None else encoded
        x = self.encoder(batch, encoded)
        first = self.encoder.beginning(len(x), batch.profile).to(x.dtype)
        hidden, _ = self.transformer(torch.cat((first, x), 1))
        return hidden

    def extend(self, batch: EventBatch, past: list[KeyValue]) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vectors [1, T, D] of further events after cached positions, and the longer cache."""
        x = self.encoder(batch, self.encode_items(batch))
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
        hidden, cache = self.transformer(self.encoder.beginning(1, profile))
        return hidden[0, 0], cache

    def queries(self, hidden: Tensor) -> Tensor:
        """Q = L2norm(W_q h): [..., D] -> unit [..., D], float32."""
        return F.normalize(self.query(hidden).float(), dim=-1)

    def vectors(self, encoded: Tensor) -> Tensor:
        """V = L2norm(W_v e): [U, D] -> unit [U, D], float32 (zero for an item of which nothing is known)."""
        return F.normalize(self.item(encoded).float(), dim=-1)
