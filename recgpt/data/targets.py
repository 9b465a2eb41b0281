"""What each position of a training window is to predict.

Position t of a window has seen its first t events; the next item is event t.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recgpt.data.events import Events


@dataclass(frozen=True)
class Chosen:
    """n targets of one window.

    Attributes:
        position: int64 [n], the predicting positions (0 .. the window's length).
        item: int64 [n], hashes of the items to predict.
        head: int64 [n], the look-ahead that each belongs to (0 = the next item); default all 0.
        outcomes: name -> float32 [n], the target events' own outcomes, NaN = unknown.
        masked: bool [length], input events whose item is hidden; None = none.
    """

    position: NDArray[np.int64]
    item: NDArray[np.int64]
    head: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    outcomes: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    masked: NDArray[np.bool_] | None = None

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
            skip: positions before this one carry no target (an earlier window predicts them).
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
        return Chosen(
            position, events.item[position], outcomes={name: each[position] for name, each in events.outcomes.items()}
        )
