"""A narrow hashed table and a map that widens its vectors."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.hashed import HashEmbedding


class FactorizedEmbedding(HashEmbedding):
    """`hash` with rows of w < D floats, then a linear map to D: the table has rank w at most.

    Factorized embedding parameterisation (Lan et al. 2020, ALBERT, section 3.1), over hashed rows. The memory of `rows`
    rows of D makes D / w as many rows, so ids share that much less; the map's w D weights come on top.
    """

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        width = min(config.width, dim)
        rows = max(1, config.rows * dim // width)
        super().__init__(config.model_copy(update={"rows": rows}), width, known, std)
        self.dim = dim
        self.linear = nn.Linear(width, dim, bias=False)
        nn.init.orthogonal_(self.linear.weight, math.sqrt(dim / width))  # keeps the entries' spread

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 gives zeros."""
        return self.linear(super().forward(hashes))
