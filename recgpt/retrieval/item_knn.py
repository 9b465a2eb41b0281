"""Item-kNN: items whose users resemble the users of what this user touched last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
from numpy.typing import NDArray

from recgpt.retrieval.base import Block, SparseRows, block_users, check_block, newest

_PAIRS_AT_ONCE = 1 << 24
_DENSE_ITEMS = 8192


class ItemKNN:
    """score(j) = sum over the history of decay^age * sim(i, j), age 0 = the newest event.

    sim is the cosine between the items' columns of the binary user-item matrix (Linden et al. 2003;
    ItemCF): ``|U_i and U_j| / sqrt(|U_i| |U_j|)``, the denominators over ALL users of each item.
    sim(i, i) = 1, so an item that the protocol leaves in may be recommended again.

    Exact for catalogues of up to ``exact_items`` items. Beyond, each item keeps its ``neighbours``
    most similar items (itself among them; equal ones in row order) and the rest counts as 0.

    Time to fit: the sum over users of their squared number of distinct items. Memory: the distinct
    (user, item) pairs, the similarities kept, and a work space of 16 million pairs, or the pairs of
    the busiest item if those are more.

    Args:
        decay: what an event's vote is worth beside that of the event after it.
        exact_items: the largest catalogue for which every similarity is kept.
        neighbours: K of the top-K beyond it.
    """

    name = "item_knn"

    def __init__(self, decay: float = 0.8, exact_items: int = 20_000, neighbours: int = 200) -> None:
        self.decay = decay
        self.exact_items = exact_items
        self.neighbours = neighbours
        self.n_items = 0
        # Below this weight beside the newest event float32 does not see an event any more.
        self.max_age = int(np.log(np.finfo(np.float32).eps) / np.log(decay)) + 1
        self.dense: NDArray[np.float32] | None = None
        self.sparse: SparseRows | None = None

    def fit(self, blocks: Iterable[Block], n_items: int) -> Self:
        """Count common users; an item is counted once a user."""
        self.n_items = n_items
        users, items = _distinct_pairs(blocks, n_items)
        degree = np.bincount(items, minlength=n_items)
        keep = None if n_items <= self.exact_items else self.neighbours
        kept_keys, kept_values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for keys, counts in _common_users(users, items, degree):
            rows, columns = keys // n_items, keys % n_items
            similarity = counts / np.sqrt(degree[rows].astype(np.float64) * degree[columns])
            if keep is not None:
                best = _best_per_row(rows, similarity, keep)
                keys, similarity = keys[best], similarity[best]
            kept_keys.append(keys)
            kept_values.append(similarity.astype(np.float32))
        keys, values = np.concatenate(kept_keys), np.concatenate(kept_values)
        self.dense, self.sparse = None, None
        if n_items <= _DENSE_ITEMS:
            self.dense = np.zeros((n_items, n_items), dtype=np.float32)
            self.dense.reshape(-1)[keys] = values
        else:
            self.sparse = SparseRows.from_keys(keys, values, n_items)
        return self

    def score(self, block: Block) -> NDArray[np.float32]:
        """Return the weighted similarities, float32 [B, n_items]; 0 for an empty history."""
        block = check_block(block, self.n_items)
        if self.dense is not None:
            return self._score_dense(block, self.dense)
        out = np.zeros((len(block[1]), self.n_items), dtype=np.float32)
        if self.sparse is not None:
            for age, (users, rows) in enumerate(newest(block, self.max_age)):
                self.sparse.add_to(out, users, rows, self.decay**age)
        return out

    def _score_dense(self, block: Block, dense: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch
        from torch.nn.functional import embedding_bag

        items, lengths = block
        ends = np.cumsum(lengths)
        age = np.repeat(ends, lengths) - 1 - np.arange(len(items))
        kept = (age < self.max_age) & (items >= 0)
        n_kept = np.bincount(block_users(lengths)[kept], minlength=len(lengths))
        scores = embedding_bag(
            torch.from_numpy(items[kept]),
            torch.from_numpy(dense),
            torch.from_numpy(np.cumsum(n_kept) - n_kept),
            mode="sum",
            per_sample_weights=torch.from_numpy((self.decay ** age[kept]).astype(np.float32)),
        )
        return scores.numpy()


def _distinct_pairs(blocks: Iterable[Block], n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct (user, item) pairs, users ascending, the items of a user ascending."""
    users, items = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    n_users = 0
    for block in blocks:
        rows, lengths = check_block(block, n_items)
        owner = n_users + block_users(lengths)
        pairs = np.unique(owner[rows >= 0] * n_items + rows[rows >= 0])
        users.append(pairs // n_items)
        items.append(pairs % n_items)
        n_users += len(lengths)
    return np.concatenate(users), np.concatenate(items)


def _common_users(
    users: NDArray[np.int64], items: NDArray[np.int64], degree: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield, for consecutive ranges of items i, the pairs (i, j) that have common users.

    Each is ``(keys, counts)``: ascending ``i * n_items + j`` and how many users have both.
    """
    n_items = len(degree)
    history_length = np.bincount(users)
    history_start = np.cumsum(history_length) - history_length
    by_item = np.argsort(items, kind="stable")
    item_users, item_end = users[by_item], np.cumsum(degree)
    pairs = np.cumsum(np.concatenate([[0], history_length[item_users]]))
    pairs_before = pairs[np.concatenate([[0], item_end])]
    first = 0
    while first < n_items:
        limit = pairs_before[first] + _PAIRS_AT_ONCE
        last = max(first + 1, int(np.searchsorted(pairs_before, limit, side="right")) - 1)
        start, end = item_end[first] - degree[first], item_end[last - 1]
        owner = item_users[start:end]
        length = history_length[owner]
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        other = items[np.repeat(history_start[owner], length) + within]
        own = np.repeat(np.repeat(np.arange(last - first), degree[first:last]), length)
        yield _count(own * n_items + other, (last - first) * n_items, first * n_items)
        first = last


def _count(keys: NDArray[np.int64], n_cells: int, offset: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct keys, ascending, plus ``offset``, and how often each occurs."""
    if n_cells < 8 * len(keys):
        cells = np.bincount(keys, minlength=n_cells)
        distinct = np.flatnonzero(cells)
        return distinct + offset, cells[distinct]
    distinct, counts = np.unique(keys, return_counts=True)
    return distinct + offset, counts


def _best_per_row(rows: NDArray[np.int64], similarity: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Positions of the k most similar of each row (rows ascending), in their old order."""
    order = np.lexsort((-similarity, rows))
    start = np.searchsorted(rows, rows)
    within = np.arange(len(rows)) - start
    return np.sort(order[within < k])
