"""The event model: an event encoder, a causal transformer, and the two towers that meet in the next-item score.

B sequences, T events, D width, U distinct items, N targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import EventBatch
from recgpt.data.events import NO_TIME
from recgpt.data.schema import DataSchema
from recgpt.data.window import WindowConfig
from recgpt.errors import ConfigError
from recgpt.nn.content import ContentConfig
from recgpt.nn.event_encoder import EventEncoder
from recgpt.nn.ids import ID_EMBEDDINGS, IdEmbeddingConfig
from recgpt.nn.item_encoder import ItemEncoder
from recgpt.nn.numbers import NumericKind
from recgpt.nn.queries import QueryTower
from recgpt.nn.rows import by_rows
from recgpt.nn.time import TimeParts
from recgpt.nn.transformer import KeyValue, Transformer, TransformerConfig


class StateConfig(Section):
    """What a user state keeps besides its window."""

    max_seen: int = Field(default=100_000, ge=0)
    """Distinct items remembered for `exclude_seen`, the newest first to stay."""


class ModelConfig(TransformerConfig):
    """The event model."""

    id: IdEmbeddingConfig = IdEmbeddingConfig()
    """The item-id embedding."""
    content: ContentConfig = ContentConfig()
    """How content vectors enter."""
    id_dropout: float = Field(default=0.05, ge=0, lt=1)
    """Share of the items that have content or features whose id is hidden in a training batch: trains the content
    path for new items."""
    item_start: Literal["identity", "random"] = "identity"
    """How W_v starts. `identity`: a query starts as its last item's vector, a good prior where like follows like
    (little data); `random`: nothing to unlearn where the next item differs from the last."""
    numeric: NumericKind = "knots"
    """How numbers (outcomes, context, features, profile) are embedded: `knots`, a bent line; `log`, a straight one over
    the logarithm; `buckets`, a vector each half octave; `numerals`, one for every digit in bases 2, 3 and 10."""
    time: TimeParts = ["gap"]
    """What of an event's time enters: `gap` since the last event, `hour` of the day and moment of the `week` as waves,
    the `absolute` moment; none without a clock."""
    look_ahead: list[int] = [0]
    """What the query heads learn to predict, as events after the next one: 0, the next item, and then rising. In
    [0, 5, 12] a second head predicts the event a random 1 to 5 further on, a third one beyond that, up to 12. The loss
    is the mean over the targets of all heads; recommendations come from the first."""
    condition: bool = False
    """Let a query say what outcome the item is to have (`recommend --want like=1`; evaluation asks for the yes/no
    outcome of `data.target`); needs data.outcomes."""
    score: Literal["cosine", "dot"] = "cosine"
    """How a query and an item are compared: as unit vectors, or by their plain dot product, as the published SASRec and
    BERT4Rec do (with `loss.temperature: 1`)."""
    window: WindowConfig = WindowConfig()
    """The window rule."""
    state: StateConfig = StateConfig()
    """User states."""

    @field_validator("look_ahead")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if value[:1] != [0] or any(b <= a for a, b in pairwise(value)):
            raise ValueError(f"{value} does not rise from 0; write for example [0, 5, 12], or [0] for the next item")
        return value

    @model_validator(mode="after")
    def _masked_alone(self) -> ModelConfig:
        if not self.causal and len(self.look_ahead) > 1:
            raise ValueError(f"look_ahead: {self.look_ahead} needs causal: true; or set [0]")
        return self


class EventModel(nn.Module):
    """Transformer over events; hidden vectors become queries, items become vectors that these are compared with.

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
        id = ID_EMBEDDINGS[config.id.kind](config.id, dim, known)
        self.items = ItemEncoder(id, schema, dim, config.id_dropout, config.numeric, config.content)
        self.encoder = EventEncoder(schema, dim, config.numeric, config.time, id)
        if config.bias.time and not schema.has_time:
            raise ConfigError("model.bias.time: true, but the log has no clock; name data.time or set it to false")
        self.transformer = Transformer(config, config.window.length + (1 if config.causal else 2))
        if config.condition and not schema.outcomes:
            raise ConfigError("model.condition: the log has no outcome to ask for; declare data.outcomes or set false")
        if config.condition and not config.causal:
            raise ConfigError("model.condition: true needs model.causal: true; states do not keep what a [MASK] read")
        asked = schema.outcomes if config.condition else {}
        self.query = QueryTower(dim, len(config.look_ahead), asked, config.numeric)
        self.item = nn.Linear(dim, dim, bias=False)
        if config.item_start == "identity":
            nn.init.eye_(self.item.weight)
        self.mask = None if config.causal else nn.Parameter(torch.randn(dim) * 0.02)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.item.weight.device

    def encode_items(self, batch: EventBatch) -> Tensor:
        """[U, D] of the batch's distinct items, shared by inputs and targets."""
        return self.items(batch.items, batch.features, batch.content)

    def forward(self, batch: EventBatch, encoded: Tensor | None = None) -> Tensor:
        """Hidden vectors [B, T + 1, D]: position t predicts event t.

        A causal model has seen the first t events there. With `causal: false` it has seen all that no [MASK] hides, and
        position t stands at event t, behind its [MASK]: t = the window's length is the [MASK] after the newest event.
        """
        x, real, time = self._tokens(batch, encoded)
        hidden, _ = self.transformer(x, real=real, time=time)
        return hidden if self.mask is None else hidden[:, 1:]

    def read(self, batch: EventBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden vectors of the first tokens [B, D], of the events [B, T, D], and what the queries are made of [B, D].

        The last is the newest event's (the first token's in an empty window), or the [MASK]'s after it.
        """
        x, real, time = self._tokens(batch)
        hidden, _ = self.transformer(x, real=real, time=time)
        last = self._last(batch)
        return (
            hidden[:, 0],
            hidden[:, 1 : batch.item.shape[1] + 1],
            hidden[torch.arange(len(hidden), device=hidden.device), last],
        )

    def newest(self, batch: EventBatch) -> Tensor:
        """What the queries are made of [B, D], as `read` gives it; the last block computes nothing else."""
        x, real, time = self._tokens(batch)
        return self.transformer(x, real=real, time=time, at=self._last(batch))[0][:, 0]

    def _last(self, batch: EventBatch) -> Tensor:
        """The position that the queries are made of, int64 [B]."""
        return batch.length if self.mask is None else batch.length + 1

    def attention_weights(self, batch: EventBatch) -> list[Tensor]:
        """Each layer's attention weights [B, H, T + 1, T + 1] (one more of each with [MASK]), the first token first."""
        return self.transformer.attention_weights(*self._tokens(batch))

    def _tokens(self, batch: EventBatch, encoded: Tensor | None = None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The transformer's inputs [B, T', D], which of them are real, and their times, where these are needed."""
        encoded = self.encode_items(batch) if encoded is None else encoded
        x = self.encoder(batch, encoded)
        first = self.encoder.beginning(len(x), batch.profile).to(x.dtype)
        x = torch.cat((first, x), 1)
        hidden = None if self.mask is None else masked_slots(batch)
        if hidden is not None and self.mask is not None:
            x = torch.where(hidden[..., None], (self.mask * self.encoder.scale).to(x.dtype), F.pad(x, (0, 0, 0, 1)))
        time = self._times(batch.time, hidden)
        if self.config.incremental:
            return x, None, time
        real = torch.arange(x.shape[1], device=x.device) <= batch.length[:, None]
        return x, real if hidden is None else real | hidden, time

    def _times(self, time: Tensor, hidden: Tensor | None = None) -> Tensor | None:
        """Times [B, T'] of the tokens of events [B, T], unknown for the first and at [MASK]s; None if unneeded."""
        if not self.transformer.needs_time:
            return None
        if hidden is None:
            return F.pad(time, (1, 0), value=NO_TIME)
        return F.pad(time, (1, 1), value=NO_TIME).masked_fill(hidden, NO_TIME)

    def extend(
        self, batch: EventBatch, past: list[KeyValue], before: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vectors [1, T, D] of further events after cached positions, and the longer cache.

        Args:
            batch: the further events.
            past: the cache.
            before: int64 [1, n], times of the n cached events; a time bias needs them.
        """
        x = self.encoder(batch, self.encode_items(batch))
        time = self._times(batch.time) if before is None else self._times(torch.cat((before, batch.time), 1))
        hidden, own = self.transformer(x, past, past[0][0].shape[2], time=time)
        return hidden, [
            (torch.cat((k, new_k), 2), torch.cat((v, new_v), 2))
            for (k, v), (new_k, new_v) in zip(past, own, strict=True)
        ]

    def begin_cache(self, profile: Mapping[str, Tensor]) -> tuple[Tensor, list[KeyValue]]:
        """Hidden vector [D] of the empty history, and the cache that holds the first token alone.

        Args:
            profile: name -> int64 or float32 [1], what is known of the user.
        """
        time = self._times(torch.zeros(1, 0, dtype=torch.int64, device=self.device))
        hidden, cache = self.transformer(self.encoder.beginning(1, profile), time=time)
        return hidden[0, 0], cache

    def queries(self, hidden: Tensor, head: Tensor | None = None, wanted: Mapping[str, Tensor] | None = None) -> Tensor:
        """Q = L2norm(W_q h): [..., D] -> unit [..., D], float32; see `QueryTower` for the rest.

        With `score: dot` neither queries nor vectors are normed.
        """
        return self._compared(self.query(hidden, head, wanted))

    def vectors(self, encoded: Tensor) -> Tensor:
        """V = L2norm(W_v e): [U, D] -> unit [U, D], float32 (zero for an item of which nothing is known)."""
        return self._compared(by_rows(self.item, encoded) if self.training else self.item(encoded))

    def direction(self, x: Tensor) -> Tensor:
        """Queries or item vectors [..., D] at length 1, whatever `model.score` is."""
        return x if self.config.score == "cosine" else F.normalize(x, dim=-1)

    def _compared(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1) if self.config.score == "cosine" else x.float()


def masked_slots(batch: EventBatch) -> Tensor:
    """Where a [MASK] stands, bool [B, T + 2]: slot 0 is the first token, slot t + 1 event t.

    In training at the masked events, and after the newest where that position has a target; else after the newest.
    """
    B, T = batch.item.shape
    last = torch.arange(T + 2, device=batch.item.device) == batch.length[:, None] + 1
    if batch.masked is None:
        return last
    ends = torch.arange(B, device=batch.item.device) * (T + 1) + batch.length
    return last & torch.isin(ends, batch.position)[:, None] | F.pad(batch.masked, (1, 1))
