"""The ranking network: a state, a candidate and a request become one logit per outcome.

N requests (one candidate each), B states, D width of the event model, E width of the head's own features, K outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import N_GAP_BUCKETS, N_HOURS
from recgpt.data.schema import DataSchema
from recgpt.nn.features import feature_modules
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbeddingConfig
from recgpt.nn.time import TimeGapEmbedding
from recgpt.ranking.behaviour import BEHAVIOUR_HEADS, Reading

QUIET = 0.01
"""Standard deviation at the start: of many features few matter."""


class HeadsConfig(Section):
    """The ranking heads."""

    behaviour: Literal["pool", "din"] = "din"
    """How a candidate reads the state's hidden vectors: their mean, or target attention (DIN)."""
    attention: int = Field(32, ge=1)
    """Width of the target attention."""
    softmax: bool = True
    """Whether a candidate's attention weights sum to 1. False is the paper's form, whose sum grows with the history."""
    features: int = Field(16, ge=1)
    """Width E of the head's own embeddings: candidate id and features, context, time of the request."""
    id_rows: int = Field(32_768, ge=1)
    """Rows of the head's own table of candidate ids."""
    hidden: list[int] = Field([128, 64], min_length=1)
    """Widths of the layers that join everything."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Dropout before every layer of the network."""


@dataclass(frozen=True)
class Requests:
    """N requests: which state each reads, how much of it, which candidate, and when.

    Attributes:
        state: int64 [N], which of B states.
        visible: int64 [N], how many of its positions, the first token among them.
        query: float32 [N, D], unit query vector of the state at that position.
        encoded: [N, D], what is known of the candidate (`EventModel.encode_items`).
        vector: float32 [N, D], its unit item vector.
        item: int64 [N], its hash, 0 = an id that training never saw.
        features: name -> int64 or float32 [N], the candidate's static features.
        context: name -> int64 or float32 [N].
        hour: int64 [N], hour of the UTC day from 1, 0 = unknown.
        gap: int64 [N], bucket of the time since the last event that the request reads, 0 = unknown.
    """

    state: Tensor
    visible: Tensor
    query: Tensor
    encoded: Tensor
    vector: Tensor
    item: Tensor
    hour: Tensor
    gap: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)
    context: Mapping[str, Tensor] = field(default_factory=dict)


class RankingNetwork(nn.Module):
    """Behaviour head, features of candidate and request, and a feed-forward network with K outputs.

    Args:
        config: sizes.
        schema: the log's context and item features.
        dim: width D of the event model.
        outcomes: names of the K binary outcomes.
    """

    def __init__(self, config: HeadsConfig, schema: DataSchema, dim: int, outcomes: Sequence[str]) -> None:
        super().__init__()
        width = config.features
        self.outcomes, self.dropout = tuple(outcomes), config.dropout
        self.behaviour = BEHAVIOUR_HEADS[config.behaviour](dim, config.attention, config.softmax)
        self.id = ID_EMBEDDINGS["hash"](IdEmbeddingConfig(rows=config.id_rows), width, std=QUIET)
        self.features = feature_modules(schema.features, width, std=QUIET)
        self.context = feature_modules(schema.context, width, std=QUIET)
        self.gap = TimeGapEmbedding(N_GAP_BUCKETS, width, QUIET) if schema.has_time else None
        self.hour = TimeGapEmbedding(N_HOURS, width, QUIET) if schema.has_time else None
        self.norm = nn.LayerNorm(dim, 1e-6, bias=False)
        n_own = 1 + len(self.features) + len(self.context) + 2 * schema.has_time
        sizes = [6 * dim + n_own * width, *config.hidden]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.out = nn.Linear(sizes[-1], len(self.outcomes))
        self.scale = math.sqrt(dim)

    def start_at(self, rates: Mapping[str, float]) -> None:
        """Let every output start at its outcome's base rate."""
        with torch.no_grad():
            for row, name in enumerate(self.outcomes):
                rate = min(max(rates.get(name, 0.5), 1e-4), 1 - 1e-4)
                self.out.bias[row] = math.log(rate / (1 - rate))

    def read(self, hidden: Tensor) -> Reading:
        """What is computed once a state, from hidden vectors [B, P, D]: the first token's, then the head's own."""
        return hidden[:, 0], *self.behaviour.read(hidden)

    def forward(self, reading: Reading, requests: Requests) -> Tensor:
        """Logits of the outcomes, float32 [N, K]."""
        encoded = self.norm(requests.encoded)
        first, *own = reading
        behaviour = self.behaviour(tuple(own), requests.state, requests.visible, encoded)
        query, vector = requests.query * self.scale, requests.vector * self.scale
        profile = first.index_select(0, requests.state)
        parts = [profile, query, vector, query * vector, behaviour, encoded, self.id(requests.item) * self.scale]
        for modules, columns in ((self.features, requests.features), (self.context, requests.context)):
            parts += [module(columns[name]) * self.scale for name, module in modules.items()]
        if self.gap is not None and self.hour is not None:
            parts += [self.gap(requests.gap) * self.scale, self.hour(requests.hour) * self.scale]
        x = torch.cat([part.to(encoded.dtype) for part in parts], -1)
        for layer in self.layers:
            x = F.silu(layer(F.dropout(x, self.dropout, self.training)))
        return self.out(F.dropout(x, self.dropout, self.training)).float()
