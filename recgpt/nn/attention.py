"""Causal self-attention behind one function.

`attend(q, k, v)` takes queries of the last Tq of Tk positions: query i sees keys up to Tk - Tq + i. With Tq = Tk it is plain
causal attention; with Tq < Tk it continues cached keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def _visible(n_queries: int, n_keys: int, device: torch.device) -> Tensor:
    """bool [Tq, Tk], true where a query may look."""
    ones = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
    return ones.tril(n_keys - n_queries)


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The specification: softmax(q k' / sqrt(d)) v with later keys masked out."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    hidden = ~_visible(q.shape[-2], k.shape[-2], q.device)
    return scores.masked_fill(hidden, -math.inf).softmax(-1) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused attention; on CPU the only one that trains fast (no bias, no dropout)."""
    if q.shape[-2] == k.shape[-2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = _visible(q.shape[-2], k.shape[-2], q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference,
    "sdpa": sdpa,
}
"""Backends: q [B, H, Tq, d], k and v [B, H, Tk, d] -> [B, H, Tq, d]."""


class Rotary(torch.nn.Module):
    """Rotary positions (Su et al. 2021, RoFormer, eq. 34): scores depend on distance alone.

    Args:
        head_dim: width of one head, even.
        length: number of positions.
        base: wavelength of the slowest pair, in positions / 2 pi.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, length: int, base: float = 10_000.0) -> None:
        super().__init__()
        rates = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Rotate [B, H, T, d] by positions start .. start + T - 1; same type and shape."""
        stop = start + x.shape[-2]
        cos, sin = self.cos[start:stop].to(x.dtype), self.sin[start:stop].to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
