"""Drawn negatives: which items a batch's targets are compared with besides each other.

I items of the training part (the catalogue), N targets of a batch, M or N x K draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recgpt.data.events import Events
from recgpt.data.prepared import Prepared
from recgpt.data.targets import Chosen

_BLOCK = 1 << 20
_FLAGS = 1 << 28
"""Flags of the items that each window of a batch holds, at most so many bytes."""
_ROUNDS = 100
"""Times that a draw of a window's own items is made anew; a user who knows nearly all items keeps some."""


@dataclass(frozen=True)
class Drawn:
    """Drawn items.

    Attributes:
        hashes: int64 [u], distinct.
        rows: int64 [M], each draw's row of `hashes`.
    """

    hashes: NDArray[np.int64]
    rows: NDArray[np.int64]


class Negatives(Protocol):
    """Draws the negatives of a batch."""

    def __call__(self, rng: np.random.Generator, windows: Sequence[Events], targets: Sequence[Chosen]) -> Drawn:
        """The drawn items.

        Args:
            rng: the batch's own generator.
            windows: the input events of each sequence.
            targets: what each sequence is to predict.
        """
        ...


class Alias:
    """Draws from fixed probabilities in constant time each (Walker 1977; Vose 1991).

    Args:
        weights: float [I], not negative, not all 0; probabilities up to a factor.
    """

    def __init__(self, weights: NDArray[np.float64]) -> None:
        n = len(weights)
        left = (weights / weights.sum() * n).tolist()
        keep, other = [1.0] * n, list(range(n))
        small = [i for i in range(n) if left[i] < 1]
        large = [i for i in range(n) if left[i] >= 1]
        while small and large:
            i, j = small.pop(), large[-1]
            keep[i], other[i] = left[i], j
            left[j] -= 1 - left[i]
            if left[j] < 1:
                small.append(large.pop())
        self.keep, self.other = np.array(keep), np.array(other, np.int64)

    def __call__(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> NDArray[np.int64]:
        """Rows int64 [shape]."""
        cell = rng.integers(len(self.keep), size=shape)
        return np.where(rng.random(shape) < self.keep[cell], cell, self.other[cell])


class DrawnNegatives:
    """Draws with replacement, uniformly or by a power of the items' counts (Mikolov et al. 2013: .75).

    Args:
        hashes: int64 [I] the catalogue, distinct.
        n: draws for the whole batch, or for every target.
        counts: int64 [I], for draws in proportion to counts ** power; None = uniform.
        power: see `counts`.
        per_row: n draws for every target, one target after the other.
        avoid: draw anew what a sequence's window holds, its inputs and its targets (with `per_row`).
    """

    def __init__(
        self,
        hashes: NDArray[np.int64],
        n: int,
        *,
        counts: NDArray[np.int64] | None = None,
        power: float = 0.75,
        per_row: bool = False,
        avoid: bool = False,
    ) -> None:
        self.n, self.per_row, self.avoid = n, per_row, avoid
        order = np.argsort(hashes)
        self.hashes = hashes[order]
        self.alias: Alias | None = None
        weights = np.ones(len(hashes))
        if counts is not None:
            weights = counts[order].astype(np.float64) ** power
            self.alias = Alias(weights)
        self.probability = weights / weights.sum()
        """Float64 [I], of each of `hashes` (ascending), that a draw is it."""

    def __call__(self, rng: np.random.Generator, windows: Sequence[Events], targets: Sequence[Chosen]) -> Drawn:
        """See `Negatives`; [N, K] one row after the other with `per_row`."""
        if not self.per_row:
            return self._drawn(self._draw(rng, self.n))
        sequence = np.repeat(np.arange(len(targets)), [len(chosen.item) for chosen in targets])
        drawn = self._draw(rng, (len(sequence), self.n))
        if self.avoid:
            self._redraw(rng, drawn, sequence, windows, targets)
        return self._drawn(drawn.reshape(-1))

    def _drawn(self, rows: NDArray[np.int64]) -> Drawn:
        """Rows of the catalogue as distinct hashes; flags are faster than sorting millions of draws."""
        present = np.zeros(len(self.hashes), np.bool_)
        present[rows] = True
        return Drawn(self.hashes[present], (np.cumsum(present) - 1)[rows])

    def _draw(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> NDArray[np.int64]:
        return rng.integers(len(self.hashes), size=shape) if self.alias is None else self.alias(rng, shape)

    def _redraw(
        self,
        rng: np.random.Generator,
        drawn: NDArray[np.int64],
        sequence: NDArray[np.int64],
        windows: Sequence[Events],
        targets: Sequence[Chosen],
    ) -> None:
        """Replace what a sequence's own window holds, in place."""
        held = self._held(windows, targets)
        start = sequence * len(self.hashes)
        bad, flat = np.flatnonzero(held(start[:, None] + drawn)), drawn.reshape(-1)
        for _ in range(_ROUNDS):
            if len(bad) == 0:
                return
            flat[bad] = self._draw(rng, len(bad))
            bad = bad[held(start[bad // self.n] + flat[bad])]

    def _held(
        self, windows: Sequence[Events], targets: Sequence[Chosen]
    ) -> Callable[[NDArray[np.int64]], NDArray[np.bool_]]:
        """Tells of numbers `sequence x I + row`, int64 [...], whether the sequence's window holds the item."""
        known = [
            row * len(self.hashes) + self._rows(np.concatenate((window.item, chosen.item)))
            for row, (window, chosen) in enumerate(zip(windows, targets, strict=True))
        ]
        forbidden = np.concatenate(known)
        if len(windows) * len(self.hashes) > _FLAGS:
            forbidden = np.unique(forbidden)
            return lambda places: np.isin(places, forbidden)
        flags = np.zeros(len(windows) * len(self.hashes), np.bool_)  # 30 times as fast, where they fit
        flags[forbidden] = True
        return lambda places: flags[places]

    def _rows(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of the items that the catalogue has."""
        place = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return place[self.hashes[place] == hashes]


def target_counts(prepared: Prepared, every: bool) -> NDArray[np.int64]:
    """How often training predicts each item, int64 [I] in the order of `prepared.items`; reads the log in blocks.

    Args:
        prepared: the log.
        every: every training event is predicted, not only the log's targets.
    """
    items, users = prepared.items, prepared.users
    if every:
        return items.n_train_events
    counts = np.zeros(len(items), np.int64)
    for first in range(0, prepared.n_events, _BLOCK):
        events = prepared.events(first, min(first + _BLOCK, prepared.n_events))
        place = np.arange(first, first + len(events))
        user = np.searchsorted(users.offset, place, "right") - 1
        wanted = events.target & (place - users.offset[user] < users.train_end[user])
        counts += np.bincount(items.rows(events.item[wanted]), minlength=len(items))
    return counts
