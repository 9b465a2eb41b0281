"""Markov: what came one, two, three events after the user's last items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from recgpt.retrieval.base import Block, SparseRows, block_users, check_block, newest

_MERGE_AT = 1 << 24


class _Lag(NamedTuple):
    """The transitions over one distance: n(i, j) / (n(i) + k) by rows, and k / (n(i) + k)."""

    transitions: SparseRows
    back_off: NDArray[np.float32]


class Markov:
    """score(j) = sum over ages a = 0 .. last - 1 of decay^a * P_a(j | i), i = the item of age a.

    ``P_a(j | i) = (n(i, j) + k * p(j)) / (n(i) + k)``: n(i, j) counts how often j came a + 1 events
    after i, repeats included, n(i) is its sum over j, p(j) the item's share of all events: counts
    with a Dirichlet prior of weight k (MacKay and Peto 1995). So rarely seen items lean on
    popularity, and a missing event (a short history, an unknown item) votes for it.

    Memory: 12 bytes for each distinct transition observed, a distance, never items by items.

    Args:
        last: how many of the newest events vote.
        decay: what an event's vote is worth beside that of the event after it.
        prior: k, in transitions.
    """

    name = "markov"

    def __init__(self, last: int = 3, decay: float = 0.7, prior: float = 100.0) -> None:
        self.last = last
        self.decay = decay
        self.prior = prior
        self.n_items = 0
        self.share: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self.lags: list[_Lag] = []

    def fit(self, blocks: Iterable[Block], n_items: int) -> Self:
        """Count each user's transitions over the distances 1 .. ``last``."""
        self.n_items = n_items
        events = np.zeros(n_items, dtype=np.int64)
        counters = [_Counter() for _ in range(self.last)]
        for block in blocks:
            items, lengths = check_block(block, n_items)
            events += np.bincount(items[items >= 0], minlength=n_items)
            users = block_users(lengths)
            for distance, counter in enumerate(counters, start=1):
                before, after = items[:-distance], items[distance:]
                known = users[:-distance] == users[distance:]
                known &= (before >= 0) & (after >= 0)
                counter.add(before[known] * n_items + after[known])
        self.share = (events / max(1, events.sum())).astype(np.float32)
        self.lags = [self._lag(*counter.result(), n_items) for counter in counters]
        return self

    def _lag(self, keys: NDArray[np.int64], counts: NDArray[np.int64], n_items: int) -> _Lag:
        rows = keys // max(1, n_items)
        total = np.bincount(rows, weights=counts, minlength=n_items) + self.prior
        values = (counts / total[rows]).astype(np.float32)
        back_off = (self.prior / total).astype(np.float32)
        return _Lag(SparseRows.from_keys(keys, values, n_items), back_off)

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the votes, float32 [B, n_items]; an empty history gets the popularity."""
        block = check_block(block, self.n_items)
        n_users = len(block[1])
        weights = self.decay ** np.arange(self.last)
        # Every age leans on popularity wholly, until an item of that age is known.
        lean = np.full(n_users, weights.sum(), dtype=np.float32)
        votes = list(newest(block, self.last))
        for weight, lag, (users, rows) in zip(weights, self.lags, votes, strict=False):
            lean[users] -= np.float32(weight) * (1 - lag.back_off[rows])
        out = lean[:, None] * self.share
        for weight, lag, (users, rows) in zip(weights, self.lags, votes, strict=False):
            lag.transitions.add_to(out, users, rows, float(weight))
        return out


class _Counter:
    """Counts keys in bounded memory: distinct keys, plus at most as many or 2^24 not yet merged."""

    def __init__(self) -> None:
        self._keys = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._pending: list[NDArray[np.int64]] = []
        self._n_pending = 0

    def add(self, keys: NDArray[np.int64]) -> None:
        """Count every occurrence of every key."""
        self._pending.append(keys)
        self._n_pending += len(keys)
        if self._n_pending > max(_MERGE_AT, len(self._keys)):
            self._merge()

    def _merge(self) -> None:
        new, new_counts = np.unique(np.concatenate([self._keys[:0], *self._pending]), return_counts=True)
        keys, place = np.unique(np.concatenate([self._keys, new]), return_inverse=True)
        counts = np.zeros(len(keys), dtype=np.int64)
        np.add.at(counts, place.reshape(-1), np.concatenate([self._counts, new_counts]))
        self._keys, self._counts, self._pending, self._n_pending = keys, counts, [], 0

    def result(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The distinct keys, ascending, and their counts."""
        self._merge()
        return self._keys, self._counts
