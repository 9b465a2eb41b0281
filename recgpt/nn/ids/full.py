"""A full table: one row for each item of the run."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recgpt.errors import ConfigError
from recgpt.nn.ids.base import IdEmbedding
from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.table import make_table


class FullEmbedding(IdEmbedding):
    """A row of its own for each known id, zeros for every other: nothing is shared, memory grows with the items.

    The sorted list of hashes is a buffer, so it is saved with the weights and a loaded model finds the same rows.

    Raises:
        ConfigError: no list of items is given.
    """

    known: Tensor

    def __init__(
        self, config: IdEmbeddingConfig, dim: int, known: NDArray[np.int64] | None = None, std: float = 0.02
    ) -> None:
        super().__init__(config, dim)
        if known is None:
            raise ConfigError(
                "model.id.kind: full keeps a row for each item of the run, but no list of items is given; build the "
                "model with known=HASHES, or choose another kind"
            )
        hashes = np.unique(np.array(known, np.int64))
        hashes = hashes[hashes != 0]
        # An empty run keeps one row under the hash of "no id", which is never read.
        self.register_buffer("known", torch.from_numpy(hashes if len(hashes) else np.zeros(1, np.int64)))
        self.table = make_table(config, len(self.known), dim)
        nn.init.normal_(self.table.weight, std=std)
        self.slots, self.confusion, self.reach = len(self.known) + 1, 0.5**64, 1 / len(self.known)

    def find(self, hashes: Tensor) -> tuple[Tensor, Tensor]:
        """The row of each hash, int64 [...], and whether it is one of the known ids, bool [...]."""
        row = torch.searchsorted(self.known, hashes.contiguous()).clamp(max=len(self.known) - 1)
        return row, (self.known[row] == hashes) & (hashes != 0)

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] -> float [..., D]; hash 0 and unknown ids give zeros."""
        row, found = self.find(hashes)
        return self.table(row) * found.unsqueeze(-1)

    def addresses(self, hashes: Tensor) -> Tensor:
        """The row; that of all unknown ids is the last slot."""
        row, found = self.find(hashes)
        return torch.where(found, row, self.slots - 1).unsqueeze(-1)

    @torch.no_grad()
    def take_rows(self, other: FullEmbedding) -> None:
        """Copy the rows of the ids that another table knows too; the rest stay as they are."""
        row, found = other.find(self.known)
        self.table.weight[found] = other.table.weight[row[found]]
