"""Popularity: the same list for everybody."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recgpt.retrieval.base import Block, check_block


class Popularity:
    """score(j) = the number of events of item j."""

    name = "popularity"

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def fit(self, blocks: Iterable[Block], n_items: int) -> Self:
        """Count events per item, repeats included."""
        self.counts = np.zeros(n_items, dtype=np.int64)
        for block in blocks:
            items, _ = check_block(block, n_items)
            self.counts += np.bincount(items[items >= 0], minlength=n_items)
        return self

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the counts for every user, float32 [B, n_items]."""
        _, lengths = check_block(block, len(self.counts))
        # Above 2^24 neighbouring counts may round to the same float32: a tie, which never helps.
        return np.tile(self.counts.astype(np.float32), (len(lengths), 1))
