"""Item-id embeddings behind one contract: int64 hashes in, vectors out, no vocabulary.

Hash 0 is "no id" and maps to the zero vector. Rows depend on (hash, rows, seed) alone, so they agree between processes.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recgpt.config import Section

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed int64: splitmix64's increment
_MIX = (-4658895280553007687, -7723592293110705685)  # splitmix64's two multipliers, signed


class IdEmbeddingConfig(Section):
    """How item ids become vectors."""

    kind: Literal["hash"] = "hash"
    """`hash`: k seeded hashes into one table, summed."""
    rows: int = Field(default=65_536, ge=1)
    """Rows of the table."""
    n_hashes: int = Field(default=2, ge=1, le=16)
    """Rows that one id sums; two ids are confused only when all of them agree."""
    seed: int = Field(default=0, ge=0)
    """Seed of the hash functions."""


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own is arithmetic: wrong for half of all hashes)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014), a bijection of int64 that mixes every bit."""
    x = (x ^ _shift_right(x, 30)) * _MIX[0]
    x = (x ^ _shift_right(x, 27)) * _MIX[1]
    return x ^ _shift_right(x, 31)


def hash_rows(hashes: Tensor, n_hashes: int, rows: int, seed: int = 0) -> Tensor:
    """Rows of each hash: int64 [...] -> int64 [..., n_hashes] in [0, rows)."""
    steps = torch.arange(1, n_hashes + 1, device=hashes.device) + seed * n_hashes
    mixed = mix64(hashes.unsqueeze(-1) ^ mix64(steps * _GOLDEN))
    return _shift_right(mixed, 1) % rows


class HashEmbedding(nn.Module):
    """k seeded hashes into one table, summed (Bloom embeddings: Serra and Karatzoglou 2017).

    Two distinct ids share all k rows with probability rows^-k.

    Args:
        config: rows, number of hashes, seed.
        dim: width D of the vectors.
        std: standard deviation of a vector's entries at the start.
    """

    def __init__(self, config: IdEmbeddingConfig, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.config = config
        self.table = nn.Embedding(config.rows, dim)
        nn.init.normal_(self.table.weight, std=std / config.n_hashes**0.5)

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        c = self.config
        rows = hash_rows(hashes, c.n_hashes, c.rows, c.seed)
        vectors = self.table(rows[..., 0])
        for j in range(1, c.n_hashes):
            vectors = vectors + self.table(rows[..., j])
        return vectors * (hashes != 0).unsqueeze(-1)


ID_EMBEDDINGS: dict[str, type[nn.Module]] = {"hash": HashEmbedding}
