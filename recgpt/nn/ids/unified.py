"""Unified embedding: one table for the item id and every categorical feature."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.nn.hashing import hash_rows, mix64
from recgpt.nn.ids.base import IdEmbedding, MakeFeature
from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.table import make_table


class UnifiedTable(nn.Module):
    """The shared table: rows of D / t floats, as many as fit the memory of `rows` rows of D.

    Args:
        config: rows, lookups t, seed.
        dim: width D.
        std: standard deviation of the entries at the start.
    """

    def __init__(self, config: IdEmbeddingConfig, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.lookups, self.seed = config.lookups, config.seed
        width = -(-dim // config.lookups)
        self.table = make_table(config, max(1, config.rows * dim // width), width)
        nn.init.normal_(self.table.weight, std=std)

    def rows(self, hashes: Tensor, key: int) -> Tensor:
        """Rows of a feature's values, int64 [..., t]: its key makes the hash functions its own."""
        return hash_rows(mix64(hashes ^ key), self.lookups, self.table.num_embeddings, self.seed)

    def forward(self, hashes: Tensor, key: int) -> Tensor:
        """The t rows of each value side by side, [..., t D / t]."""
        return self.table(self.rows(hashes, key)).flatten(-2)


class UnifiedFeature(nn.Module):
    """A feature's values in the shared table, then the feature's own linear map, which tells it from the others.

    Args:
        table: the shared table; it is read, its owner holds it (a second owner would save it twice).
        name: name of the feature, which seeds its hash functions.
        dim: width of the vectors.
    """

    def __init__(self, table: UnifiedTable, name: str, dim: int) -> None:
        super().__init__()
        self._shared = (table,)
        self.key = xxhash.xxh64_intdigest(name.encode()) - 2**63
        self.linear = nn.Linear(table.table.embedding_dim * table.lookups, dim, bias=False)
        nn.init.orthogonal_(self.linear.weight)  # keeps the entries' spread

    def rows(self, hashes: Tensor) -> Tensor:
        """Rows of the shared table, int64 [..., t], by lookup."""
        return self._shared[0].rows(hashes, self.key)

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] hashes of the values, 0 = unknown -> [..., dim]."""
        return self.linear(self._shared[0](hashes, self.key)) * (hashes != 0).unsqueeze(-1)


class UnifiedEmbedding(IdEmbedding):
    """One table for ids and all categorical features (feature multiplexing: Coleman et al. 2023).

    e_f(v) = W_f [T[h_f1(v)], ..., T[h_ft(v)]]: lookups are concatenated, each feature has hash functions and a linear
    map of its own, so what two features share they can tell apart. The table does not grow with the features. Two
    values of one feature are confused when all t rows agree in order, rows^-t of all pairs.
    """

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        super().__init__(config, dim)
        self.table = UnifiedTable(config, dim, std)
        self.feature = UnifiedFeature(self.table, "item", dim)
        self.slots = self.table.table.num_embeddings
        self.confusion, self.reach = float(self.slots) ** -config.lookups, config.lookups / self.slots

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        return self.feature(hashes)

    def addresses(self, hashes: Tensor) -> Tensor:
        """The t rows, by lookup."""
        return self.feature.rows(hashes)

    def share(self, role: str) -> MakeFeature:
        """Features in this table; a feature's hash functions follow from `role` and its name."""
        return lambda name, dim: UnifiedFeature(self.table, f"{role}.{name}", dim)
