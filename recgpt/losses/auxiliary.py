"""Auxiliary causal targets: what a position predicts of its next event besides the item (Ramasamy 2023).

Position t of a window has seen its first t events and predicts the outcomes, the context, the content vector and the
time of event t. B windows, T events, D width, N predicted events whose value is known.

Which events: those among a window's inputs from its `skip` on (what comes before is another window's, or nobody's),
whether they are next-item targets or not. The event after the last input has no auxiliary target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.batch import N_GAP_BUCKETS, EventBatch
from recgpt.data.events import NO_TIME
from recgpt.data.schema import DataSchema
from recgpt.errors import ConfigError
from recgpt.losses.next_item import next_item_loss
from recgpt.nn.content import says_something
from recgpt.nn.features import CategoricalEmbedding
from recgpt.nn.time import DAY, HOUR, distinct

TimeTarget = Literal["gap", "log_gap", "hour", "day"]


class AuxiliaryConfig(Section):
    """What every position predicts of its next event besides the item; a weight of 0 = off."""

    outcomes: float = Field(default=0, ge=0)
    """Weight of the outcomes' loss, the mean over the declared outcomes: cross-entropy of a binary one, Huber's loss on
    asinh(value) of a number."""
    context: float = Field(default=0, ge=0)
    """Weight of the context's loss, the mean over its columns: softmax over the batch's distinct values of a category,
    Huber's loss on asinh(value) of a number."""
    content: float = Field(default=0, ge=0)
    """Weight of the content vector's loss: softmax over the distinct content vectors that the batch predicts."""
    time: float = Field(default=0, ge=0)
    """Weight of the time's loss, the mean over `time_targets`."""
    time_targets: Annotated[list[TimeTarget], Field(min_length=1), AfterValidator(distinct)] = ["gap"]
    """What is predicted of the next event's time: the bucket of the `gap` before it, asinh(seconds) of it (`log_gap`:
    the moment itself, given the last event's), the `hour` of the UTC day, the `day` of the week."""
    temperature: float = Field(default=0.05, gt=0)
    """Cosines of content vectors are divided by this."""

    @property
    def active(self) -> bool:
        """Whether any weight is above 0."""
        return any((self.outcomes, self.context, self.content, self.time))


class BinaryTarget(nn.Module):
    """A yes/no outcome: one logit, cross-entropy.

    Args:
        dim: width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, hidden: Tensor, values: Tensor) -> Tensor:
        """[N, D] and float32 [N] of 0 or 1 -> the mean loss."""
        return F.binary_cross_entropy_with_logits(self.linear(hidden).squeeze(-1), values)


class NumberTarget(nn.Module):
    """A number on the scale of asinh: Huber's loss with its bend at 1, so that one far value pulls no harder than 1.

    Args:
        dim: width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)

    def forward(self, hidden: Tensor, values: Tensor) -> Tensor:
        """[N, D] and float32 [N] -> the mean loss."""
        return F.huber_loss(self.linear(hidden).squeeze(-1), values.asinh())


class ClassTarget(nn.Module):
    """One of a few classes, numbered from 1: softmax cross-entropy.

    Args:
        classes: how many.
        dim: width D.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, classes)

    def forward(self, hidden: Tensor, values: Tensor) -> Tensor:
        """[N, D] and int64 [N] in [1, classes] -> the mean loss."""
        return F.cross_entropy(self.linear(hidden), values - 1)


class CategoryTarget(nn.Module):
    """A hashed category: softmax over the batch's distinct values, each one column, so that no hit is a negative.

    With few values every batch holds them all and it is the full softmax; of many, a rare one is a negative only in the
    batches that hold it. The score is a plain product of a query and a hashed vector.

    Args:
        dim: width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim)
        self.values = CategoricalEmbedding(dim, std=dim**-0.5)

    def forward(self, hidden: Tensor, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """[N, D] and int64 [N] hashes -> the mean loss; `dtype` of the products, default float32."""
        columns, positive = values.unique(return_inverse=True)
        return next_item_loss(self.query(hidden), self.values(columns), positive, temperature=1.0, dtype=dtype)


class ContentTarget(nn.Module):
    """A content vector: softmax over cosines with the distinct vectors (Ramasamy 2023). Equal vectors are one column.

    Args:
        width: width dc of the content vectors.
        dim: width D.
        temperature: divides the cosines.
    """

    def __init__(self, width: int, dim: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.linear = nn.Linear(dim, width, bias=False)

    def forward(self, hidden: Tensor, items: Tensor, content: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Mean loss.

        Args:
            hidden: [N, D].
            items: int64 [N], rows of `content`.
            content: float32 [U, dc] of the batch's items.
            dtype: of the products; default float32.
        """
        wanted, place = items.unique(return_inverse=True)
        columns, merged = content[wanted].unique(dim=0, return_inverse=True)
        q, v = F.normalize(self.linear(hidden), dim=-1), F.normalize(columns, dim=-1)
        return next_item_loss(q, v, merged[place], temperature=self.temperature, dtype=dtype)


AUXILIARY_TARGETS: dict[str, Callable[[int], nn.Module]] = {
    "binary": BinaryTarget,
    "regression": NumberTarget,
    "watch_time": NumberTarget,
    "numeric": NumberTarget,
    "categorical": CategoryTarget,
    "gap": partial(ClassTarget, N_GAP_BUCKETS - 1),
    "log_gap": NumberTarget,
    "hour": partial(ClassTarget, 24),
    "day": partial(ClassTarget, 7),
}
"""Kind -> (width D) -> module of hidden vectors [N, D] and known values [N] -> the mean loss."""


class AuxiliaryLosses(nn.Module):
    """The heads of all auxiliary targets with a weight; they serve training alone and belong to no exported model.

    Args:
        config: weights.
        schema: the log's outcomes, context, content vectors, clock.
        dim: width D of the hidden vectors.

    Raises:
        ConfigError: a weight is set for something that the log does not have.
    """

    def __init__(self, config: AuxiliaryConfig, schema: DataSchema, dim: int) -> None:
        super().__init__()
        self.config = config
        for name, missing, what, remedy in (
            ("outcomes", not schema.outcomes, "outcomes", "data.outcomes"),
            ("context", not schema.context, "context columns", "data.context"),
            ("content", not schema.content_dim, "content vectors", "them under data.items"),
            ("time", not schema.has_time, "clock", "data.time"),
        ):
            if missing and getattr(config, name) > 0:
                raise ConfigError(
                    f"loss.auxiliary.{name}: {getattr(config, name)}, but the log has no {what}; declare {remedy} or"
                    " set it to 0"
                )
        self.outcomes = _heads(schema.outcomes, dim) if config.outcomes else None
        self.context = _heads(schema.context, dim) if config.context else None
        self.time = _heads({name: name for name in config.time_targets}, dim) if config.time else None
        self.content = (
            ContentTarget(schema.content_dim, dim, config.temperature)
            if config.content and schema.content_dim
            else None
        )

    def forward(self, hidden: Tensor, batch: EventBatch, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The mean loss of each term by its name (such as `outcomes.click`); 0 where the batch knows no value.

        Args:
            hidden: [B, T + 1, D] of a causal model: position t may depend on events before t alone.
            batch: the windows and the positions that predict.
            dtype: of large products; default float32.
        """
        event = predicted_events(batch)
        read = hidden.flatten(0, 1).index_select(0, event + event // batch.item.shape[1]).float()
        terms = {}
        for name, head, column in self._columns(batch):
            values = column.flatten()[event]
            known = ~values.isnan() if values.is_floating_point() else values != 0
            large = {"dtype": dtype} if isinstance(head, CategoryTarget) else {}
            terms[name] = head(read[known], values[known], **large) if known.any() else read.sum() * 0.0
        if self.content is not None and batch.content is not None:
            items = batch.item.flatten()[event]
            known = says_something(batch.content)[items]
            terms["content"] = self.content(read[known], items[known], batch.content, dtype)
        return terms

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """What the terms of `forward` add to the loss: each group's weight times the mean over its terms."""
        groups: dict[str, list[Tensor]] = {}
        for name, term in terms.items():
            groups.setdefault(name.partition(".")[0], []).append(term)
        each = [getattr(self.config, name) * torch.stack(group).mean() for name, group in groups.items()]
        return torch.stack(each).sum()

    def _columns(self, batch: EventBatch) -> Iterator[tuple[str, nn.Module, Tensor]]:
        """Name, head and values [B, T] of the terms, NaN or 0 = unknown."""
        times = _time_targets(batch) if self.time is not None else {}
        for group, heads, columns in (
            ("outcomes", self.outcomes, batch.outcomes),
            ("context", self.context, batch.context),
            ("time", self.time, times),
        ):
            for name, head in heads.items() if heads is not None else ():
                if name in columns:
                    yield f"{group}.{name}", head, columns[name]


def predicted_events(batch: EventBatch) -> Tensor:
    """Places, flat over [B, T], of each window's input events from its `skip` on."""
    event = torch.arange(batch.item.shape[1], device=batch.item.device)
    inside = event < batch.length[:, None]
    if batch.skip is not None:
        inside &= event >= batch.skip[:, None]
    return inside.flatten().nonzero().squeeze(1)


def _heads(kinds: Mapping[str, str], dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: AUXILIARY_TARGETS[kind](dim) for name, kind in kinds.items()})


def _time_targets(batch: EventBatch) -> dict[str, Tensor]:
    """What can be predicted of every event's time, [B, T]; 0 or NaN = unknown."""
    time, known = batch.time, batch.time != NO_TIME
    gap = torch.full(time.shape, torch.nan, device=time.device)
    both = known[:, 1:] & known[:, :-1]
    gap[:, 1:][both] = ((time[:, 1:] - time[:, :-1])[both].clamp(min=0) / 1e6).float()
    return {
        "gap": batch.gap,
        "log_gap": gap,
        "hour": torch.where(known, 1 + time // HOUR % 24, 0),
        "day": torch.where(known, 1 + time // DAY % 7, 0),
    }
