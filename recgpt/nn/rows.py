"""Matrix products of as many rows as a batch happens to have.

N rows, D width. Libraries of bfloat16 products compile code for every size that they meet, and keep it: 1,000 sizes
take some 300 MiB.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F


def padded_to(x: Tensor, step: int) -> Tensor:
    """[N', D]: zero rows after [N, D], so that N' is a multiple of `step`."""
    return F.pad(x, (0, 0, 0, -len(x) % step))


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor, step: int = 256) -> Tensor:
    """function(x) of [N, D], for a function of each row by itself, computed for one of few N; of other shapes plain."""
    return function(padded_to(x, step))[: len(x)] if x.dim() == 2 else function(x)
