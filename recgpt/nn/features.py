"""Embeddings of what comes with an event or an item: categories, numbers, outcomes, time gaps, content vectors.

Every one is zero where its value is unknown, so that absence adds nothing to the sum.
"""

from __future__ import annotations

from collections.abc import Mapping

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
    """A number by linear interpolation between knots, evenly spaced on asinh(x).

    Half an octave lies between two knots where |x| > 1, so the same map serves seconds, prices and counts: it is
    continuous, may bend anywhere, and needs no statistics of the log (piecewise-linear: Gorishniy et al. 2022).

    Args:
        dim: width D.
        std: standard deviation of the output's entries at the start, where it is a straight line over asinh(x).
        knots: number of knots, an odd one; |x| beyond the last (1e12 with 163) counts as the last.
    """

    STEP = 0.34657359  # asinh(2x) - asinh(x) tends to log 2: two steps

    def __init__(self, dim: int, std: float = 0.02, knots: int = 163) -> None:
        super().__init__()
        self.middle = knots // 2
        level, slope = torch.randn(2, dim) * std
        place = torch.linspace(-1, 1, knots).unsqueeze(1)
        self.table = nn.Embedding.from_pretrained(level + slope * place, freeze=False)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...], NaN = unknown -> [..., D]."""
        known = ~values.isnan()
        place = torch.asinh(torch.where(known, values, 0.0)) / self.STEP + self.middle
        place = place.clamp(0, 2 * self.middle)
        lower = place.floor().clamp(max=2 * self.middle - 1)
        part = (place - lower).unsqueeze(-1)
        vectors = self.table(lower.long()) * (1 - part) + self.table(lower.long() + 1) * part
        return vectors * known.unsqueeze(-1)


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


def feature_modules(kinds: Mapping[str, str], dim: int) -> nn.ModuleDict:
    """One module for each named feature, by its kind."""
    return nn.ModuleDict({name: FEATURE_EMBEDDINGS[kind](dim) for name, kind in kinds.items()})
