"""The next-item loss: softmax cross-entropy over the distinct target items of a batch.

N rows (queries), U columns (distinct items), D width. A positive's logit stays as it is; a negative's is shifted by its
column's offset: -log pi(i), pi = the probability that a batch contains item i. An accidental hit (a column that holds
the row's own positive) *is* the positive, because every item has one column; it has no mass of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_MASKED = -1e30


class _NextItemLoss(torch.autograd.Function):
    """Loss and gradients formed chunk by chunk: no [N, U] matrix is ever kept."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, v: Tensor, positive: Tensor, offset: Tensor, mask: Mask, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        n = len(q)
        columns = v.to(dtype)
        columns_t = columns.t().contiguous()
        queries = q.to(dtype)
        row = torch.arange(min(chunk, n), device=q.device)
        dq, dv = torch.empty_like(q), torch.zeros_like(v)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for i in range(0, n, chunk):
            part, target = queries[i : i + chunk], positive[i : i + chunk]
            r = row[: len(part)]
            p = (part @ columns_t).to(q.dtype)
            score = p[r, target]
            p += offset
            if mask is not None:
                p.masked_fill_(mask[0][mask[1][i : i + chunk]], _MASKED)
            p[r, target] = score
            top = p.amax(1, keepdim=True)
            p.sub_(top).exp_()
            mass = p.sum(1, keepdim=True)
            total += (top + mass.log()).sum(dtype=torch.float64) - score.sum(dtype=torch.float64)
            p.div_(mass)
            p[r, target] -= 1
            g = p.to(dtype)
            dq[i : i + chunk] = g @ columns
            dv += g.t() @ part
        ctx.save_for_backward(dq / n, dv / n)
        return (total / n).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        dq, dv = ctx.saved_tensors
        return grads[0] * dq, grads[0] * dv, None, None, None, None, None


Mask = tuple[Tensor, Tensor] | None


def next_item_loss(
    q: Tensor,
    v: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    offset: Tensor | None = None,
    mask: Mask = None,
    chunk: int = 512,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean of -log( e^{s_p} / (e^{s_p} + sum over other columns j of e^{s_j + offset_j}) ), s = q.v / temperature.

    Args:
        q: [N, D] unit queries.
        v: [U, D] unit item vectors of distinct items.
        positive: int64 [N], each row's column.
        temperature: divides the scores.
        offset: [U] added to negatives' logits, -log pi; default 0. With log multiplicity it is the plain N x N form.
        mask: (bool [G, U], int64 [N]): columns that are no negatives of group g, and each row's group. A row's own
            positive is never masked.
        chunk: rows at a time.
        dtype: of the products (bfloat16 on machines that have it); default that of q.

    Returns:
        A scalar; 0 (with zero gradients) when N = 0.
    """
    if len(q) == 0:
        return (q.sum() + v.sum()) * 0.0
    if offset is None:
        offset = v.new_zeros(len(v))
    scaled = q / temperature
    return _NextItemLoss.apply(scaled, v, positive, offset.to(q.dtype), mask, chunk, dtype or q.dtype)


def multiplicity_offset(positive: Tensor, n_columns: int) -> Tensor:
    """[U] log of how many rows have each column as their positive (-inf-like where none)."""
    count = torch.bincount(positive, minlength=n_columns).float()
    return torch.where(count > 0, count.clamp(min=1).log(), _MASKED)
