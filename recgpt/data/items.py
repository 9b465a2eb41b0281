"""The candidate list of a run: ids, hashes, counts and what is known of each item."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemTable:
    """I items; no parameter of a model depends on it.

    Attributes:
        ids: the ids as they stand in the log, int64 or string [I].
        hash: int64 [I], their hashes.
        n_events: int64 [I], events in the whole log.
        n_train_events: int64 [I], events in the training part; an item without one is scored by its content alone.
        valid_candidate, test_candidate: bool [I], whether the item may be recommended at that split.
        category: int64 [I], hash of the category, 0 = unknown.
        title: readable names, or None.
        features: name -> int64 [I] hashes (categorical, 0 = unknown), int64 [I, W] (categories: W of the item that has
            most, 0 after the last) or float32 [I] (numeric, NaN = unknown).
        embedding: float32 [I, dc] content vectors (a NaN row = none), or None.
    """

    ids: pa.Array
    hash: NDArray[np.int64]
    n_events: NDArray[np.int64]
    n_train_events: NDArray[np.int64]
    valid_candidate: NDArray[np.bool_]
    test_candidate: NDArray[np.bool_]
    category: NDArray[np.int64]
    title: list[str | None] | None = None
    features: Mapping[str, NDArray] = field(default_factory=dict)
    embedding: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.hash)

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = np.argsort(self.hash, kind="stable")
        return self.hash[order], order

    @cached_property
    def trained(self) -> NDArray[np.int64]:
        """Hashes of the items with a training event, ascending."""
        return np.sort(self.hash[self.n_train_events > 0])

    def rows(self, hashes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of item hashes, -1 where unknown; same shape as `hashes`."""
        ordered, order = self._by_hash
        if len(ordered) == 0:
            return np.full(np.shape(hashes), -1, np.int64)
        place = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
        return np.where(ordered[place] == hashes, order[place], -1)

    def id(self, row: int) -> int | str:
        """The id of one item as it stands in the log."""
        return self.ids[row].as_py()

    def to_arrow(self) -> pa.Table:
        """One row an item; the columns are those of the run's `items.parquet`."""
        columns: dict[str, pa.Array] = {"id": self.ids}
        for name in _PLAIN:
            columns[name] = pa.array(getattr(self, name))
        if self.title is not None:
            columns["title"] = pa.array(self.title, pa.string())
        for name, values in self.features.items():
            columns[f"f.{name}"] = pa.array(values) if values.ndim == 1 else _rows(values)
        if self.embedding is not None:
            columns["embedding"] = _rows(self.embedding.astype(np.float32, copy=False))
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> ItemTable:
        """The inverse of `to_arrow`."""
        table = table.combine_chunks()
        names = table.column_names
        return cls(
            ids=_one_array(table["id"]),
            **{name: _numpy(table[name]) for name in _PLAIN},
            title=table["title"].to_pylist() if "title" in names else None,
            features={name[2:]: _numpy(table[name]) for name in names if name.startswith("f.")},
            embedding=_numpy(table["embedding"]) if "embedding" in names else None,
        )

    def write(self, target: str | Path | IO[bytes]) -> None:
        """Write one Parquet file."""
        pq.write_table(self.to_arrow(), target)

    @classmethod
    def read(cls, path: str | Path) -> ItemTable:
        """Read what `write` wrote."""
        return cls.from_arrow(pq.read_table(path))


_PLAIN = ("hash", "n_events", "n_train_events", "valid_candidate", "test_candidate", "category")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined


def _rows(values: NDArray) -> pa.Array:
    """A matrix as a column of lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _numpy(column: pa.ChunkedArray) -> NDArray:
    """The inverse of `pa.array` or `_rows`."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = column.combine_chunks().flatten()
    return flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
