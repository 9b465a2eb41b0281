"""Markov: what came next after the user's last items."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recgpt.retrieval.base import Block, SparseRows, block_users, check_block, newest

_MERGE_AT = 1 << 24


class Markov:
    """score(j) = sum over ages 0 .. last - 1 of decay^age * f(n(i, j)), i = the item of that age.

    n(i, j) counts how often j came directly after i, repeats included. The scale f is the variant:
    see ``scale``.

    Memory: 16 bytes for each distinct observed transition, never a matrix of items by items.

    Args:
        last: how many of the newest events vote.
        decay: what an event's vote is worth beside that of the event after it.
    """

    name = "markov"

    def __init__(self, last: int = 3, decay: float = 0.7) -> None:
        self.last = last
        self.decay = decay
        self.n_items = 0
        self.transitions = SparseRows.from_keys(
            np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32), 0
        )

    def fit(self, blocks: Iterable[Block], n_items: int) -> Self:
        """Count the transitions between neighbouring events of each user."""
        self.n_items = n_items
        keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        pending: list[NDArray[np.int64]] = []
        n_pending = 0
        for block in blocks:
            items, lengths = check_block(block, n_items)
            users = block_users(lengths)
            before, after = items[:-1], items[1:]
            known = (users[:-1] == users[1:]) & (before >= 0) & (after >= 0)
            pending.append(before[known] * n_items + after[known])
            n_pending += len(pending[-1])
            if n_pending > max(_MERGE_AT, len(keys)):
                keys, counts = _merge(keys, counts, pending)
                pending, n_pending = [], 0
        keys, counts = _merge(keys, counts, pending)
        self.transitions = SparseRows.from_keys(keys, counts.astype(np.float32), n_items)
        return self

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the votes of the last items, float32 [B, n_items]; 0 for an empty history."""
        block = check_block(block, self.n_items)
        out = np.zeros((len(block[1]), self.n_items), dtype=np.float32)
        for age, (users, rows) in enumerate(newest(block, self.last)):
            self.transitions.add_to(out, users, rows, self.decay**age)
        return out


def _merge(
    keys: NDArray[np.int64], counts: NDArray[np.int64], pending: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Add the occurrences of ``pending`` to the ascending, distinct ``keys``."""
    new, new_counts = np.unique(np.concatenate([keys[:0], *pending]), return_counts=True)
    merged, place = np.unique(np.concatenate([keys, new]), return_inverse=True)
    total = np.zeros(len(merged), dtype=np.int64)
    np.add.at(total, place.reshape(-1), np.concatenate([counts, new_counts]))
    return merged, total
