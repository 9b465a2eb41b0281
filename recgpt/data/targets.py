"""What each position of a training window is to predict.

Position t of a window has seen its first t events; the next item is event t.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recgpt.data.events import NO_TIME, Events

_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_LONGEST = 365_250 * 86_400 * 10**6  # far from the end of int64


@dataclass(frozen=True)
class Chosen:
    """n targets of one window.

    Attributes:
        position: int64 [n], the predicting positions (0 .. the window's length).
        item: int64 [n], hashes of the items to predict.
        head: int64 [n], the look-ahead that each belongs to (0 = the next item); default all 0.
        outcomes: name -> float32 [n], the target events' own outcomes, NaN = unknown.
        masked: bool [length], input events whose item is hidden; None = none.
        dropped: positions from `skip` on that the rule found no target for, though it is to give them one.
        skip: input events before this one are predicted by an earlier window, or not.
    """

    position: NDArray[np.int64]
    item: NDArray[np.int64]
    head: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    outcomes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    masked: NDArray[np.bool_] | None = None
    dropped: int = 0
    skip: int = 0

    def __post_init__(self) -> None:
        if len(self.head) != len(self.position):
            object.__setattr__(self, "head", np.zeros(len(self.position), np.int64))


class Targets(Protocol):
    """A rule that chooses targets."""

    @property
    def reach(self) -> int:
        """Events after the window's last target that the rule may read."""
        ...

    def choose(self, events: Events, length: int, skip: int, rng: np.random.Generator) -> Chosen:
        """Targets of one window.

        Args:
            events: the training events from the window's first on: its inputs, the event after them, and at most
                `reach` more; none after the training part.
            length: how many of them are inputs.
            skip: positions before this one carry no target (an earlier window predicts them, or none).
            rng: the batch's own generator.
        """
        ...


@dataclass(frozen=True)
class NextItem:
    """Position t predicts event t.

    Args:
        every: also events that are no target of the log.
    """

    every: bool = False
    reach: int = 0

    def choose(self, events: Events, length: int, skip: int, rng: np.random.Generator) -> Chosen:
        """See `Targets`."""
        position = skip + np.flatnonzero(events.target[skip : length + 1] | self.every)
        return _chosen(events, position, position)


@dataclass(frozen=True)
class LookAhead:
    """Position t predicts event t + o_i with head i (Ramasamy 2023): o_0 = 0, o_i uniform in o_{i-1} + 1 .. max_i.

    The offsets are drawn anew for each window.

    Args:
        farthest: max_i, rising from 0.
        every: also events that are no target of the log.
    """

    farthest: tuple[int, ...]
    every: bool = False

    @property
    def reach(self) -> int:
        """See `Targets`."""
        return self.farthest[-1]

    def choose(self, events: Events, length: int, skip: int, rng: np.random.Generator) -> Chosen:
        """See `Targets`."""
        offset, position, head, index = -1, [], [], []
        for i, farthest in enumerate(self.farthest):
            offset = int(rng.integers(offset + 1, farthest, endpoint=True))
            ahead = events.target[skip + offset : length + 1 + offset] | self.every
            position.append(skip + np.flatnonzero(ahead))
            index.append(position[-1] + offset)
            head.append(np.full(len(position[-1]), i))
        return _chosen(events, np.concatenate(position), np.concatenate(index), np.concatenate(head))


@dataclass(frozen=True)
class WithinHorizon:
    """Position t predicts one of the targets within a time after it, at random ("all action": Pancha et al. 2022).

    Those are the user's later training targets with a time in (now, now + horizon], now = the time of event t - 1, the
    last that the position has seen: strictly later, so that what happened at once with it is not asked for. A position
    without one has no target; nor has position 0, which has seen no time.

    Args:
        horizon: microseconds.
        positions: how many of a window's positions with a target predict, drawn at random; None = all.
        every: also events that are no target of the log.
    """

    horizon: int
    positions: int | None = None
    every: bool = False
    reach: int = 1 << 62  # to the end of the user's training part

    def choose(self, events: Events, length: int, skip: int, rng: np.random.Generator) -> Chosen:
        """See `Targets`."""
        wanted = np.flatnonzero((events.target | self.every) & (events.time != NO_TIME))
        position = np.arange(max(skip, 1), length + 1)
        low, count, wanted = self._admissible(events.time, wanted, position)
        place = low + (rng.random(len(position)) * count).astype(np.int64)
        some = np.flatnonzero(count)
        dropped = length + 1 - skip - len(some)
        if self.positions is not None and len(some) > self.positions:
            some = np.sort(rng.choice(some, self.positions, replace=False))
        return _chosen(events, position[some], wanted[place[some]], dropped=dropped)

    def _admissible(
        self, time: NDArray[np.int64], wanted: NDArray[np.int64], position: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What each position may predict, as runs of a list: their starts [n] and lengths [n], the list of events."""
        now, times = time[position - 1], time[wanted]
        if (times[1:] >= times[:-1]).all():
            low = np.maximum(np.searchsorted(times, now, "right"), np.searchsorted(wanted, position))
            high = np.searchsorted(times, now + self.horizon, "right")
            return low, np.maximum(high - low, 0), wanted
        # The log has an order of its own, in which times go backwards.
        runs = [
            wanted[(wanted >= t) & (times > moment) & (times <= moment + self.horizon)]
            for t, moment in zip(position, now, strict=True)
        ]
        count = np.array([len(run) for run in runs], np.int64)
        return np.cumsum(count) - count, count, np.concatenate([wanted[:0], *runs])


def _chosen(
    events: Events,
    position: NDArray[np.int64],
    index: NDArray[np.int64],
    head: NDArray[np.int64] | None = None,
    dropped: int = 0,
) -> Chosen:
    """Targets that are the events `index` [n] of the window."""
    outcomes = {name: column[index] for name, column in events.outcomes.items()}
    head = np.zeros(len(position), np.int64) if head is None else head
    return Chosen(position, events.item[index], head, outcomes, dropped=dropped)


def microseconds(text: str) -> int:
    """A length of time such as `28d` in microseconds.

    Raises:
        ValueError: no number with a unit, zero, or more than 1,000 years.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(s|min|h|d|w)", text.strip())
    length = round(float(match[1]) * _SECONDS[match[2]] * 10**6) if match else 0
    if not 0 < length <= _LONGEST:
        raise ValueError(
            f"{text!r} is no length of time; write a number above 0 and s, min, h, d or w, such as 28d (to 1,000 years)"
        )
    return length
