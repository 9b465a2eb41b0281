"""What a row of scores costs: the objectives that share one chunked engine (`next_item.py`).

n rows (queries), C columns; each row has one column that is its positive, the others are its negatives. An objective
takes scores [n, C], overwrites them with its gradient, and returns the sum of the rows' losses. A negative's log-weight
is how often it counts: in a softmax it is added to its logit, elsewhere its exponential multiplies its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["softmax", "khrylchenko", "bce", "gbce", "bpr", "hinge", "logistic"]
MASKED = -1e30


@dataclass
class Rows:
    """A chunk of rows.

    Attributes:
        scores: float [n, C], scores divided by the temperature.
        place: (arange(n), int64 [n]), each row's positive.
        weight: log-weights of negatives, [C] or [n, C]; None = 0.
        removed: bool [n, C], columns that are no negatives of the row; None = none. The positive's entry is free.
        top: [n] added to the positive's logit in the numerator; None = 0. Softmax only, as the next.
        bottom: [n] the same in the denominator.
    """

    scores: Tensor
    place: tuple[Tensor, Tensor]
    weight: Tensor | None = None
    removed: Tensor | None = None
    top: Tensor | None = None
    bottom: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """An objective and its settings.

    Attributes:
        kind: `softmax`: -log(e^s+ / (e^s+ + sum of the negatives' e^s)). `khrylchenko`: the weighted form of 2025
            (arXiv 2507.09331), whose gradient is softmax's and whose value is (1 - P) times the loss of a softmax
            without the positive in the denominator. `bce`: log(1 + e^-s+) and log(1 + e^s-), divided by 1 + the number
            of negatives. `gbce`: the same with the positive's term times beta = 1 - t (1 - alpha), alpha = the share of
            the catalogue's other items that are negatives (Petrov and Macdonald 2023). `bpr`: the mean of
            log(1 + e^(s- - s+)) (Rendle et al. 2009), also called the (triplet) `logistic` loss, its slope being 1 /
            temperature. `hinge`: the mean of max(0, margin + s- - s+).
        margin: of `hinge`, in units of the logits.
        calibration: t of `gbce`: 0 = bce, 1 = calibrated.
        catalogue: items that negatives could be, for `gbce`.
        hard: keep only this many negatives of each row, those with the highest logits after weights and masks
            (the order of TensorFlow Recommenders); 0 = all.
    """

    kind: Kind = "softmax"
    margin: float = 1.0
    calibration: float = 0.75
    catalogue: int = 0
    hard: int = 0

    def __call__(self, rows: Rows) -> Tensor:
        """The sum of the rows' losses, float64; `rows.scores` becomes its gradient."""
        return OBJECTIVES[self.kind](rows, self)


def _softmax(rows: Rows, objective: Objective) -> Tensor:
    p, place = rows.scores, rows.place
    score = p[place]
    if rows.weight is not None:
        p += rows.weight
    if rows.removed is not None:
        p.masked_fill_(rows.removed, MASKED)
    if objective.hard:
        p.masked_fill_(_not_hardest(p, place, objective.hard), MASKED)
    p[place] = score if rows.bottom is None else score + rows.bottom
    top = p.amax(1, keepdim=True)
    p.sub_(top).exp_()
    mass = p.sum(1, keepdim=True)
    if rows.top is not None:
        score = score + rows.top
    if objective.kind == "khrylchenko":
        total = _without_positive(p, place, top, score)
    else:
        total = (top + mass.log()).sum(dtype=torch.float64) - score.sum(dtype=torch.float64)
    p.div_(mass)
    p[place] -= 1
    return total


def _without_positive(p: Tensor, place: tuple[Tensor, Tensor], top: Tensor, score: Tensor) -> Tensor:
    """The sum of (1 - P) (log of the negatives' mass - the positive's logit); a row without negatives costs 0."""
    own = p[place]
    p[place] = 0
    negative = p.sum(1)
    p[place] = own
    value = negative / (negative + own) * (top.squeeze(1) + negative.log() - score)
    return torch.where(negative > 0, value, 0).sum(dtype=torch.float64)


def _pointwise(rows: Rows, objective: Objective) -> Tensor:
    p, place = rows.scores, rows.place
    score = p[place]
    weight, count = _negatives(rows, objective.hard)
    beta: Tensor | float = 1.0
    if objective.kind == "gbce":
        alpha = (count / max(objective.catalogue - 1, 1)).clamp(max=1.0)
        beta = 1.0 - objective.calibration * (1.0 - alpha)
    cost = F.softplus(p)
    p.sigmoid_()
    if weight is not None:
        cost *= weight
        p *= weight
    scale = 1.0 / (1.0 + count)
    p *= scale.unsqueeze(1)
    p[place] = -beta * scale * torch.sigmoid(-score)
    return ((cost.sum(1) + beta * F.softplus(-score)) * scale).sum(dtype=torch.float64)


def _pairwise(rows: Rows, objective: Objective) -> Tensor:
    p, place = rows.scores, rows.place
    score = p[place]
    weight, count = _negatives(rows, objective.hard)
    p -= score.unsqueeze(1)
    if objective.kind == "hinge":
        p += objective.margin
        cost = p.clamp(min=0)
        p.gt_(0)
    else:
        cost = F.softplus(p)
        p.sigmoid_()
    if weight is not None:
        cost *= weight
        p *= weight
    scale = torch.where(count > 0, 1.0 / count, 0.0)  # a row without negatives costs 0
    p *= scale.unsqueeze(1)
    p[place] = -p.sum(1)
    return (cost.sum(1) * scale).sum(dtype=torch.float64)


def _negatives(rows: Rows, hard: int) -> tuple[Tensor | None, Tensor]:
    """Weights of the negatives ([C] or [n, C]; None = 1) and each row's sum of them [n].

    Columns that are no negatives, and the positive, get a score at which every loss and gradient is exactly 0.
    """
    p, place, removed = rows.scores, rows.place, rows.removed
    if removed is not None:
        p.masked_fill_(removed, MASKED)
    if hard:
        logits = p if rows.weight is None else p + rows.weight
        removed = _not_hardest(logits, place, hard)
        p.masked_fill_(removed, MASKED)
    weight = None if rows.weight is None else rows.weight.exp()
    p[place] = MASKED
    if removed is None and weight is None:
        return None, p.new_full((len(p),), p.shape[1] - 1)
    if removed is None and weight is not None and weight.dim() == 1:
        return weight, weight.sum() - weight[place[1]]
    counts = (p > MASKED).to(p.dtype)
    return weight, counts.sum(1) if weight is None else counts.mul_(weight).sum(1)


def _not_hardest(logits: Tensor, place: tuple[Tensor, Tensor], hard: int) -> Tensor:
    """Bool [n, C], all but the `hard` highest logits of each row's negatives."""
    logits[place] = MASKED
    hardest = logits.topk(min(hard, logits.shape[1]), 1)
    removed = torch.ones_like(logits, dtype=torch.bool)
    return removed.scatter_(1, hardest.indices, hardest.values <= MASKED)


OBJECTIVES: dict[str, Callable[[Rows, Objective], Tensor]] = {
    "softmax": _softmax,
    "khrylchenko": _softmax,
    "bce": _pointwise,
    "gbce": _pointwise,
    "bpr": _pairwise,
    "logistic": _pairwise,
    "hinge": _pairwise,
}
