"""KShift: the rows of an id are rotations of its hash, modulo the table's size."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.nn.hashing import hash_bits, rotate_left
from recgpt.nn.ids.base import IdEmbedding
from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.table import make_table

CYCLE = 2**64 - 1
"""Rotating by c multiplies by 2^c modulo this: 3 x 5 x 17 x 257 x 641 x 65537 x 6700417."""


def kshift_rows(hashes: Tensor, shifts: int, rows: int) -> Tensor:
    """Rows of mixed hashes: each rotation by 0, ..., shifts - 1 bits, as a signed number, modulo `rows`.

    int64 [...] -> int64 [..., shifts] in [0, rows).
    """
    return torch.stack([rotate_left(hashes, bits) for bits in range(shifts)], -1) % rows


def good_rows(rows: int) -> int:
    """The largest size up to `rows` that is odd and shares no factor with 2^64 - 1, so that the rotations differ."""
    while rows % 2 == 0 or math.gcd(rows, CYCLE) > 1:
        rows -= 1
    return rows


class KShiftEmbedding(IdEmbedding):
    """The sum of the rows rotl64(x, c) mod P, c = 0, ..., k - 1, over sqrt(k) at the start (Ramasamy 2023).

    P is the largest good size up to `rows` (see `good_rows`). Rotations are no independent hashes: rotl(x, c) =
    2^c x - top_c(x) (2^64 - 1), so two ids that agree modulo P and in their top k bits share all k rows. That is
    2^-k / P of all pairs (against some k! P^-k of `hash`). Hashes are mixed with the seed first, as
    small raw numbers would have rows x, 2 x, 4 x, ...
    """

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        super().__init__(config, dim)
        rows = good_rows(config.rows)
        self.table = make_table(config, rows, dim)
        nn.init.normal_(self.table.weight, std=std / config.shifts**0.5)
        self.slots, self.confusion, self.reach = rows, 0.5**config.shifts / rows, config.shifts / rows

    def rows(self, hashes: Tensor) -> Tensor:
        """Rows of the table, int64 [..., k], by rotation."""
        mixed = hash_bits(hashes, 1, self.config.seed).squeeze(-1)
        return kshift_rows(mixed, self.config.shifts, self.slots)

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        return self.table(self.rows(hashes)).sum(-2) * (hashes != 0).unsqueeze(-1)

    def addresses(self, hashes: Tensor) -> Tensor:
        """The k rows in ascending order."""
        return self.rows(hashes).sort(-1).values
