"""Dropout from random bytes: eight decisions per draw, where torch's CPU dropout makes one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each entry with probability min(255, round(256 p)) / 256 and scale the others so that the mean stays.

    Draws from torch's own generator, so seeds and checkpoints of it hold.

    Args:
        x: any shape.
        p: in [0, 1).
        training: otherwise x comes back as it is.
    """
    dropped = min(255, round(256 * p))
    if not training or dropped == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p, training)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
    return x * (kept * (256 / (256 - dropped))).to(x.dtype)
