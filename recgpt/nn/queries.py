"""The query tower: hidden vectors of users become the vectors that items are compared with.

N rows, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from recgpt.data.schema import OutcomeKind
from recgpt.nn.features import feature_modules
from recgpt.nn.numbers import NumericKind
from recgpt.nn.rows import by_rows


class QueryTower(nn.Linear):
    """W_q, one more such map for each further look-ahead, and what outcome the recommended item should have.

    A look-ahead's map starts as the identity, as W_q does. Outcomes are embedded and added to the hidden vector before
    the map (Ramasamy 2023): they belong to the item that is asked for, and no hidden vector ever reads them.

    Args:
        dim: width D.
        heads: look-aheads, the next item's included.
        outcomes: name -> kind of the outcomes that a query may ask for; none = no such query.
        numeric: how their numbers are embedded.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 1,
        outcomes: Mapping[str, OutcomeKind] | None = None,
        numeric: NumericKind = "knots",
    ) -> None:
        super().__init__(dim, dim, bias=False)
        self.ahead = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(heads - 1))
        self.outcomes = feature_modules(outcomes or {}, dim, numeric)
        self.scale = 0.5 * math.sqrt(dim)
        for module in (self, *self.ahead):
            nn.init.eye_(module.weight)

    def forward(self, hidden: Tensor, head: Tensor | None = None, wanted: Mapping[str, Tensor] | None = None) -> Tensor:
        """Queries before their norm is taken, [..., D].

        Args:
            hidden: [..., D].
            head: int64 [N] look-ahead of each row of hidden [N, D]; None = the next item throughout.
            wanted: name -> float32 [...] outcomes that the item is to have, NaN = any.
        """
        for name, module in self.outcomes.items():
            if wanted is not None and name in wanted:
                hidden = hidden + module(wanted[name]) * self.scale
        query = by_rows(super().forward, hidden) if self.training else super().forward(hidden)
        if head is not None:
            for i, ahead in enumerate(self.ahead, 1):
                rows = (head == i).nonzero()[:, 0]
                query = query.index_copy(0, rows, ahead(hidden.index_select(0, rows)))
        return query


def hide_wanted(wanted: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """The outcomes [N] with some unknown, so that queries that ask for nothing, or for some alone, are trained too.

    All of a row's with probability `share`; in the other rows each one with that probability. Draws from torch's global
    generator.
    """
    if not wanted:
        return {}
    names = list(wanted)
    draw = torch.rand(len(names) + 1, len(wanted[names[0]]), device=wanted[names[0]].device) < share
    return {
        name: torch.where(draw[0] | each, torch.nan, wanted[name]) for name, each in zip(names, draw[1:], strict=True)
    }
