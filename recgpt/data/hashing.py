"""Ids become 64-bit hashes: no indexer, no vocabulary, the same on every machine.

`hash = xxh64(text, seed 0)` read as a signed int64; integers are written in decimal, text is
taken as UTF-8 unchanged.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from recgpt.errors import ConfigError

_DECIMALS = "S20"
"""Room for the decimals of any integer of 64 bits; half the time of formatting each in Python."""
MOST_CATEGORIES = 64
"""Of one item and feature: in memory every item has the room of the one that has most."""


def hash_id(value: int | str) -> int:
    """Hash one id as a signed 64-bit integer.

    Raises:
        ConfigError: the id is null, empty, a float or of another type.
    """
    return int(hash_ids([value])[0])


def hash_ids(values: Sequence[Any] | NDArray) -> NDArray[np.int64]:
    """Hash ids, int64 [N]; equal ids have equal hashes, so pass distinct ones where there are many.

    Args:
        values: integers (Python or numpy) or texts, or a pyarrow array of them.

    Raises:
        ConfigError: an id is null, empty, a float or of another type.
    """
    column: Any = values
    if hasattr(values, "to_pylist"):
        integers = column.type.equals("int64") and not column.null_count
        column = column.to_numpy() if integers else column.to_pylist()
    texts: Iterable[bytes]
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu":
        texts = column.astype(_DECIMALS).tolist()
    else:
        texts = _texts(column.tolist() if isinstance(column, np.ndarray) else column)
    hashes = np.fromiter(map(xxhash.xxh64_intdigest, texts), np.uint64, len(values))
    return hashes.view(np.int64)


def distinct_hashes(row: NDArray[np.int64], hashes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each row's hashes once, where they come first, and no 0.

    Args:
        row: int64 [M], ascending: whose each hash is.
        hashes: int64 [M]; 0 counts for none.
    """
    order = np.lexsort((hashes, row))  # stable: the first of equal ones stays the first
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(row[order]) != 0) | (np.diff(hashes[order]) != 0)
    first = order[new]
    kept = np.sort(first[hashes[first] != 0])
    return row[kept], hashes[kept]


def padded_hashes(row: NDArray[np.int64], hashes: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lists of hashes as a matrix, int64 [N, W]: each row's in their order, then zeros; W >= 1.

    Args:
        row: int64 [M], ascending: whose each hash is.
        hashes: int64 [M].
        count: int64 [N], how many each row has.
    """
    result = np.zeros((len(count), max(1, count.max(initial=0))), np.int64)
    result[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = hashes
    return result


def _texts(values: Iterable[Any]) -> Iterable[bytes]:
    for value in values:
        if isinstance(value, str):
            if not value:
                raise ConfigError("id '' is empty, which means null; remove the row or name the id")
            yield value.encode("utf-8")
        elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            yield b"%d" % int(value)
        else:
            raise ConfigError(
                f"id {value!r} is a {type(value).__name__}; ids are integers or text, so cast it to"
                " one of them (floating point cannot hold every 64-bit id)"
            )
