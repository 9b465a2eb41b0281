"""What the numbers say: each cell beside its log's default, with the noise of the default's seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .results import Result

# 97.5 % quantiles of Student's t, by degrees of freedom.
_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
METRIC = "ndcg@10"
SECOND = "recall@10"


@dataclass(frozen=True)
class Noise:
    """How far two runs of one config lie apart.

    Attributes:
        mean: over the default's seeds.
        sd: standard deviation of one run (n - 1 in the denominator).
        n: seeds.
    """

    mean: float
    sd: float
    n: int

    def half_width(self, n: int) -> float:
        """Half the 95 % interval of (mean of n runs) - (this mean), where both configs scatter alike.

        t(n0 - 1) * sd * sqrt(1 / n0 + 1 / n): Student's t for two means whose common deviation is estimated from the
        first group, because two seeds say next to nothing of their own.
        """
        return _T[min(self.n - 1, max(_T))] * self.sd * math.sqrt(1 / self.n + 1 / n)


@dataclass(frozen=True)
class Row:
    """One cell in figures.

    Attributes:
        n: seeds measured.
        metric, second: means of NDCG@10 and recall@10.
        difference: of the metric's mean from the default's; None for the default itself or without one.
        half_width: of its 95 % interval; None where the default has fewer than two seeds.
        cpu_seconds: mean process time.
        model_bytes: size of the weights.
    """

    n: int
    metric: float
    second: float
    difference: float | None
    half_width: float | None
    cpu_seconds: float
    model_bytes: int

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `no difference` (the interval holds 0), or nothing where it cannot be said."""
        if self.difference is None or self.half_width is None:
            return ""
        if abs(self.difference) <= self.half_width:
            return "no difference"
        return "better" if self.difference > 0 else "worse"


def noise(default: Sequence[Result]) -> Noise | None:
    """The noise of a log, from its default's results; None below two seeds."""
    values = [result.valid[METRIC] for result in default]
    if len(values) < 2:
        return None
    return Noise(statistics.fmean(values), statistics.stdev(values), len(values))


def row(results: Sequence[Result], default: Sequence[Result], is_default: bool = False) -> Row | None:
    """A cell's figures; None where nothing is measured."""
    if not results:
        return None
    mean = statistics.fmean(result.valid[METRIC] for result in results)
    band = noise(default)
    compared = bool(default) and not is_default
    return Row(
        n=len(results),
        metric=mean,
        second=statistics.fmean(result.valid[SECOND] for result in results),
        difference=mean - statistics.fmean(result.valid[METRIC] for result in default) if compared else None,
        half_width=band.half_width(len(results)) if compared and band is not None else None,
        cpu_seconds=statistics.fmean(result.cpu_seconds for result in results),
        model_bytes=results[0].model_bytes,
    )
