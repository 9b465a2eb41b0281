"""Content vectors: a linear map of the direction, and a cascade of cosine hashes of rising resolution beside it.

A linear map cannot bend. The cascade looks up, for every random direction, a learned vector of the interval that
the item's cosine falls into, at several resolutions (Ramasamy 2023, "LSH as a feature extractor").
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section

Grid = Literal["uniform", "isotropic", "fitted"]
MAX_FITTED = 65_536
"""Vectors that quantiles are taken from, at most."""
_STEPS = 2.0**20
"""Directions are kept as multiples of 2^-20: their products are then exact in float64, in any order."""


class ContentConfig(Section):
    """How a content vector enters its item, besides a linear map of its direction."""

    bins: list[Annotated[int, Field(ge=1, le=4096)]] = []
    """Grid points of each resolution of the cosine cascade, rising, such as [4, 8, 20]; empty: no cascade."""
    projections: int = Field(default=32, ge=1, le=4096)
    """Random directions of each resolution."""
    grid: Grid = "fitted"
    """Where the grid points lie. `fitted`: at quantiles of the training items' cosines, so that every interval holds
    as many items; `isotropic`: at those of a random vector of that width; `uniform`: evenly over [-1, 1] as published,
    which leaves most intervals empty from some 16 dimensions on."""
    norm_bins: int = Field(default=0, ge=0, le=4096)
    """Grid points of the vector's length, which the direction leaves out; 0: the length does not enter."""
    seed: int = Field(default=0, ge=0)
    """Seed of the directions; they are saved with the weights."""

    @field_validator("bins")
    @classmethod
    def _rising(cls, value: list[int]) -> list[int]:
        if any(b <= a for a, b in pairwise(value)):
            raise ValueError("resolutions must rise, such as [4, 8, 20]")
        return value


class ContentEmbedding(nn.Module):
    """A content vector as a vector of the model; one with a NaN, or of length zero, adds nothing.

    Args:
        width: width dc of the content vectors.
        dim: width D.
        config: the cascade; by default none.
        std: standard deviation of the linear map's weights, and of the entries of each other part at the start.
    """

    def __init__(self, width: int, dim: int, config: ContentConfig | None = None, std: float = 0.02) -> None:
        super().__init__()
        config = config or ContentConfig()
        self.fitted = config.grid == "fitted" and bool(config.bins or config.norm_bins)
        """Whether `fit` is due before the first step."""
        self.linear = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.linear.weight, std=std)
        self.cascade = CosineCascade(width, dim, config, std) if config.bins else None
        self.norm = NormHistogram(dim, config.norm_bins, std) if config.norm_bins else None

    def forward(self, content: Tensor) -> Tensor:
        """float32 [..., dc] -> [..., D]."""
        known = ~content.isnan().any(-1, keepdim=True)
        unit = F.normalize(torch.where(known, content, 0.0), dim=-1)
        x = self.linear(unit)
        for part in (self.cascade, self.norm):
            if part is not None:
                x = x + part(content)
        return x

    def fit(self, content: Tensor) -> None:
        """Lay the grids over vectors float32 [I, dc], NaN rows = none; without a vector they stay as they are."""
        content = content[says_something(content)]
        content = content[:: max(1, math.ceil(len(content) / MAX_FITTED))]
        for part in (self.cascade, self.norm):
            if part is not None and len(content):
                part.fit(content)


class CosineCascade(nn.Module):
    """A cascade of cosine hashes with learned vectors, R resolutions of p projections each.

    With x the unit vector, r_j a fixed unit direction and g_1 < .. < g_bins a grid, b_j = the number of grid points
    below x.r_j, in 0..bins, and f(x) = sum over resolutions and j of E[b_j + j (bins + 1)] / sqrt(R p). It depends on
    the direction alone, is constant between the grid points, and has no gradient for x.

    A cosine with a random direction has standard deviation 1 / sqrt(dc): over [-1, 1] as published, 4 points tell
    nothing (.00 bits) of vectors of width 512 and 20 points 1.1 bits, where quantiles give all of log2(bins + 1).

    Args:
        width: width dc of the content vectors.
        dim: width D.
        config: resolutions, projections, grid, seed.
        std: standard deviation of the output's entries at the start.
    """

    def __init__(self, width: int, dim: int, config: ContentConfig, std: float = 0.02) -> None:
        super().__init__()
        self.bins, self.projections = list(config.bins), config.projections
        total = len(self.bins) * self.projections
        generator = torch.Generator().manual_seed(config.seed)
        directions = F.normalize(torch.randn(width, total, generator=generator, dtype=torch.float64), dim=0)
        self.register_buffer("directions", (directions * _STEPS).round().div(_STEPS).float())
        layout = _uniform if config.grid == "uniform" else _isotropic
        grids = [layout(bins, width).expand(self.projections, -1) for bins in self.bins]
        self.register_buffer("grid", torch.cat(grids, 1).contiguous())
        blocks = torch.repeat_interleave(torch.tensor(self.bins) + 1, self.projections)
        self.register_buffer("first", blocks.cumsum(0) - blocks, persistent=False)
        self.table = nn.EmbeddingBag(int(blocks.sum()), dim, mode="sum")
        nn.init.normal_(self.table.weight, std=std)
        self.scale = total**-0.5

    directions: Tensor
    """float32 [dc, R p], unit columns, saved with the weights."""
    grid: Tensor
    """float32 [p, sum of bins], the grid points of each projection, resolution after resolution; saved."""
    first: Tensor
    """int64 [R p], first row of each projection's block of the table."""

    def forward(self, content: Tensor) -> Tensor:
        """float32 [..., dc] -> float32 [..., D]; zeros where a vector has a NaN or no length."""
        rows = self.rows(content)
        vectors = self.table(rows.reshape(-1, rows.shape[-1])).view(*rows.shape[:-1], self.table.embedding_dim)
        return vectors * self.scale * says_something(content).unsqueeze(-1)

    @torch.no_grad()
    def rows(self, content: Tensor) -> Tensor:
        """Rows of the table, int64 [..., R p]: they depend on neither the shape of the batch nor autocast."""
        grids = self.grid.double().split(self.bins, 1)
        cosines = self._cosines(content.reshape(-1, content.shape[-1])).T.split(self.projections)
        codes = [
            torch.searchsorted(grid.contiguous(), part.contiguous()) for grid, part in zip(grids, cosines, strict=True)
        ]
        return (torch.cat(codes).T + self.first).view(*content.shape[:-1], len(self.first))

    def _cosines(self, content: Tensor) -> Tensor:
        """[N, dc] -> float64 [N, R p]: sums of multiples of 2^-40, which no order of summation changes."""
        vectors = torch.where(says_something(content).unsqueeze(-1), content, 0.0).double()
        unit = (F.normalize(vectors, dim=-1, eps=1e-38) * _STEPS).round() / _STEPS
        with torch.autocast(content.device.type, enabled=False):
            return unit @ self.directions.double()

    @torch.no_grad()
    def fit(self, content: Tensor) -> None:
        """Grid points at the quantiles k / (bins + 1) of the cosines of vectors [I, dc], I >= 1."""
        parts = self._cosines(content).split(self.projections, 1)
        grids = [_quantiles(part, bins) for part, bins in zip(parts, self.bins, strict=True)]
        self.grid.copy_(torch.cat(grids).T)


class NormHistogram(nn.Module):
    """The length of a vector in buckets, a learned vector each.

    Args:
        dim: width D.
        bins: grid points, half an octave apart and around 1 until they are fitted.
        std: standard deviation of the output's entries at the start.
    """

    def __init__(self, dim: int, bins: int, std: float = 0.02) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("grid", 2 ** ((torch.arange(bins) - (bins - 1) / 2) / 2))
        self.table = nn.Embedding(bins + 1, dim)
        nn.init.normal_(self.table.weight, std=std)

    grid: Tensor
    """float32 [bins], saved with the weights."""

    def forward(self, content: Tensor) -> Tensor:
        """float32 [..., dc] -> [..., D]; zeros where a vector has a NaN or no length."""
        return self.table(self.rows(content)) * says_something(content).unsqueeze(-1)

    @torch.no_grad()
    def rows(self, content: Tensor) -> Tensor:
        """Buckets, int64 [...] in 0..bins."""
        return torch.searchsorted(self.grid.double(), torch.linalg.vector_norm(content.double(), dim=-1))

    @torch.no_grad()
    def fit(self, content: Tensor) -> None:
        """Grid points at the quantiles of the lengths of vectors [I, dc], I >= 1."""
        lengths = torch.linalg.vector_norm(content.double(), dim=-1, keepdim=True)
        self.grid.copy_(_quantiles(lengths, self.bins)[:, 0])


def says_something(content: Tensor) -> Tensor:
    """Bool [...], whether a content vector [..., dc] says anything: no NaN, some length."""
    return content.any(-1) & ~content.isnan().any(-1)


def _uniform(bins: int, width: int) -> Tensor:
    """Points -1 + (j + 1/2) 2 / bins."""
    return -1 + (torch.arange(bins) + 0.5) * (2 / bins)


def _isotropic(bins: int, width: int) -> Tensor:
    """Quantiles k / (bins + 1) of the cosine of a random vector; its angle from the equator has density cos^(d-2)."""
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 40_001, dtype=torch.float64)
    density = torch.cos(angle).clamp(min=0) ** max(width - 2, 0)
    below = torch.cat((torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, angle)))
    wanted = below[-1] * torch.arange(1, bins + 1, dtype=torch.float64) / (bins + 1)
    place = torch.searchsorted(below, wanted).clamp(1, len(below) - 1)
    low, high = below[place - 1], below[place]
    part = (wanted - low) / (high - low)
    return torch.sin(angle[place - 1] + part * (angle[place] - angle[place - 1])).float()


def _quantiles(values: Tensor, bins: int) -> Tensor:
    """[I, p] -> the quantiles k / (bins + 1), k = 1..bins, of each column, [bins, p], midway between neighbours."""
    ordered = values.sort(0).values
    place = torch.arange(1, bins + 1, device=values.device) * len(values) / (bins + 1)
    low = (place.ceil().long() - 1).clamp(0, len(values) - 1)
    high = place.floor().long().clamp(0, len(values) - 1)
    return (ordered[low] + ordered[high]) / 2
