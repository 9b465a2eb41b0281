"""Where an event stands: rotary and learned positions, and learned biases of the attention scores.

B sequences, T positions (position 0 is the first token), D width, H heads.
"""

from __future__ import annotations

import functools
import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.data.events import NO_TIME

_START = 0.02
"""Positions start smaller than what they are added to. At 1 / sqrt(D) (HSTU's) they drown the items for some epochs."""
N_TIME_BUCKETS = 129
"""Time-gap buckets 0 .. 128, as in HSTU; a gap of a year is in bucket 57."""


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, eq. 34): scores depend on distance alone.

    Neighbouring entries of a head form a complex number, which is turned by position x rate: one product for q and k.

    Args:
        head_dim: width of one head, even.
        length: number of positions.
        base: wavelength of the slowest pair, in positions / 2 pi.
    """

    turn: Tensor

    def __init__(self, head_dim: int, length: int, base: float = 10_000.0) -> None:
        super().__init__()
        rates = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        turn = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
        self.register_buffer("turn", turn, persistent=False)

    def forward(self, x: Tensor, start: int | Tensor = 0) -> Tensor:
        """Turn float32 [B, T, ..., d] by positions start .. start + T - 1; same shape.

        `start` may be int64 [B], the position of each sequence, where T is 1.
        """
        turn = self.turn[start] if isinstance(start, Tensor) else self.turn[start : start + x.shape[1]]
        turn = turn.view(-1, x.shape[1], *[1] * (x.dim() - 3), turn.shape[-1])
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * turn).flatten(-2)


class LearnedPositions(nn.Module):
    """A learned vector per position, counted from the window's start (BERT; SASRec's with right padding).

    Args:
        dim: D.
        length: number of positions.
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, dim)
        nn.init.normal_(self.table.weight, std=_START)

    def forward(self, x: Tensor, start: int, real: Tensor | None) -> Tensor:
        """Add the vectors of slots start .. start + T - 1 to x [B, T, D], padding or not."""
        return x + self.table.weight[start : start + x.shape[1]]


class ReversePositions(nn.Module):
    """A learned vector per number of later events (Ramasamy 2023); the first token has a row of its own.

    The newest event is always at 0, however long the history: what SASRec's left padding does. An event's vector
    changes whenever another one follows it.

    Args:
        dim: D.
        length: number of positions; the last row is the first token's.
    """

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(length, dim)
        nn.init.normal_(self.table.weight, std=_START)

    def forward(self, x: Tensor, start: int, real: Tensor | None) -> Tensor:
        """Add to x [B, T, D] the vectors of each position's number of later real ones.

        Args:
            x: whole sequences, so `start` is 0.
            start: number of positions before x.
            real: bool [B, T], false where a position is padding, on either side; None = no padding.
        """
        if start:
            raise ValueError(f"start: {start}; reverse positions need the whole window in one pass")
        return x + self.table(self.index(x, real))

    def index(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Rows of the table, int64 [B, T]; arguments as in `forward`."""
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
        count = real.long().cumsum(1)
        first = real & (count == 1)
        last_row = self.table.num_embeddings - 1
        return torch.where(first, last_row, (count[:, -1:] - count).clamp(max=last_row - 1))


ADDED_POSITIONS: dict[str, type[LearnedPositions] | type[ReversePositions]] = {
    "learned": LearnedPositions,
    "reverse": ReversePositions,
}
"""Positions that are added to the inputs: `(dim, length)`, then `(x, start, real)` -> x."""


class BiasConfig(Section):
    """Learned biases of the attention scores; each layer has its own."""

    distance: bool = Field(default=False)
    """A learned number per distance between query and key."""
    time: bool = Field(default=False)
    """A learned number per bucket of the time between the query's event and the key's (HSTU's buckets). HSTU itself
    takes the time of the query's *next* event, the request's time: here that enters at the ranking heads only."""


def distance_index(n: int) -> Tensor:
    """int64 [n, n]: (n - 1) + j - i, the entry of a [2 n - 1] table for query i and key j (HSTU: Zhai et al. 2024)."""
    place = torch.arange(n)
    return n - 1 + place - place[:, None]


@functools.cache
def _bucket_bounds() -> Tensor:
    """The least microseconds of buckets 1 .. 128: exact, where a logarithm per gap would differ by machine."""
    bounds = []
    for bucket in range(1, N_TIME_BUCKETS):
        seconds = math.ceil(math.exp(0.301 * bucket))
        while math.log(seconds - 1) / 0.301 >= bucket:
            seconds -= 1
        while math.log(seconds) / 0.301 < bucket:
            seconds += 1
        bounds.append(min(seconds * 10**6, 2**63 - 1))
    return torch.tensor(bounds)


def time_buckets(time: Tensor, n_queries: int) -> Tensor:
    """HSTU's buckets floor(ln(max(|d|, 1)) / .301) of the whole seconds d between the last Tq events and all Tk.

    Args:
        time: int64 [B, Tk] microseconds or `NO_TIME`.
        n_queries: Tq.

    Returns:
        int64 [B, Tq, Tk] in 0 .. 128; `N_TIME_BUCKETS` where either time is unknown.
    """
    known = time != NO_TIME
    zeroed = time.masked_fill(~known, 0)
    gap = (zeroed[:, -n_queries:, None] - zeroed[:, None, :]).abs_()
    bucket = torch.bucketize(gap, _bucket_bounds().to(time.device), right=True)
    return bucket.masked_fill(~(known[:, -n_queries:, None] & known[:, None, :]), N_TIME_BUCKETS)


class RelativeBias(nn.Module):
    """Learned biases of one layer's scores: `distance` [H, 2 T - 1] and `time` [H, 129], None where off.

    The bias of distance d (a key d positions before the query) is `distance[:, T - 1 - d]`; a gap that touches an
    unknown time has none. (Distances: Shaw et al. 2018 in T5's scalar form, without buckets.)

    Args:
        config: which of them.
        heads: H, or 1 for biases that the heads share.
        length: number of positions.
    """

    index: Tensor

    def __init__(self, config: BiasConfig, heads: int, length: int) -> None:
        super().__init__()
        self.distance = nn.Parameter(torch.randn(heads, 2 * length - 1) * _START) if config.distance else None
        self.time = nn.Parameter(torch.randn(heads, N_TIME_BUCKETS) * _START) if config.time else None
        if config.distance:
            self.register_buffer("index", distance_index(length), persistent=False)

    def forward(self, start: int, n_queries: int, buckets: Tensor | None) -> Tensor:
        """[B | 1, H, Tq, Tk] for queries at start .. start + Tq - 1 and keys at 0 .. start + Tq - 1.

        Args:
            start: number of cached positions.
            n_queries: Tq.
            buckets: `time_buckets` of the keys, for `time`.
        """
        parts = []
        if self.distance is not None:
            stop = start + n_queries
            parts.append(self.distance[:, self.index[start:stop, :stop]][None])
        if self.time is not None:
            if buckets is None:
                raise ValueError("buckets: None; a model with bias.time needs the events' times")
            by_time = F.pad(self.time, (0, 1)).index_select(1, buckets.flatten())  # indexing is 4 times as slow
            parts.append(by_time.view(-1, *buckets.shape).transpose(0, 1))
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def relative_bias(config: BiasConfig, heads: int, length: int) -> RelativeBias | None:
    """The module, or None (no parameters) where all biases are off."""
    return RelativeBias(config, heads, length) if config.distance or config.time else None
