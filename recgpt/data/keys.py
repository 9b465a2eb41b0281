"""Sort keys made short: a sort takes as long as its keys are wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    import ibis.expr.types as ir

BITS = 31
"""What an int32 holds of numbers from 0 on."""
_FACTOR = 1_640_531_527
"""Odd, and 2^32 over the golden ratio: successive ids land far apart."""


class Range(NamedTuple):
    """Of a column's integers."""

    least: int
    most: int

    @property
    def bits(self) -> int:
        """Of the greatest difference."""
        return (self.most - self.least).bit_length()


@dataclass(frozen=True)
class ShortNumbers:
    """Integers of a range below 2^31 as int32, in the same order; null stays null.

    Attributes:
        least: the smallest one.
        scale: what they are multiplied by on the way back.
    """

    least: int
    scale: int = 1

    @classmethod
    def of(cls, found: Range | None, scale: int = 1) -> ShortNumbers | None:
        """For a column of that range; None where it is too wide, or unknown."""
        return cls(found.least, scale) if found is not None and found.bits <= BITS else None

    def short(self, column: ir.IntegerColumn) -> ir.IntegerColumn:
        """What is sorted."""
        return (column - self.least).cast("int32")

    def back(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """The numbers as they were, times `scale`, int64."""
        return pc.multiply(pc.add(column.cast("int64"), self.least), self.scale)


@dataclass(frozen=True)
class ScatteredIds:
    """Integer ids of a range below 2^31 as int32 in an order of its own: any run of keys is a mixed part of the ids.

    The key is (id - least) times an odd number modulo 2^bits, which can be undone.

    Attributes:
        least: the smallest id.
        bits: of the greatest difference from it.
    """

    least: int
    bits: int

    @classmethod
    def of(cls, found: Range | None) -> ScatteredIds | None:
        """For ids of that range; None where it is too wide, or unknown."""
        return cls(found.least, found.bits) if found is not None and found.bits <= BITS else None

    def short(self, column: ir.IntegerColumn) -> ir.IntegerColumn:
        """What is sorted: below 2^62 on the way, so that no engine overflows."""
        return ((column - self.least) * _FACTOR & ((1 << self.bits) - 1)).cast("int32")

    def back(self, keys: NDArray[np.int32]) -> NDArray[np.int64]:
        """The ids of keys [N]."""
        size = 1 << self.bits
        differences = keys.astype(np.int64) * pow(_FACTOR, -1, size) & (size - 1)  # both factors are below 2^31
        return differences + self.least
