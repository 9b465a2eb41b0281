"""Embeddings of an event's time: the gap before it, the time of day and of the week, and the moment itself.

Every one is zero where the time is unknown. Times are UTC; a log of one time zone needs no offset, because sine
and cosine at a shifted phase are linear in those at phase 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from recgpt.data.batch import N_GAP_BUCKETS
from recgpt.data.events import NO_TIME

T = TypeVar("T")
TimePart = Literal["gap", "hour", "week", "absolute"]
HOUR = 3_600_000_000
"""Microseconds of an hour."""
DAY = 24 * HOUR
WEEK = 7 * DAY


def distinct(names: list[T]) -> list[T]:
    """The names as they are; a ValueError where one stands twice."""
    if len(set(names)) != len(names):
        raise ValueError("a part stands twice; name each once")
    return names


TimeParts = Annotated[list[TimePart], AfterValidator(distinct)]


class TimeGapEmbedding(nn.Module):
    """The time since the previous event, in buckets of log2 seconds.

    Args:
        n_buckets: buckets, the first of them for an unknown gap.
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    def __init__(self, n_buckets: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(n_buckets, dim, padding_idx=0)
        with torch.no_grad():
            nn.init.normal_(self.table.weight[1:], std=std)

    def forward(self, buckets: Tensor) -> Tensor:
        """int64 [...] of `gap_buckets` -> [..., D]."""
        return self.table(buckets)


def phase(time: Tensor, period: int) -> Tensor:
    """The part of a period that has passed, as an angle in [0, 2 pi), float32 [...].

    Args:
        time: int64 [...] microseconds; the remainder is taken in integers, so nothing is lost.
        period: microseconds.
    """
    return (time % period).float() * (2 * math.pi / period)


class CyclicTime(nn.Module):
    """Sine and cosine of a period's harmonics, mapped linearly: its end meets its beginning.

    Args:
        period: microseconds.
        harmonics: 1 .. this many cycles in a period.
        dim: width D.
        std: standard deviation of the output's entries at the start.
    """

    def __init__(self, period: int, harmonics: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.period, self.harmonics = period, harmonics
        self.linear = nn.Linear(2 * harmonics, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=std / harmonics**0.5)

    def forward(self, time: Tensor) -> Tensor:
        """int64 [...] microseconds or `NO_TIME` -> [..., D]."""
        order = torch.arange(1, self.harmonics + 1, device=time.device)
        angle = phase(time, self.period).unsqueeze(-1) * order
        return self.linear(torch.cat((angle.cos(), angle.sin()), -1)) * (time != NO_TIME).unsqueeze(-1)


class AbsoluteTime(nn.Module):
    """The moment: cosine and sine of fixed periods with learned phases, and its logarithm, mapped linearly.

    PinnerFormer's r(t) = [cos(2 pi t / p + a), sin(2 pi t / p + b), log t] (Pancha et al. 2022), with periods from a
    quarter of an hour to a year as there. The logarithm is of t / 40 years: log t itself, counted from 1970, would be
    21 everywhere and move by hundredths. Beyond the log's own years it extrapolates.

    Args:
        dim: width D.
        std: standard deviation of the entries of the periodic part at the start.
    """

    PERIODS = (HOUR // 4, HOUR // 2, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, 12 * HOUR, DAY)
    LONG_PERIODS = (WEEK, 28 * DAY, 91 * DAY, 365 * DAY)
    LOG_UNIT = 40 * 365 * DAY

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.periods = self.PERIODS + self.LONG_PERIODS
        count = len(self.periods)
        self.cos_phase = nn.Parameter(torch.zeros(count))
        self.sin_phase = nn.Parameter(torch.zeros(count))
        self.linear = nn.Linear(2 * count + 1, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=std / count**0.5)

    def forward(self, time: Tensor) -> Tensor:
        """int64 [...] microseconds or `NO_TIME` -> [..., D]."""
        angle = torch.stack([phase(time, period) for period in self.periods], -1)
        log = (time.clamp(min=DAY).double() / self.LOG_UNIT).log().float().unsqueeze(-1)
        parts = ((angle + self.cos_phase).cos(), (angle + self.sin_phase).sin(), log)
        return self.linear(torch.cat(parts, -1)) * (time != NO_TIME).unsqueeze(-1)


TIME_EMBEDDINGS: dict[str, Callable[[int, float], nn.Module]] = {
    "gap": partial(TimeGapEmbedding, N_GAP_BUCKETS),
    "hour": partial(CyclicTime, DAY, 4),
    "week": partial(CyclicTime, WEEK, 7),
    "absolute": AbsoluteTime,
}
"""(width, std) -> a module of times, or of gap buckets: [...] -> [..., D]."""


class TimeEmbedding(nn.ModuleDict):
    """The sum of some parts of an event's time.

    Args:
        parts: of `TIME_EMBEDDINGS`, at least one.
        dim: width D.
        std: standard deviation of each part's entries at the start.
    """

    def __init__(self, parts: Sequence[TimePart], dim: int, std: float = 0.02) -> None:
        super().__init__({part: TIME_EMBEDDINGS[part](dim, std) for part in parts})

    def forward(self, time: Tensor, gap: Tensor) -> Tensor:
        """Times int64 [...] (microseconds or `NO_TIME`) and their gap buckets int64 [...] -> [..., D]."""
        total: Tensor | None = None
        for name, module in self.items():
            vectors = module(gap if name == "gap" else time)
            total = vectors if total is None else total + vectors
        assert total is not None
        return total
