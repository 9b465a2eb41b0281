"""What the classical recommenders share: blocks of histories, the protocol, sparse rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recgpt.errors import RecGPTError

Block = tuple[NDArray[np.int64], NDArray[np.int64]]
"""``(items int64 [N], lengths int64 [B])``: the item rows of B users' histories laid end to end,
each oldest first. A negative row is an item outside the catalogue: it keeps its place in the order
and says nothing."""


@runtime_checkable
class Recommender(Protocol):
    """A recommender that is counted, not trained."""

    name: str

    def fit(self, blocks: Iterable[Block], n_items: int) -> Self:
        """Count the blocks, which are read once; item rows are below ``n_items``."""

    def score(self, block: Block) -> NDArray[np.float32]:
        """Score every item for every user: float32 [B, n_items], finite, higher is better."""


def make_block(histories: Iterable[ArrayLike]) -> Block:
    """Lay histories (each int64 [n], oldest first) end to end."""
    rows = [np.asarray(history, dtype=np.int64).reshape(-1) for history in histories]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.concatenate([np.empty(0, dtype=np.int64), *rows]), lengths


def check_block(block: Block, n_items: int) -> Block:
    """Return the block as int64 arrays, or say in one line what does not fit.

    Raises:
        RecGPTError: lengths that do not add up, or a row at or beyond ``n_items``.
    """
    items = np.asarray(block[0], dtype=np.int64)
    lengths = np.asarray(block[1], dtype=np.int64)
    if items.ndim != 1 or lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != len(items):
        raise RecGPTError(
            f"block: lengths add up to {int(lengths.sum())} for {len(items)} items; "
            "pass the histories end to end with one length each"
        )
    if len(items) and items.max() >= n_items:
        raise RecGPTError(
            f"block: item row {int(items.max())} is outside the catalogue of {n_items} items; "
            "fit and score with rows of the same item table"
        )
    return items, lengths


def block_users(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index of the user of each event, int64 [N]."""
    return np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)


def newest(block: Block, n: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, for ages 0 (the newest event) to n - 1, who has an event of that age and of what.

    Each is ``(users, items)``; events of unknown items are left out.
    """
    items, lengths = block
    ends = np.cumsum(lengths)
    for age in range(min(n, int(lengths.max(initial=0)))):
        users = np.flatnonzero(lengths > age)
        rows = items[ends[users] - 1 - age]
        known = rows >= 0
        yield users[known], rows[known]


class SparseRows(NamedTuple):
    """A sparse matrix, compressed by rows: row r is ``columns[start[r]:start[r + 1]]``."""

    start: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def from_keys(cls, keys: NDArray[np.int64], values: NDArray[np.float32], n_items: int) -> SparseRows:
        """From ascending keys ``row * n_items + column``, each once."""
        rows = keys // n_items
        start = np.searchsorted(rows, np.arange(n_items + 1)).astype(np.int64)
        return cls(start, keys - rows * n_items, values)

    def add_to(
        self,
        out: NDArray[np.float32],
        users: NDArray[np.int64],
        rows: NDArray[np.int64],
        weight: float,
    ) -> None:
        """``out[users[n]] += weight * row rows[n]`` for every n; ``users`` are distinct."""
        lengths = self.start[rows + 1] - self.start[rows]
        ends = np.cumsum(lengths)
        within = np.arange(int(lengths.sum())) - np.repeat(ends - lengths, lengths)
        places = np.repeat(self.start[rows], lengths) + within
        # No cell is named twice, as users are distinct and a row names a column once.
        cells = np.repeat(users * out.shape[1], lengths) + self.columns[places]
        flat = out.reshape(-1)
        flat[cells] += np.float32(weight) * self.values[places]
