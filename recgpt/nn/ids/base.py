"""The contract of every id embedding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.nn.ids.config import IdEmbeddingConfig

MakeFeature = Callable[[str, int], nn.Module]
"""(name, width) -> the embedding of a categorical feature: int64 hashes [...] -> [..., width], 0 gives zeros."""


class IdEmbedding(nn.Module):
    """int64 hashes [...] -> vectors [..., D], hash 0 ("no id") -> zeros.

    Which weights an id reads depends on its hash and the config alone, so processes agree. At the start the entries of
    a vector have mean 0 and standard deviation `std`, whatever the kind.

    Args:
        config: the kind's sizes and its seed.
        dim: width D of the vectors.
        known: int64 [n], hashes of the items that will be asked for; only a kind that keeps a list reads it.
        std: standard deviation of a vector's entries at the start.

    Attributes:
        slots: how many different values one address can take.
        confusion: probability that two ids share all their addresses, over the hash functions.
        reach: the part of the table that one id reads; n ids make n reach readers of a weight on average.
    """

    slots: int
    confusion: float
    reach: float

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        super().__init__()
        self.config, self.dim = config, dim

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        raise NotImplementedError

    def addresses(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> int64 [..., k] in [0, slots): what two ids must share, all of it, to be confused.

        Two ids with the same addresses have the same vector, whatever is learned. Says nothing of hash 0.
        """
        raise NotImplementedError

    def share(self, role: str) -> MakeFeature | None:
        """What makes the embeddings of other categorical features of this kind's table; None: they have their own.

        Args:
            role: what the features belong to; equal names of two roles are two features.
        """
        return None
