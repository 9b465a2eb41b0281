"""The event encoder: what is known of an event, as one vector.

B sequences, T events, D width, U distinct items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.data.batch import N_GAP_BUCKETS, EventBatch
from recgpt.data.schema import DataSchema
from recgpt.nn.features import TimeGapEmbedding, feature_modules


class EventEncoder(nn.Module):
    """The sum of an event's item, outcomes, context and time; and the first token of every window.

    Args:
        schema: the log's outcomes, context, users' profile.
        dim: width D.
    """

    def __init__(self, schema: DataSchema, dim: int) -> None:
        super().__init__()
        self.outcomes = feature_modules(schema.outcomes, dim)
        self.context = feature_modules(schema.context, dim)
        self.profile = feature_modules(schema.profile, dim)
        self.gap = TimeGapEmbedding(N_GAP_BUCKETS, dim) if schema.has_time else None
        self.begin = nn.Parameter(torch.randn(dim) * 0.02)
        self.scale = 0.5 * math.sqrt(dim)

    def forward(self, batch: EventBatch, encoded: Tensor) -> Tensor:
        """Event vectors [B, T, D] from the batch's items [U, D]."""
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
