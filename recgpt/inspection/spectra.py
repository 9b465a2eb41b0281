"""How many directions a set of vectors uses: singular values and what is read from them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Rows that are taken into double precision at once."""


class Directions:
    """Singular values of vectors that come in parts, not centred, each row once; D x D numbers are kept.

    They come from the matrix of inner products, so that a value below 1e-8 of the largest is rounding.

    Args:
        dim: width D of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.products = np.zeros((dim, dim))

    def add(self, vectors: NDArray[np.floating]) -> Directions:
        """Take [N, D] in; returns itself."""
        for start in range(0, len(vectors), BLOCK):
            part = vectors[start : start + BLOCK].astype(np.float64)
            self.products += part.T @ part
        self.n += len(vectors)
        return self

    def singular_values(self) -> NDArray[np.float64]:
        """Largest first, float64 [min(N, D)]."""
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(self.products)[::-1], 0))
        return values[: min(self.n, len(values))]

    def spectrum(self) -> dict[str, Any]:
        """What the singular values say.

        Returns:
            `n` vectors, their `width`, `length` (root of the mean square), `information_abundance`, `effective_rank`,
            `first_direction` (its share of the squared length of all vectors) and `singular_values`, largest first.
        """
        values = self.singular_values()
        squared = float(np.trace(self.products))
        return {
            "n": self.n,
            "width": len(self.products),
            "length": (squared / max(1, self.n)) ** 0.5,
            "information_abundance": information_abundance(values),
            "effective_rank": effective_rank(values),
            "first_direction": float(values[0] ** 2 / squared) if squared > 0 else None,
            "singular_values": values.tolist(),
        }


def information_abundance(singular: NDArray[np.float64]) -> float:
    """Sum of the singular values over the largest (Guo et al. 2024, "On the Embedding Collapse ...", definition 1).

    From 1 (all vectors on one line: collapsed) to the number of values (all directions alike); 0 for zeros alone.
    """
    return float(singular.sum() / singular[0]) if len(singular) and singular[0] > 0 else 0.0


def effective_rank(singular: NDArray[np.float64]) -> float:
    """Entropy of the singular values as shares of their sum, exponentiated (Roy and Vetterli 2007, eqs. 3 and 4).

    From 1 (all vectors on one line) to the number of values (all directions alike); 0 for zeros alone.
    """
    total = singular.sum()
    if not total > 0:
        return 0.0
    share = singular[singular > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))
