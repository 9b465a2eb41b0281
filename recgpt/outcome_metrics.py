"""Metrics of predicted probabilities of one binary outcome, with intervals over users.

Order: auc, gauc. Probability: logloss, normalised entropy. Calibration: ece. Every function takes rows of 0, 1 or
NaN (unknown: the row is left out) beside probabilities. What is undefined (auc of one class, anything of no rows)
is NaN; `measure` and `paired` say None instead, so that it is null in JSON.

Resamples are weights: a user drawn c times weighs c, which is what repeating the user's rows c times would give. So
the rows are sorted once, not once a resample, and a resample costs cumulative sums. Sums of counts are integers
in float64, so auc and gauc are exact below 2^53 pairs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recgpt.errors import RecGPTError
from recgpt.metrics import Z_95

CLIP = 1e-7
BINS = 15
METRICS = ("auc", "gauc", "logloss", "ne", "ece")

Floats = NDArray[np.float64]


class _Rows(NamedTuple):
    """The rows whose outcome is known."""

    y: Floats
    p: Floats
    user: NDArray[np.int64]
    """Index of the row's user among the distinct ones, 0 .. n_users - 1."""
    n_users: int


def _known(y: ArrayLike, p: ArrayLike, user: ArrayLike | None = None) -> _Rows:
    outcome, predicted = np.asarray(y, np.float64), np.asarray(p, np.float64)
    users = np.zeros(outcome.shape, np.int64) if user is None else np.asarray(user)
    if outcome.ndim != 1 or outcome.shape != predicted.shape or outcome.shape != users.shape:
        raise RecGPTError(
            f"outcomes: shapes y {list(outcome.shape)}, p {list(predicted.shape)}, user {list(users.shape)} differ; "
            "pass one value a row in each"
        )
    known = ~np.isnan(outcome)
    outcome, predicted = outcome[known], predicted[known]
    if not np.isin(outcome, (0.0, 1.0)).all():
        raise RecGPTError("y: a value is none of 0, 1 and NaN; these are metrics of binary outcomes")
    if not ((predicted >= 0) & (predicted <= 1)).all():  # false for NaN too
        raise RecGPTError("p: a value is no probability between 0 and 1; a diverged model cannot be measured")
    distinct, index = np.unique(users[known], return_inverse=True)
    return _Rows(outcome, predicted, index.reshape(-1), len(distinct))


class _Sorted:
    """The rows by rising probability (stable), and what every resample reuses."""

    def __init__(self, rows: _Rows) -> None:
        order = np.argsort(rows.p, kind="stable")
        self.y, self.p, self.user = rows.y[order], rows.p[order], rows.user[order]
        self.gap = self.p - self.y
        self.positive, self.negative = np.flatnonzero(self.y > 0), np.flatnonzero(self.y == 0)
        own, others = self.p[self.positive], self.p[self.negative]
        self.n_below = np.searchsorted(others, own, side="left")
        self.n_to_tie = np.searchsorted(others, own, side="right")

    def auc(self, weight: Floats) -> float:
        """AUC of the weighted rows: pairs of a positive with a lower negative, ties half, of all such pairs."""
        negatives = np.append(0.0, np.cumsum(weight[self.negative]))
        positive = weight[self.positive]
        won = float(positive @ (negatives[self.n_below] + negatives[self.n_to_tie])) / 2
        return _ratio(won, float(positive.sum() * negatives[-1]))

    def ece(self, weight: Floats, bins: int) -> float:
        """ECE of the rows repeated by their (whole) weights; a row may lie across the border of two bins."""
        end = np.cumsum(weight)
        total = int(end[-1]) if len(end) else 0
        if not total:
            return np.nan
        border = _borders(total, bins)[1:]
        row = np.searchsorted(end, border)
        whole = [weight[a:b] @ self.gap[a:b] for a, b in pairwise((0, *row.tolist()))]
        up_to = np.cumsum(whole) + (border - end[row] + weight[row]) * self.gap[row]
        # n_b / N |mean p - mean y| = |sum p - sum y| / N
        return float(np.abs(np.diff(up_to, prepend=0.0)).sum()) / total


def _borders(n: int, bins: int) -> NDArray[np.int64]:
    """[bins + 1] where `np.array_split` cuts n rows: the first n % bins parts hold one row more."""
    if bins < 1:
        raise RecGPTError(f"bins: {bins} is below 1")
    index = np.arange(bins + 1)
    return index * (n // bins) + np.minimum(index, n % bins)


def _user_aucs(rows: _Rows) -> tuple[Floats, Floats]:
    """Each user's AUC (NaN without both classes) and number of rows, float64 [n_users]."""
    n = np.bincount(rows.user, minlength=rows.n_users).astype(np.float64)
    order = np.lexsort((rows.p, rows.user))
    y, p, user = rows.y[order], rows.p[order], rows.user[order]
    last = np.flatnonzero(np.append((p[1:] != p[:-1]) | (user[1:] != user[:-1]), True)[: len(order)])
    positive, owner = np.cumsum(y)[last], user[last]
    negative = last + 1.0 - positive
    below = np.concatenate(([0.0], negative[:-1]))[: len(last)]
    positives = np.bincount(rows.user, rows.y, rows.n_users)
    negatives = n - positives
    before = (np.cumsum(negatives) - negatives)[owner]  # negatives of the users before this one
    half_pairs = np.diff(positive, prepend=0.0) * (below + negative - 2 * before)
    won = np.bincount(owner, half_pairs, rows.n_users)
    with np.errstate(invalid="ignore"):
        return won / (2 * positives * negatives), n


def _losses(rows: _Rows) -> Floats:
    p = np.clip(rows.p, CLIP, 1 - CLIP)
    return -np.where(rows.y > 0, np.log(p), np.log1p(-p))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else np.nan


def _entropy(rate: float) -> float:
    """Entropy in nats of a binary outcome; 0 for a rate of 0 or 1."""
    return float(-sum(q * np.log(q) for q in (rate, 1 - rate) if q > 0))


def auc(y: ArrayLike, p: ArrayLike) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties half.

    Args:
        y: [N] 0, 1 or NaN.
        p: [N] probabilities.
    """
    rows = _known(y, p)
    return _Sorted(rows).auc(np.ones(len(rows.y)))


def gauc(y: ArrayLike, p: ArrayLike, user: ArrayLike) -> tuple[float, int, int]:
    """Mean AUC within a user, weighted by the user's rows, over the users with both classes (Zhu et al. 2017).

    Args:
        y: [N] 0, 1 or NaN.
        p: [N] probabilities.
        user: [N] any key of the row's user.

    Returns:
        The value, the users that count, their rows.
    """
    value, n = _user_aucs(_known(y, p, user))
    both = ~np.isnan(value)
    return _ratio(float(value[both] @ n[both]), float(n[both].sum())), int(both.sum()), int(n[both].sum())


def logloss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log likelihood in nats, p clipped to [1e-7, 1 - 1e-7]."""
    loss = _losses(_known(y, p))
    return _ratio(float(loss.sum()), len(loss))


def normalised_entropy(y: ArrayLike, p: ArrayLike) -> float:
    """Log loss over that of always saying the rows' own rate (He et al. 2014): below 1 = better than the rate."""
    rows = _known(y, p)
    return _ratio(logloss(y, p), _entropy(float(rows.y.mean()))) if len(rows.y) else np.nan


def ece(y: ArrayLike, p: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of equal count by p of n_b / N |mean p - mean y|.

    Rows are sorted by p (stable) and cut as `np.array_split` cuts them.
    """
    rows = _known(y, p)
    return _Sorted(rows).ece(np.ones(len(rows.y)), bins)


def expected_ece(p: ArrayLike, draws: int = 100, seed: int = 0, bins: int = BINS) -> float:
    """The ece that these predictions would show if they were exactly right: mean over labels drawn from p.

    It is above 0 because a bin's rate is a mean of finitely many labels, and shrinks like 1 / sqrt(N).

    Args:
        p: [N] probabilities.
        draws: of all N labels, each on its own.
        seed: of the draws.
        bins: as in `ece`.
    """
    ordered = np.sort(np.asarray(p, np.float64))
    n = len(ordered)
    if not n:
        return np.nan
    border = np.unique(_borders(n, bins))[:-1]
    sums = np.add.reduceat(ordered, border)
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = (np.add.reduceat((rng.random(n) < ordered).astype(np.float64), border) for _ in range(draws))
    return float(np.mean([np.abs(sums - labels).sum() / n for labels in drawn]))


class _Statistic:
    """All of `METRICS` as a function of how often each user counts."""

    def __init__(self, rows: _Rows) -> None:
        self.rows, self.ordered = rows, _Sorted(rows)
        user_auc, n = _user_aucs(rows)
        self.both = ~np.isnan(user_auc)
        self.gauc_rows = np.where(self.both, n, 0.0)
        positives = np.bincount(rows.user, rows.y, rows.n_users)
        losses = np.bincount(rows.user, _losses(rows), rows.n_users)
        ranked = np.where(self.both, user_auc, 0.0) * n
        self.sums = np.stack([n, positives, losses, self.gauc_rows, ranked], axis=1)

    def __call__(self, count: Floats) -> tuple[float, ...]:
        weight = count[self.ordered.user]
        n, positives, losses, gauc_rows, ranked = (float(value) for value in count @ self.sums)
        mean_loss, entropy = _ratio(losses, n), _entropy(_ratio(positives, n))
        return (
            self.ordered.auc(weight),
            _ratio(ranked, gauc_rows),
            mean_loss,
            _ratio(mean_loss, entropy),
            self.ordered.ece(weight, BINS),
        )


class Measured(NamedTuple):
    """One system's metrics of an outcome, and those of its resamples."""

    metrics: dict[str, Any]
    """auc, gauc, logloss, ne, ece, ece_expected, rate, mean_p, rows, users and gauc_rows (users with both classes and
    their rows), `interval`: metric -> [low, high]. None where undefined."""
    values: dict[str, float]
    """Of `METRICS`, NaN where undefined."""
    samples: dict[str, Floats]
    """The same of each resample, float64 [bootstrap]."""


def measure(y: ArrayLike, p: ArrayLike, user: ArrayLike, bootstrap: int = 200, seed: int = 0) -> Measured:
    """All metrics of one outcome with 95 % intervals by a bootstrap over users.

    Users are resampled, not rows, because a user's rows hang together. Two systems measured on the same rows with the
    same seed see the same resamples, so `paired` can subtract them. The intervals are percentiles of the resamples;
    those of ece are shifted onto the measured value first, for a resample repeats rows, which alone raises its ece.

    Args:
        y: [N] 0, 1 or NaN.
        p: [N] probabilities.
        user: [N] any key of the row's user.
        bootstrap: resamples; 0, or fewer than two users: no intervals.
        seed: of the resamples and of the labels drawn for `ece_expected`.

    Raises:
        RecGPTError: shapes differ, or a value is no outcome or no probability.
    """
    rows = _known(y, p, user)
    statistic = _Statistic(rows)
    values = dict(zip(METRICS, statistic(np.ones(rows.n_users)), strict=True))
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = [statistic(_drawn(rng, rows.n_users)) for _ in range(bootstrap if rows.n_users > 1 else 0)]
    samples = dict(zip(METRICS, np.array(drawn, np.float64).reshape(-1, len(METRICS)).T, strict=True))
    if drawn:
        samples["ece"] = samples["ece"] + (values["ece"] - samples["ece"].mean())
    interval = {name: _quantiles(samples[name]) for name in METRICS}
    if interval["ece"] is not None:
        interval["ece"] = [max(0.0, bound) for bound in interval["ece"]]
    metrics: dict[str, Any] = {name: _or_none(value) for name, value in values.items()}
    metrics |= {
        "ece_expected": _or_none(expected_ece(rows.p, seed=seed)),
        "rate": _or_none(_ratio(float(rows.y.sum()), len(rows.y))),
        "mean_p": _or_none(_ratio(float(rows.p.sum()), len(rows.p))),
        "rows": len(rows.y),
        "users": int(statistic.both.sum()),
        "gauc_rows": int(statistic.gauc_rows.sum()),
        "interval": interval,
    }
    return Measured(metrics, values, samples)


def outcome_metrics(y: ArrayLike, p: ArrayLike, user: ArrayLike, bootstrap: int = 200, seed: int = 0) -> dict[str, Any]:
    """`Measured.metrics` of `measure`: a dict that JSON can hold."""
    return measure(y, p, user, bootstrap, seed).metrics


def paired(first: Measured, second: Measured) -> dict[str, dict[str, float | None]]:
    """First minus second for each of `METRICS`, with 95 % intervals over the same resamples of users.

    Args:
        first: of `measure`.
        second: on the same rows, with the same bootstrap and seed.

    Returns:
        metric -> ``{"difference", "low", "high"}``; None where undefined.

    Raises:
        RecGPTError: they were measured on different rows.
    """
    alike = all(first.metrics[key] == second.metrics[key] for key in ("rows", "rate", "users", "gauc_rows"))
    if not alike or len(first.samples["auc"]) != len(second.samples["auc"]):
        raise RecGPTError("paired: the two were not measured on the same rows; measure both with the same y and user")
    out: dict[str, dict[str, float | None]] = {}
    for name in METRICS:
        low, high = _quantiles(first.samples[name] - second.samples[name]) or (None, None)
        out[name] = {"difference": _or_none(first.values[name] - second.values[name]), "low": low, "high": high}
    return out


def _drawn(rng: np.random.Generator, n: int) -> Floats:
    """How often each of n users is in a resample of n."""
    return np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)


def _quantiles(samples: Floats) -> list[float] | None:
    """The 2.5 % and the 97.5 % quantile of the resamples in which the metric is defined."""
    known = samples[~np.isnan(samples)]
    return [float(bound) for bound in np.quantile(known, (0.025, 0.975))] if len(known) else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def calibration(y: ArrayLike, p: ArrayLike, bins: int = BINS) -> list[dict[str, float]]:
    """The bins of `ece` for a plot, by rising p.

    Returns:
        For each bin that holds rows: mean ``p``, the outcome's ``rate``, ``rows``, and ``low`` and ``high``, the 95 %
        interval of the rate (Wilson 1927).
    """
    ordered = _Sorted(_known(y, p))
    table = []
    for part in np.array_split(np.arange(len(ordered.y)), bins):
        if n := len(part):
            rate, z2 = float(ordered.y[part].mean()), Z_95**2
            centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
            half = Z_95 / (1 + z2 / n) * float(np.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n)))
            low, high = max(0.0, centre - half), min(1.0, centre + half)
            table.append({"p": float(ordered.p[part].mean()), "rate": rate, "rows": n, "low": low, "high": high})
    return table
