"""Embeddings of numbers behind one contract: float32 in, vectors out, zero where a number is unknown (NaN).

None needs statistics of the log: each covers every sign and size by its own fixed scale.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NumericKind = Literal["knots", "log", "buckets", "numerals"]


class KnotEmbedding(nn.Module):
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


class LogEmbedding(nn.Module):
    """A straight line over sign(x) log(1 + |x|): two vectors, a level and a slope for three decades.

    The cheapest map: it can tell more from less and no more (the log duration of PinnerFormer: Pancha et al. 2022).

    Args:
        dim: width D.
        std: standard deviation of the level's and the slope's entries at the start.
    """

    UNIT = 6.9077553  # log(1 + 999)

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.randn(dim) * std)
        self.slope = nn.Parameter(torch.randn(dim) * std)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...], NaN = unknown -> [..., D]."""
        known = ~values.isnan()
        x = torch.where(known, values, 0.0)
        place = x.sign() * x.abs().log1p() / self.UNIT
        return (self.level + self.slope * place.unsqueeze(-1)) * known.unsqueeze(-1)


class BucketEmbedding(nn.Module):
    """A vector of its own for every half octave of |x|, of either sign, and one for zero.

    Bounds are 2^e and 2^e sqrt(1/2), found from the float's own exponent, so they are the same on every machine.
    |x| below 2^-10 counts as 2^-10, beyond 2^40 as 2^40.

    Args:
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    LOW, HIGH = -10, 40
    HALF = 0.70710678

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(4 * (self.HIGH - self.LOW) + 1, dim)
        nn.init.normal_(self.table.weight, std=std)

    def rows(self, values: Tensor) -> Tensor:
        """The bucket of each number, int64 [...]: zero in the middle, negative numbers before it."""
        n = 2 * (self.HIGH - self.LOW)
        mantissa, exponent = torch.frexp(values.abs())  # |x| = mantissa 2^exponent, mantissa in [1/2, 1)
        bucket = (2 * (exponent.long() - 1 - self.LOW) + (mantissa >= self.HALF)).clamp(0, n - 1)
        return n + values.sign().long() * (1 + bucket)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...], NaN = unknown -> [..., D]."""
        known = ~values.isnan()
        return self.table(self.rows(torch.where(known, values, 0.0))) * known.unsqueeze(-1)


def numeral_rows(values: Tensor, base: int, length: int) -> Tensor:
    """Rows k base + digit_k of a number's digits, leading zeros included, the lowest digit (k = 0) first.

    Args:
        values: integers [...] in [0, base^length).
        base: of the numerals.
        length: digits.

    Returns:
        int64 [..., length].
    """
    place = torch.arange(length, device=values.device)
    return values.long().unsqueeze(-1) // base**place % base + base * place


class NumeralEmbedding(nn.Module):
    """The digits of a number in bases 2, 3 and 10, a vector each, and its sign; all summed.

    In base b a number is written with a fixed count of digits, leading zeros included, after rounding to b^-f:
    f = 10, 6, 3 digits of fraction, so about a thousandth; |x| above 10^12 - 1 counts as that. Every base and place has
    vectors of its own. Several bases, because neighbours such as 63 and 64 share no binary digit but most ternary
    ones (MNSE: Pan et al. 2024, arXiv 2403.00793; there the numbers are non-negative integers). An unknown number is
    zero rather than a row of its own, as for every input.

    Args:
        dim: width D.
        std: standard deviation of the output's entries at the start.
    """

    BASES = ((2, 40, 10), (3, 26, 6), (10, 12, 3))  # base, digits of the whole part, of the fraction
    LIMIT = 10**12 - 1

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        digits = 1 + sum(whole + fraction for _, whole, fraction in self.BASES)
        rows = 2 + sum(base * (whole + fraction) for base, whole, fraction in self.BASES)
        self.table = nn.Embedding(rows, dim)
        nn.init.normal_(self.table.weight, std=std / digits**0.5)

    def rows(self, values: Tensor) -> Tensor:
        """Rows of the table, int64 [..., digits]: the sign's (0 = no minus, 1 = minus), then base by base."""
        size = values.abs().double().clamp(max=self.LIMIT)
        parts, start = [(values < 0).long().unsqueeze(-1)], 2
        for base, whole, fraction in self.BASES:
            length = whole + fraction
            parts.append(start + numeral_rows((size * base**fraction).round().long(), base, length))
            start += base * length
        return torch.cat(parts, -1)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...], NaN = unknown -> [..., D]."""
        known = ~values.isnan()
        rows = self.rows(torch.where(known, values, 0.0))
        weight = self.table.weight  # a product with 0 and 1: summing a hundred rows a number is 4 times as slow
        ones = torch.zeros(*values.shape, len(weight), device=weight.device, dtype=weight.dtype).scatter_(-1, rows, 1.0)
        return (ones @ weight) * known.unsqueeze(-1)


NUMERIC_EMBEDDINGS: dict[str, type[nn.Module]] = {
    "knots": KnotEmbedding,
    "log": LogEmbedding,
    "buckets": BucketEmbedding,
    "numerals": NumeralEmbedding,
}
