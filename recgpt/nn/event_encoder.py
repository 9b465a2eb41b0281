"""The event encoder: what is known of an event, as one vector.

B sequences, T events, D width, U distinct items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.data.batch import EventBatch
from recgpt.data.schema import DataSchema
from recgpt.errors import ConfigError
from recgpt.nn.features import feature_modules
from recgpt.nn.ids import IdEmbedding
from recgpt.nn.numbers import NumericKind
from recgpt.nn.time import TimeEmbedding, TimePart


class EventEncoder(nn.Module):
    """The sum of an event's item, outcomes, context and time; and the first token of every window.

    Args:
        schema: the log's outcomes, context, users' profile.
        dim: width D.
        numeric: how numbers are embedded.
        time: the parts of an event's time that enter; without a clock none does.
        id: the items' id embedding, whose table categorical features may share.

    Raises:
        ConfigError: `time` asks for more than the gap, and the log has no clock.
    """

    def __init__(
        self,
        schema: DataSchema,
        dim: int,
        numeric: NumericKind = "knots",
        time: Sequence[TimePart] = ("gap",),
        id: IdEmbedding | None = None,
    ) -> None:
        super().__init__()
        asked = [part for part in time if part != "gap"]
        if asked and not schema.has_time:
            raise ConfigError(f"model.time: {', '.join(asked)}, but the log has no clock; name data.time or drop it")
        self.outcomes = feature_modules(schema.outcomes, dim, numeric)
        context, profile = (id.share(role) if id is not None else None for role in ("context", "profile"))
        self.context = feature_modules(schema.context, dim, numeric, category=context)
        self.profile = feature_modules(schema.profile, dim, numeric, category=profile)
        self.time = TimeEmbedding(time, dim) if schema.has_time and time else None
        self.begin = nn.Parameter(torch.randn(dim) * 0.02)
        self.scale = 0.5 * math.sqrt(dim)

    def forward(self, batch: EventBatch, encoded: Tensor) -> Tensor:
        """Event vectors [B, T, D] from the batch's items [U, D]."""
        x = F.embedding(batch.item, encoded)
        if self.time is not None:
            x = x + self.time(batch.time, batch.gap)
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
