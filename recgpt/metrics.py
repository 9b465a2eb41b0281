"""Ranking metrics, streamed over blocks of users.

The protocol: a target's rank is 1 + the number of OTHER candidates that score at least as high, so
equal scores (items whose ids collide, a model that says the same of everything) never help. A
target that no ranking can reach has rank ``MISS``.

Ranks are integers and sums are float64, so nothing depends on how the users are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from recgpt.data.batch import tensor
from recgpt.errors import RecGPTError

MISS = 0
"""The rank of a target outside the candidates: infinitely far down, worth 0 in every metric."""

Z_95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def _as_scores(scores: Any) -> NDArray[np.floating]:
    values = np.asarray(scores)
    if values.ndim != 2 or values.dtype not in (np.float16, np.float32, np.float64):
        raise RecGPTError(
            f"scores: expected a floating matrix of 16, 32 or 64 bits [users, candidates], got {values.dtype} "
            f"{list(values.shape)}; pass one row of scores for each user"
        )
    # max() propagates NaN and, unlike isnan().any(), allocates no second matrix.
    if values.size and np.isnan(values.max()):
        row = int(np.flatnonzero(np.isnan(values.max(axis=1)))[0])
        raise RecGPTError(
            f"scores: NaN in row {row} of this block; a diverged model cannot be ranked, "
            "look for the step where its loss left the finite range"
        )
    return values


def target_ranks(scores: Any, target: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank each row's target among the candidates of the row.

    Args:
        scores: float [B, C]; a column that is no candidate of the row (a seen item, an item
            outside the split's candidates) holds -inf beforehand.
        target: int64 [B], the target's column; -1 where the target has no column.

    Returns:
        ``(rank, ties)``, int64 [B] each. ``rank`` = 1 + other columns with score >= the target's,
        ``MISS`` (0) where the target is -1 or itself holds -inf. ``ties`` = other columns with
        exactly the target's score.

    Raises:
        RecGPTError: a NaN, a column out of range, or shapes that do not fit.
    """
    values = _as_scores(scores)
    columns = np.asarray(target, dtype=np.int64)
    if columns.shape != values.shape[:1]:
        raise RecGPTError(
            f"target: shape {list(columns.shape)} beside scores {list(values.shape)}; pass one column for each row"
        )
    outside = (columns < -1) | (columns >= values.shape[1])
    if outside.any():
        raise RecGPTError(
            f"target: column {int(columns[outside][0])} is outside 0..{values.shape[1] - 1}; "
            "pass -1 for a target that is no candidate"
        )
    rank = np.full(len(columns), MISS, dtype=np.int64)
    ties = np.zeros(len(columns), dtype=np.int64)
    if not values.size:
        return rank, ties
    own = values[np.arange(len(columns)), np.maximum(columns, 0)]
    reachable = (columns >= 0) & (own > -np.inf)
    # The target is one of the columns that reach its own score: the count is already 1 + others.
    at_least = np.count_nonzero(values >= own[:, None], axis=1)
    equal = np.count_nonzero(values == own[:, None], axis=1) - 1
    rank[reachable] = at_least[reachable]
    ties[reachable] = equal[reachable]
    return rank, ties


def top_k(scores: Any, k: int) -> NDArray[np.int64]:
    """The columns of each row's k highest scores, best first.

    Args:
        scores: float [B, C], -inf where a column is no candidate.
        k: how many; at least 1.

    Returns:
        int64 [B, k]. Equal scores come in column order, so the answer is a function of the scores
        alone. Where a row has fewer than k candidates the rest is -1.
    """
    values = _as_scores(scores)
    if k < 1:
        raise RecGPTError(f"k: {k} is below 1; ask for at least one item")
    n_rows, n_columns = values.shape
    kept = min(k, n_columns)
    best = np.full((n_rows, k), -1, dtype=np.int64)
    if not kept or not n_rows:
        return best
    chosen = torch.topk(tensor(values), kept, sorted=False)[1].numpy()
    floor = np.take_along_axis(values, chosen, axis=1).min(axis=1)
    # topk picks freely among columns equal to the k-th: settle such rows by a full sort.
    split = np.count_nonzero(values >= floor[:, None], axis=1) > kept
    chosen.sort(axis=1)
    picked = np.take_along_axis(values, chosen, axis=1)
    chosen = np.take_along_axis(chosen, np.argsort(-picked, axis=1, kind="stable"), axis=1)
    chosen[split] = np.argsort(-values[split], axis=1, kind="stable")[:, :kept]
    chosen[np.isneginf(np.take_along_axis(values, chosen, axis=1))] = -1
    best[:, :kept] = chosen
    return best


def recall_gain(rank: ArrayLike, k: int) -> NDArray[np.float64]:
    """1 where the target is among the first k, else 0 (also called hit rate). Float64 [B]."""
    ranks = np.asarray(rank, dtype=np.int64)
    return ((ranks != MISS) & (ranks <= k)).astype(np.float64)


def ndcg_gain(rank: ArrayLike, k: int) -> NDArray[np.float64]:
    """1 / log2(1 + rank) where rank <= k, else 0: NDCG with one relevant item. Float64 [B]."""
    ranks = np.asarray(rank, dtype=np.int64)
    # A miss (rank 0) would divide by log2(1) = 0; its gain is masked all the same.
    return recall_gain(ranks, k) / np.log2(1.0 + np.maximum(ranks, 1))


def reciprocal_rank(rank: ArrayLike) -> NDArray[np.float64]:
    """1 / rank, 0 for a miss. Float64 [B]."""
    ranks = np.asarray(rank, dtype=np.int64)
    return (ranks != MISS) / np.maximum(ranks, 1)


class RetrievalMetrics:
    """Means over users of the ranking metrics, fed block by block.

    Args:
        ks: cut-offs, e.g. ``(10, 50)``.
        item_popularity: [C], each column's number of train events.
        n_candidates: what coverage divides by; default C. Give it where some columns are no
            candidates of the split (they hold -inf for every user).
    """

    def __init__(self, ks: Sequence[int], item_popularity: ArrayLike, n_candidates: int | None = None) -> None:
        self.ks = tuple(sorted({int(k) for k in ks}))
        if not self.ks or self.ks[0] < 1:
            raise RecGPTError(f"k: {list(ks)} must be one or more cut-offs of at least 1")
        self.popularity = np.asarray(item_popularity, dtype=np.float64)
        self.n_candidates = len(self.popularity) if n_candidates is None else int(n_candidates)
        if self.n_candidates < 1:
            raise RecGPTError("candidates: there is none to rank; check the split of this log")
        self.n_users = 0
        self._sums: dict[str, float] = {}
        self._recommended = {k: np.zeros(len(self.popularity), dtype=bool) for k in self.ks}
        self._popularity = dict.fromkeys(self.ks, 0.0)
        self._n_recommended = dict.fromkeys(self.ks, 0)

    def _add(self, name: str, gains: NDArray[np.float64]) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + float(gains.sum())

    def update(self, rank: ArrayLike, top_columns: ArrayLike) -> None:
        """Add a block of users.

        Args:
            rank: int64 [B] of ``target_ranks``.
            top_columns: int64 [B, max(ks)] of ``top_k``, best first, -1 where there is none.
        """
        ranks = np.asarray(rank, dtype=np.int64)
        columns = np.asarray(top_columns, dtype=np.int64)
        if columns.ndim != 2 or len(columns) != len(ranks) or columns.shape[1] < self.ks[-1]:
            raise RecGPTError(
                f"top_columns: shape {list(columns.shape)} for {len(ranks)} ranks; pass [{len(ranks)}, {self.ks[-1]}]"
            )
        self.n_users += len(ranks)
        self._add("mrr", reciprocal_rank(ranks))
        for k in self.ks:
            self._add(f"recall@{k}", recall_gain(ranks, k))
            self._add(f"ndcg@{k}", ndcg_gain(ranks, k))
            shown = columns[:, :k].ravel()
            shown = shown[shown >= 0]
            self._recommended[k][shown] = True
            self._popularity[k] += float(self.popularity[shown].sum())
            self._n_recommended[k] += len(shown)

    def result(self) -> dict[str, float]:
        """Return the metrics so far.

        Returns:
            ``recall@k``, ``ndcg@k`` and ``mrr``, means over users; ``coverage@k`` = distinct
            recommended items / candidates; ``avg_popularity@k`` = mean train events of a
            recommended item.

        Raises:
            RecGPTError: no user was added.
        """
        if not self.n_users:
            raise RecGPTError("users: none has a target in this split; choose another split")
        out: dict[str, float] = {}
        for k in self.ks:
            for name in (f"recall@{k}", f"ndcg@{k}"):
                out[name] = self._sums[name] / self.n_users
            out[f"coverage@{k}"] = float(self._recommended[k].sum()) / self.n_candidates
            out[f"avg_popularity@{k}"] = self._popularity[k] / max(1, self._n_recommended[k])
        out["mrr"] = self._sums["mrr"] / self.n_users
        return out


def paired_interval(a: ArrayLike, b: ArrayLike, bootstrap: int = 0, seed: int = 0) -> dict[str, float]:
    """95 % interval of the mean difference a - b over users measured under both models.

    The default is the normal interval, mean +- 1.96 standard errors (n - 1 in the variance): with
    thousands of users the mean is close to normal even though single gains are not, and the answer
    needs no random numbers. With few users give ``bootstrap``, the number of resamples of users
    (1,000 is usual): the interval is then between the 2.5 % and the 97.5 % quantile.

    Args:
        a: [U] one value a user, e.g. ``ndcg_gain``.
        b: [U] the same users in the same order.
        bootstrap: resamples; 0 = the normal interval.
        seed: of the resamples.

    Returns:
        ``{"difference", "low", "high"}``.

    Raises:
        RecGPTError: shapes differ, fewer than two users, or a value is not finite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise RecGPTError(
            f"users: {list(first.shape)} beside {list(second.shape)} values; a paired interval "
            "needs the same two or more users in both"
        )
    gap = first - second
    if not np.isfinite(gap).all():
        raise RecGPTError(f"users: value {int(np.argmin(np.isfinite(gap)))} is not finite")
    mean, n_users = float(gap.mean()), len(gap)
    if bootstrap:
        rng = np.random.Generator(np.random.PCG64(seed))
        means = [gap[rng.integers(0, n_users, n_users)].mean() for _ in range(bootstrap)]
        low, high = (float(q) for q in np.quantile(means, (0.025, 0.975)))
    else:
        half = Z_95 * float(gap.std(ddof=1)) / n_users**0.5
        low, high = mean - half, mean + half
    return {"difference": mean, "low": low, "high": high}
