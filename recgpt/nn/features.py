"""Embeddings of what comes with an event or an item: categories, numbers, outcomes, time gaps, content vectors.

Every one is zero where its value is unknown, so that absence adds nothing to the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgpt.nn.embedding import hash_rows


class CategoricalEmbedding(nn.Module):
    """Hashed categories of one feature, two hashes into a small table.

    Args:
        dim: width D.
        rows: rows of the table.
        std: standard deviation of a vector's entries at the start.
    """

    def __init__(self, dim: int, rows: int = 4096, std: float = 0.02) -> None:
        super().__init__()
        self.rows = rows
        self.table = nn.Embedding(rows, dim)
        nn.init.normal_(self.table.weight, std=std / 2**0.5)

    def forward(self, hashes: Tensor) -> Tensor:
        """int64 [...] hashes of the values, 0 = unknown -> [..., D]."""
        rows = hash_rows(hashes, 2, self.rows)
        vectors = self.table(rows[..., 0]) + self.table(rows[..., 1])
        return vectors * (hashes != 0).unsqueeze(-1)


class NumericEmbedding(nn.Module):
    """A number x as w0 + w1 asinh(x) + w2 x/(1+|x|): signed, and steady from 1e-3 to 1e12.

    Args:
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, dim))
        nn.init.normal_(self.weight, std=std)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...], NaN = unknown -> [..., D]."""
        known = ~values.isnan()
        x = torch.where(known, values, 0.0)
        basis = torch.stack((known.float(), torch.asinh(x), x / (1 + x.abs())), -1)
        return basis @ self.weight


class BinaryEmbedding(nn.Module):
    """A yes/no outcome: one vector each, none where unknown.

    Args:
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(3, dim, padding_idx=0)
        with torch.no_grad():
            nn.init.normal_(self.table.weight[1:], std=std)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...] of 0, 1 or NaN (unknown) -> [..., D]."""
        return self.table((values.nan_to_num(-1.0) + 1).long())


class TimeGapEmbedding(nn.Module):
    """The time since the previous event, in buckets of log2 seconds.

    Args:
        n_buckets: buckets, the first of them for an unknown gap.
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    def __init__(self, n_buckets: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(n_buckets, dim, padding_idx=0)
        with torch.no_grad():
            nn.init.normal_(self.table.weight[1:], std=std)

    def forward(self, buckets: Tensor) -> Tensor:
        """int64 [...] of `gap_buckets` -> [..., D]."""
        return self.table(buckets)


class ContentEmbedding(nn.Module):
    """A linear map of the unit content vector; a vector with a NaN counts as absent.

    Args:
        width: width dc of the content vectors.
        dim: width D.
        std: standard deviation of the output's entries at the start.
    """

    def __init__(self, width: int, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=std)

    def forward(self, content: Tensor) -> Tensor:
        """float32 [..., dc] -> [..., D]."""
        known = ~content.isnan().any(-1, keepdim=True)
        unit = nn.functional.normalize(torch.where(known, content, 0.0), dim=-1)
        return self.linear(unit)


FEATURE_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "categorical": CategoricalEmbedding,
    "numeric": NumericEmbedding,
    "binary": BinaryEmbedding,
    "regression": NumericEmbedding,
    "watch_time": NumericEmbedding,
}
