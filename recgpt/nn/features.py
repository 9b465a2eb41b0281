"""Embeddings of what comes with an event or an item: categories, outcomes; numbers by `numbers`, content by `content`.

Every one is zero where its value is unknown, so that absence adds nothing to the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from recgpt.nn.ids.config import IdEmbeddingConfig
from recgpt.nn.ids.hashed import HashEmbedding
from recgpt.nn.numbers import NUMERIC_EMBEDDINGS, NumericKind


class CategoricalEmbedding(HashEmbedding):
    """Hashed categories of one feature, two hashes into a small table.

    Args:
        dim: width D.
        rows: rows of the table.
        std: standard deviation of a vector's entries at the start.
    """

    def __init__(self, dim: int, rows: int = 4096, std: float = 0.02) -> None:
        super().__init__(IdEmbeddingConfig(rows=rows, n_hashes=2), dim, std=std)


class CategoriesEmbedding(nn.Module):
    """Several categories of one feature, such as genres: their sum over the root of their number.

    So an item of many is no longer than one of few.

    Args:
        one: the embedding of a single category, int64 [...] -> [..., D].
    """

    def __init__(self, one: nn.Module) -> None:
        super().__init__()
        self.one = one

    def forward(self, values: Tensor) -> Tensor:
        """int64 [..., W], 0 = none -> [..., D]."""
        lists = values.reshape(-1, values.shape[-1])
        total = self.sum_of_known(lists) if values.is_cpu else self.one(lists).sum(1)
        total = total * (lists != 0).sum(1, keepdim=True).clamp(min=1).rsqrt()
        return total.view(*values.shape[:-1], total.shape[-1])

    def sum_of_known(self, lists: Tensor) -> Tensor:
        """int64 [N, W] -> [N, D]; an item of few costs nothing for the room of one of many.

        How many there are is read on the host, so other devices look up the zeros too.
        """
        row, place = lists.nonzero(as_tuple=True)
        vectors = self.one(lists[row, place])
        return vectors.new_zeros(len(lists), vectors.shape[-1]).index_add(0, row, vectors)


class BinaryEmbedding(nn.Module):
    """A yes/no outcome: one vector each, none where unknown.

    Args:
        dim: width D.
        std: standard deviation of the weights at the start.
    """

    def __init__(self, dim: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Embedding(3, dim, padding_idx=0)
        with torch.no_grad():
            nn.init.normal_(self.table.weight[1:], std=std)

    def forward(self, values: Tensor) -> Tensor:
        """float32 [...] of 0, 1 or NaN (unknown) -> [..., D]."""
        return self.table((values.nan_to_num(-1.0) + 1).long())


def feature_modules(
    kinds: Mapping[str, str],
    dim: int,
    numeric: NumericKind = "knots",
    std: float = 0.02,
    category: Callable[[str, int], nn.Module] | None = None,
) -> nn.ModuleDict:
    """One module for each named feature, by its kind.

    Args:
        kinds: name -> kind, as the schema has them.
        dim: width D.
        numeric: how numbers are embedded.
        std: standard deviation of a vector's entries at the start.
        category: (name, width) -> the embedding of a categorical feature, where a table is shared; None = its own.
    """
    numbers = NUMERIC_EMBEDDINGS[numeric]
    modules: dict[str, nn.Module] = {}
    for name, kind in kinds.items():
        if kind in ("categorical", "categories"):
            one = CategoricalEmbedding(dim, std=std) if category is None else category(name, dim)
            modules[name] = CategoriesEmbedding(one) if kind == "categories" else one
        else:
            modules[name] = BinaryEmbedding(dim, std) if kind == "binary" else numbers(dim, std=std)
    return nn.ModuleDict(modules)


def is_known(values: Tensor) -> Tensor:
    """Of a feature's values [U] or [U, W], which items' are known: bool [U]."""
    if values.is_floating_point():
        return ~values.isnan()
    return (values != 0) if values.ndim == 1 else (values != 0).any(1)
