"""One digest of what `prepare` wrote, taken while it is written: equal data, equal digest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


class ContentDigest:
    """Hashes columns of numbers in order; the runs in which their rows arrive do not matter.

    A column is hashed as its type, its values (0 in place of a null) and the places of its nulls.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}

    def update(self, table: str, rows: pa.Table) -> None:
        """Take the next rows of a table: columns of numbers, of booleans, or of vectors of one width."""
        for name in rows.column_names:
            kind = rows[name].type
            vectors = pa.types.is_fixed_size_list(kind)
            column = self._columns.setdefault(f"{table}.{name}", _Column(kind.value_type if vectors else kind))
            for chunk in rows[name].chunks:
                column.update(chunk.flatten() if vectors else chunk)

    def hexdigest(self) -> str:
        """32 hex digits over all columns so far."""
        lines = [f"{name} {column.hexdigest()}\n" for name, column in sorted(self._columns.items())]
        return xxhash.xxh3_128_hexdigest("".join(lines).encode())


class _Column:
    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self.values, self.nulls = xxhash.xxh3_128(), xxhash.xxh3_128()
        self.rows = 0

    def update(self, chunk: pa.Array) -> None:
        if chunk.null_count:
            places = np.flatnonzero(pc.is_null(chunk).to_numpy(zero_copy_only=False))
            self.nulls.update((places + self.rows).data)
            chunk = pc.fill_null(chunk, pa.scalar(0).cast(self.kind))
        self.values.update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).data)
        self.rows += len(chunk)

    def hexdigest(self) -> str:
        return f"{self.kind} {self.rows} {self.values.hexdigest()} {self.nulls.hexdigest()}"
