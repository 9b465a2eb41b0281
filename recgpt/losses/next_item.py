"""The next-item loss: queries against item vectors, formed chunk by chunk.

N rows (queries), U distinct items, D width, K drawn negatives of a row. Loss and gradient are formed for some rows at a
time, so that no [N, U] matrix is ever kept. A positive's logit stays as it is; a negative's is shifted by its column's
log-weight: -log pi(i) by default, pi = the probability that a batch contains item i. An accidental hit (a column that
holds the row's own positive) *is* the positive, because every item has one column; it has no mass of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.losses.objectives import MASKED, Objective, Rows
from recgpt.nn.rows import padded_to

Mask = tuple[Tensor, Tensor] | None
_SOFTMAX = Objective()
_PER_ROW_FLOATS = 1 << 23
"""Gathered floats of a chunk of rows with negatives of their own."""
_WHOLE = 32
"""All U products are cheaper than gathering K vectors for each row while U is at most this often K (one core)."""
_COLUMN_STEP, _ROW_STEP = 128, 128
"""What the sizes of fused products are rounded up to: a library keeps compiled code for every size that it has met."""
_LEAST = 2e-38
"""Of a probability whose logarithm is taken, above the subnormal numbers that some libraries let count as 0."""


@dataclass(frozen=True)
class LogWeights:
    """What is added to logits.

    Attributes:
        column: [U], to a negative's: the log of how often it counts; None = 0. Or [G, U], of G groups of rows.
        group: int64 [N], each row's group, where `column` has groups.
        top: [N], to the positive's in the numerator of a softmax; None = 0.
        bottom: [N], the same in the denominator; with hits kept it holds their mass too.
        keep_hits: a drawn column of the row's own id counts as a negative (only where positives have no column).
    """

    column: Tensor | None = None
    group: Tensor | None = None
    top: Tensor | None = None
    bottom: Tensor | None = None
    keep_hits: bool = False

    def rows(self, scores: Tensor, target: Tensor, start: int, column: Tensor | None) -> Rows:
        """A chunk of rows from row `start` on, with their columns' log-weights."""
        chunk = slice(start, start + len(scores))
        place = (torch.arange(len(scores), device=scores.device), target)
        top, bottom = (None if each is None else each[chunk].to(scores.dtype) for each in (self.top, self.bottom))
        return Rows(scores, place, column, None, top, bottom)


@dataclass(frozen=True)
class _Form:
    """What the chunked functions need besides tensors with gradients."""

    weights: LogWeights
    mask: Mask
    objective: Objective
    chunk: int
    dtype: torch.dtype

    def fused(self) -> bool:
        """Whether a row's softmax is one pass over its rounded scores, with log-weights that the product adds."""
        weights, objective = self.weights, self.objective
        plain = objective.kind == "softmax" and not objective.hard
        return (
            self.dtype == torch.bfloat16
            and plain
            and weights.group is None
            and weights.top is None
            and weights.bottom is None
        )


class _Chunked(torch.autograd.Function):
    """A mean over rows whose forward pass has formed the gradients of its first inputs already, and saved them."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        formed = [grads[0] * each for each in ctx.saved_tensors]
        return *formed, *[None] * (len(ctx.needs_input_grad) - len(formed))


class _FusedSoftmax(_Chunked):
    """`_SharedColumns` of a plain softmax in bfloat16, whose scores are read once where there they are read five times.

    A column's log-weight is two more entries of its vector (it and what its rounding leaves), against ones of the
    queries. The softmax itself is computed in float32 and rounded; a positive's 1 - P is the sum of the others, which
    stays exact where P is nearly 1. No row costs more than 87.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, positive: Tensor, form: _Form) -> Tensor:
        n, u = len(q), len(v)
        columns = padded_to(v, _COLUMN_STEP).to(form.dtype)
        queries = padded_to(q, _ROW_STEP).to(form.dtype)
        own = (queries[:n].float() * columns[positive].float()).sum(1).to(form.dtype)
        weighted, asking = columns, queries
        if form.weights.column is not None or len(columns) > u:
            exact = v.new_zeros(u) if form.weights.column is None else form.weights.column
            exact = F.pad(exact, (0, len(columns) - u), value=MASKED)
            weight = exact.to(form.dtype)
            weighted = torch.cat((columns, weight[:, None], (exact - weight).to(form.dtype)[:, None]), 1)
            asking = F.pad(queries, (0, 2), value=1.0)
        weighted_t = weighted.t().contiguous()
        dq, dv = q.new_empty(len(queries), q.shape[1]), v.new_zeros(columns.shape)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for i in range(0, n, form.chunk):
            here = slice(i, i + form.chunk)
            scores = asking[here] @ weighted_t
            removed = _removed(form.mask, i, form.chunk)
            if removed is not None:
                scores[: len(removed), :u].masked_fill_(removed, MASKED)
            place = (torch.arange(len(own[here]), device=q.device), positive[here])
            scores[place] = own[here]
            g = scores.softmax(1)
            p = g[place].float()
            g[place] = 0.0
            g[len(p) :] = 0.0
            others = g.sum(1)[: len(p)]
            g[place] = -others
            logs = torch.where(p > 0.5, torch.log1p(-others.float().clamp(max=0.75)), p.clamp(min=_LEAST).log())
            total -= logs.sum(dtype=torch.float64)
            dq[here] = g @ columns
            dv += g.t() @ queries[here]
        ctx.save_for_backward(dq[:n] / n, dv[:u] / n)
        return (total / n).to(q.dtype)


class _SharedColumns(_Chunked):
    """Every row against the same U columns; its positive is one of them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, positive: Tensor, form: _Form) -> Tensor:
        n, weights = len(q), form.weights
        columns = v.to(form.dtype)
        columns_t = columns.t().contiguous()
        queries = q.to(form.dtype)
        dq, dv = torch.empty_like(q), torch.zeros_like(v)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for i in range(0, n, form.chunk):
            part, target = queries[i : i + form.chunk], positive[i : i + form.chunk]
            column = weights.column
            if column is not None and weights.group is not None:
                column = column[weights.group[i : i + form.chunk]]
            rows = weights.rows((part @ columns_t).to(q.dtype), target, i, column)
            rows.removed = _removed(form.mask, i, form.chunk)
            total += form.objective(rows)
            g = rows.scores.to(form.dtype)
            dq[i : i + form.chunk] = g @ columns
            dv += g.t() @ part
        ctx.save_for_backward(dq / n, dv / n)
        return (total / n).to(q.dtype)


class _DrawnColumns(_Chunked):
    """Every row against the same U drawn columns and its own positive's vector w[own], which has no column.

    `hit` is the column of each row's own id, or -1.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, w: Tensor, own: Tensor, hit: Tensor, form: _Form) -> Tensor:
        n, u, weights = len(q), len(v), form.weights
        columns = F.pad(v, (0, 0, 0, 1)).to(form.dtype)  # the last column takes the positive's score
        columns_t = columns.t().contiguous()
        column = None if weights.column is None else F.pad(weights.column, (0, 1))
        queries = q.to(form.dtype)
        dq, dv, dw = torch.empty_like(q), torch.zeros_like(columns, dtype=q.dtype), torch.zeros_like(w)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for i in range(0, n, form.chunk):
            here = slice(i, i + form.chunk)
            exact, part, vectors = q[here], queries[here], w[own[here]]
            scores = (part @ columns_t).to(q.dtype)
            scores[:, u] = (exact * vectors).sum(1)
            rows = weights.rows(scores, torch.full_like(own[here], u), i, column)
            rows.removed = _removed(form.mask, i, form.chunk, 1)
            if not weights.keep_hits:
                if rows.removed is None:
                    rows.removed = torch.zeros_like(scores, dtype=torch.bool)
                rows.removed[rows.place[0], torch.where(hit[here] < 0, u, hit[here])] = True
            total += form.objective(rows)
            g = rows.scores.to(form.dtype)
            slope = rows.scores[:, u:]
            dq[here] = (g @ columns).to(q.dtype) + slope * vectors
            dv += g.t() @ part
            dw.index_add_(0, own[here], slope * exact)
        ctx.save_for_backward(dq / n, dv[:u] / n, dw / n)
        return (total / n).to(q.dtype)


class _OwnColumns(_Chunked):
    """Every row against K negatives of its own, rows `drawn` [N, K] of v, and its positive v[positive]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, positive: Tensor, drawn: Tensor, form: _Form) -> Tensor:
        n, weights, k = len(q), form.weights, drawn.shape[1]
        whole = len(v) <= _WHOLE * k
        chunk = form.chunk if whole else max(1, min(form.chunk, _PER_ROW_FLOATS // ((k + 1) * q.shape[1])))
        queries, columns = (q.to(form.dtype), v.to(form.dtype)) if whole else (q, v)
        dq, dv = torch.empty_like(q), torch.zeros_like(v)
        total = torch.zeros((), dtype=torch.float64, device=q.device)
        for i in range(0, n, chunk):
            part = queries[i : i + chunk]
            place = torch.cat((drawn[i : i + chunk], positive[i : i + chunk, None]), 1)
            table = part @ columns.t() if whole else v[place]
            scores = table.gather(1, place).to(q.dtype) if whole else (table @ part.unsqueeze(2)).squeeze(2)
            column = None if weights.column is None else weights.column[place]
            rows = weights.rows(scores, torch.full_like(place[:, 0], k), i, column)
            if not weights.keep_hits:
                rows.removed = place == place[:, k:]
            total += form.objective(rows)
            g = rows.scores
            if whole:
                g = table.zero_().scatter_add_(1, place, g.to(form.dtype))
                dq[i : i + chunk] = g @ columns
                dv += g.t() @ part
            else:
                dq[i : i + chunk] = (g.unsqueeze(1) @ table).squeeze(1)
                dv.index_add_(0, place.flatten(), (g.unsqueeze(2) * part.unsqueeze(1)).flatten(0, 1))
        ctx.save_for_backward(dq / n, dv / n)
        return (total / n).to(q.dtype)


def _removed(mask: Mask, start: int, chunk: int, more: int = 0) -> Tensor | None:
    """Bool [n, U + more], the masked columns of a chunk of rows."""
    if mask is None:
        return None
    removed = mask[0][mask[1][start : start + chunk]]
    return F.pad(removed, (0, more)) if more else removed


def next_item_loss(
    q: Tensor,
    v: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    offset: Tensor | LogWeights | None = None,
    mask: Mask = None,
    own: tuple[Tensor, Tensor] | None = None,
    drawn: Tensor | None = None,
    objective: Objective = _SOFTMAX,
    chunk: int = 512,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Mean over rows of an objective; softmax: -log( e^{s_p} / (e^{s_p} + sum over other columns j of e^{s_j + o_j}) ).

    Scores are s = q.v / temperature. What a row is compared with is one of three: by default all U columns, its
    positive among them; with `own`, U columns that were drawn, its positive having a vector of its own; with `drawn`,
    K columns of its own.

    Args:
        q: [N, D] queries.
        v: [U, D] vectors of distinct items.
        positive: int64 [N], each row's column; with `own` -1 where its item was not drawn.
        temperature: divides the scores.
        offset: [U] log-weights o added to negatives' logits, -log pi; default 0; or all that a correction adds.
        mask: (bool [G, U], int64 [N]): columns that are no negatives of group g, and each row's group. A row's own
            positive is never masked. Not with `drawn`.
        own: ([P, D], int64 [N]): vectors of the positives, and each row's.
        drawn: int64 [N, K] each row's own negatives, rows of `v`; one of the row's positive is no negative.
        objective: what a row of scores costs.
        chunk: rows at a time.
        dtype: of the products (bfloat16 on machines that have it); default that of q. Negatives of a row's own that are
            gathered, because items are many, stay in q's.

    Returns:
        A scalar; 0 (with zero gradients) when N = 0.

    Raises:
        ValueError: both `mask` and `drawn`.
    """
    if len(q) == 0:
        return (q.sum() + v.sum()) * 0.0
    weights = offset if isinstance(offset, LogWeights) else LogWeights(offset)
    if weights.column is not None:
        weights = replace(weights, column=weights.column.to(q.dtype))
    form = _Form(weights, mask, objective, chunk, dtype or q.dtype)
    scaled = q / temperature
    if drawn is not None:
        if mask is not None:
            raise ValueError("mask: with `drawn`, leave out what is no negative when drawing")
        return _OwnColumns.apply(scaled, v, positive, drawn, form)
    if own is not None:
        return _DrawnColumns.apply(scaled, v, own[0], own[1], positive, form)
    return (_FusedSoftmax if form.fused() else _SharedColumns).apply(scaled, v, positive, form)


def multiplicity_offset(positive: Tensor, n_columns: int) -> Tensor:
    """[U] log of how many rows have each column as their positive (-inf-like where none)."""
    count = torch.bincount(positive, minlength=n_columns).float()
    return torch.where(count > 0, count.clamp(min=1).log(), MASKED)
