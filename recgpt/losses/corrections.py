"""What is added to logits so that drawn columns stand for the whole catalogue (the logQ corrections).

N rows, U distinct columns. A column j was drawn c_j times, each draw being it with probability q_j; p is a row's
positive. Two mistakes are common: a correction of the positive in other units than the negatives' (then it weighs as
much as n negatives), and hits removed without telling the estimate so. On a toy (tests) the mean gradient of each form
stands beside the full softmax's. See docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recgpt.losses.next_item import LogWeights, Mask
from recgpt.losses.objectives import MASKED

Correction = Literal["none", "inclusion", "yi", "tfrs", "naive", "renormalised", "khrylchenko"]


@dataclass(frozen=True)
class Draws:
    """What a batch's columns are, as a sample of the catalogue.

    Attributes:
        count: float32 [U], how often each column was drawn; None = each of a row's own negatives once.
        log_q: float32 [U], log of the probability that a draw is the column's item (for `inclusion`: that the batch
            holds it).
        log_q_positive: float32 [N], the same of each row's positive.
        total: draws that a row is compared with.
        hits: float32 [N], how many of them are the row's own item; where the positives are drawn too, itself included.
        own: whether a row's positive is one of the draws.
        mask: columns that are no negatives, as in `next_item_loss`; with negatives of a row's own those that are never
            drawn for it.
        positive: int64 [N], each row's column, -1 = none.
    """

    count: Tensor | None
    log_q: Tensor
    log_q_positive: Tensor
    total: float
    hits: Tensor
    own: bool
    positive: Tensor
    mask: Mask = None

    @property
    def log_count(self) -> Tensor | None:
        """Log of `count`; a column that no draw is weighs nothing."""
        if self.count is None:
            return None
        return torch.where(self.count > 0, self.count.clamp(min=1).log(), MASKED)


def _none(draws: Draws) -> LogWeights:
    """Every draw counts once; hits are removed."""
    return LogWeights(draws.log_count)


def _inclusion(draws: Draws) -> LogWeights:
    """Distinct columns, each weighed by 1 / the probability that the batch holds it (Horvitz and Thompson 1952)."""
    return LogWeights(-draws.log_q)


def _by_draw(draws: Draws) -> Tensor:
    count = draws.log_count
    return -draws.log_q if count is None else count - draws.log_q


def _yi(draws: Draws) -> LogWeights:
    """Yi et al. 2019: every logit lowered by log q, the positive's too; hits stay."""
    own = -draws.log_q_positive
    kept = own + draws.hits.clamp(min=1).log() if draws.own else own
    return LogWeights(_by_draw(draws), None, own, kept, keep_hits=True)


def _tfrs(draws: Draws) -> LogWeights:
    """TensorFlow Recommenders: every logit lowered by log q, the positive's too; hits are removed."""
    own = -draws.log_q_positive
    return LogWeights(_by_draw(draws), None, own, own)


def _naive(draws: Draws) -> LogWeights:
    """Negatives lowered by log q, the positive as it is: without log n it weighs next to nothing."""
    return LogWeights(_by_draw(draws))


def _left(draws: Draws) -> tuple[Tensor, Tensor]:
    """Log [N] of the draws left to a row without hits and masked columns, and of their probability."""
    left, lost = draws.total - draws.hits, draws.log_q_positive.exp()
    if draws.mask is not None:
        masked, group = draws.mask
        known = draws.positive.clamp(min=0)
        twice = masked[group, known] & (draws.positive >= 0)  # the positive's item is removed already
        if draws.count is not None:
            left = left - (masked.float() @ draws.count)[group] + twice * draws.count[known]
        lost = lost + (masked.float() @ draws.log_q.exp())[group] - twice * draws.log_q_positive.exp()
    return left.clamp(min=1).log(), (1 - lost).clamp(min=1e-6).log()


def _renormalised(draws: Draws) -> LogWeights:
    """Negatives lowered by log(n q / (1 - q_p)), n = the draws left when hits are removed; the positive as it is.

    The negatives' mass is then an unbiased estimate of the catalogue's without the positive. Items that `mask` removes
    leave the draws and the catalogue in the same way.
    """
    left, rest = _left(draws)
    shift = left - rest  # all logits of a row moved by the same number
    return LogWeights(_by_draw(draws), None, shift, shift)


def _khrylchenko(draws: Draws) -> LogWeights:
    """Khrylchenko et al. 2025 (arXiv 2507.09331): the gradient of `renormalised`, for the objective of that name.

    -log(e^f(p) / sum e^(f(d) - log Q'(d))) is weighed by 1 - P, P with the mean over the draws, Q' = Q / (1 - Q(p)).
    """
    left, rest = _left(draws)
    return LogWeights(_by_draw(draws), None, -rest, left - rest)


CORRECTIONS: dict[str, Callable[[Draws], LogWeights]] = {
    "none": _none,
    "inclusion": _inclusion,
    "yi": _yi,
    "tfrs": _tfrs,
    "naive": _naive,
    "renormalised": _renormalised,
    "khrylchenko": _khrylchenko,
}


def log_inclusion(log_q: Tensor, n: int) -> Tensor:
    """Log of the probability that n draws hold an item, 1 - (1 - q)^n, from log q; [U] -> [U]."""
    q = log_q.double().exp().clamp(max=1)
    return (-torch.expm1(n * torch.log1p(-q))).clamp(min=1e-30).log().float()


def log_mixture(log_q: Tensor, n: int, other: float, n_other: int) -> Tensor:
    """Log of Q = n / (n + n') q + n' / (n + n') u: n draws of q and n' of probability u (Yang et al. 2020)."""
    total = n + n_other
    return (n / total * log_q.exp() + n_other / total * other).log()
