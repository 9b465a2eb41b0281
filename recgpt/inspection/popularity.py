"""The length of the items' vectors, before it is normalised away, against the items' popularity."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PARTS = 10


def mean_ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks 1 .. N of [N] in rising order, float64; equal values share the mean of theirs."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse]


def spearman(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Correlation of the ranks of two [N], ties by mean ranks; None where one of them does not vary."""
    a, b = (ranks - ranks.mean() for ranks in (mean_ranks(x), mean_ranks(y)))
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else None


def by_popularity(length: NDArray[np.floating], events: NDArray[np.int64]) -> dict[str, Any]:
    """Lengths of N vectors against their items' training events.

    Returns:
        `spearman`, and `deciles` of popularity from the least popular tenth up: `low` and `high` (training events), `n`
        items, `p10`, `median` and `p90` of the length. Items that are as popular stay together, so a decile can be
        larger than a tenth, or be missing.
    """
    place = np.floor(PARTS * (mean_ranks(events) - 0.5) / max(1, len(events))).astype(np.int64)
    deciles = []
    for part in np.unique(place):
        rows = place == part
        p10, median, p90 = np.quantile(length[rows].astype(np.float64), (0.1, 0.5, 0.9)).tolist()
        low, high = int(events[rows].min()), int(events[rows].max())
        deciles.append({"low": low, "high": high, "n": int(rows.sum()), "p10": p10, "median": median, "p90": p90})
    return {"spearman": spearman(length, events), "deciles": deciles}
