"""Random offset block embedding: every vector is read in blocks out of one flat array."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.nn.hashing import hash_bits, shift_right
from recgpt.nn.ids.base import IdEmbedding
from recgpt.nn.ids.config import IdEmbeddingConfig


def block_indices(starts: Tensor, block: int, size: int) -> Tensor:
    """Places in a circular array of blocks with these starts: int64 [..., n] -> int64 [..., n, block]."""
    return (starts.unsqueeze(-1) + torch.arange(block, device=starts.device)) % size


class RobeEmbedding(IdEmbedding):
    """Component i of a vector is g M[(h(x, i div Z) + i mod Z) mod |M|], g = +-1 (ROBE-Z: Desai et al. 2022).

    |M| = rows x dim floats serve all ids; a block of Z neighbours has one start and one sign. Z = 1 is HashedNets,
    Z >= D reads one slice. With the signs M is a feature-hashing sketch: inner products of what it stores are unbiased.
    Two ids are confused when all their blocks agree; part of a vector is shared far more often. Starts come of a 64-bit
    hash (the paper's (A x + B) mod p holds ids below 2^32 only), and the last block is cut where Z does not divide D.
    """

    embedding_tables = ("memory",)

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        super().__init__(config, dim)
        self.block = min(config.block, dim)
        self.n_blocks = -(-dim // self.block)
        self.memory = nn.Parameter(torch.empty(config.rows * dim))
        nn.init.normal_(self.memory, std=std)
        self.slots = 2 * len(self.memory)
        self.confusion, self.reach = float(self.slots) ** -self.n_blocks, 1 / config.rows

    def _blocks(self, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """Start of each block, int64 [..., n_blocks] in [0, |M|), and the bit of its sign."""
        bits = hash_bits(hashes, self.n_blocks, self.config.seed * self.n_blocks)
        return shift_right(bits, 1) % len(self.memory), bits & 1

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        starts, bit = self._blocks(hashes)
        places = block_indices(starts, self.block, len(self.memory))
        values = self.memory.index_select(0, places.flatten()).view(places.shape)
        sign = (1 - 2 * bit) * (hashes != 0).unsqueeze(-1)
        return (values * sign.unsqueeze(-1)).flatten(-2)[..., : self.dim]

    def addresses(self, hashes: Tensor) -> Tensor:
        """Start and sign of each block as one number, 2 start + sign."""
        starts, bit = self._blocks(hashes)
        return 2 * starts + bit
