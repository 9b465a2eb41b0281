"""Hash functions of 64-bit ids in torch: exact on signed integers, the same in every process and on every device."""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed int64: splitmix64's increment
_MIX = (-4658895280553007687, -7723592293110705685)  # splitmix64's two multipliers, signed


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 by 1 to 63 bits (torch's own is arithmetic: wrong for half of all hashes)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def rotate_left(x: Tensor, bits: int) -> Tensor:
    """The 64 bits of an int64 rotated to the left by 0 to 63."""
    return (x << bits) | shift_right(x, 64 - bits) if bits else x


def mix64(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014), a bijection of int64 that mixes every bit."""
    x = (x ^ shift_right(x, 30)) * _MIX[0]
    x = (x ^ shift_right(x, 27)) * _MIX[1]
    return x ^ shift_right(x, 31)


def hash_bits(hashes: Tensor, n: int, first: int = 0) -> Tensor:
    """Functions number first, ..., first + n - 1 of one family of bijections: int64 [...] -> int64 [..., n]."""
    steps = torch.arange(1, n + 1, device=hashes.device) + first
    return mix64(hashes.unsqueeze(-1) ^ mix64(steps * _GOLDEN))


def hash_rows(hashes: Tensor, n_hashes: int, rows: int, seed: int = 0) -> Tensor:
    """Rows of each hash: int64 [...] -> int64 [..., n_hashes] in [0, rows)."""
    return shift_right(hash_bits(hashes, n_hashes, seed * n_hashes), 1) % rows
