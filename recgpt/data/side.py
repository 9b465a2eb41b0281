"""The item side table: categories, titles, static features and content vectors, joined by id."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.hashing import hash_ids
from recgpt.data.logs import find_files
from recgpt.data.schema import ItemsConfig
from recgpt.data.source import Source, TextStats, open_source
from recgpt.errors import ConfigError


@dataclass
class ItemSide:
    """What a side table says of I items; rows without an entry hold 0, NaN or None."""

    category: NDArray[np.int64]
    title: list[str | None] | None = None
    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    embedding: NDArray[np.float32] | None = None
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_items(engine: Engine, config: ItemsConfig | None, ids: pa.Array, scratch: Path) -> ItemSide:
    """Look the log's item ids [I] up in the side table.

    Raises:
        ConfigError: a missing file or column, ids of another type than the log's, a NaN, vectors of several widths.
    """
    if config is None:
        return ItemSide(np.zeros(len(ids), np.int64))
    files = find_files([config.path], "data.items.path")
    columns = {
        "data.items.id": config.id,
        "data.items.category": config.category,
        "data.items.title": config.title,
        "data.items.embedding": config.embedding,
    }
    columns |= {f"data.items.features.{name}": name for name in config.features}
    used = {key: name for key, name in columns.items() if name is not None}
    source = open_source(engine, "items", files, config.format, "data.items.path", scratch, used)
    return _Join(config, source, used, ids).side()


class _Join:
    """Looks ids up and turns columns into arrays over the log's items."""

    def __init__(self, config: ItemsConfig, source: Source, used: dict[str, str], ids: pa.Array) -> None:
        self.config, self.source, self.ids = config, source, ids
        self.stats: dict[str, TextStats] = source.text_stats(used.values()) if source.text else {}
        names = list(dict.fromkeys(used.values()))
        table = source.table
        rows = table.order_by([FILE, ROW]).select(*names)
        self.rows = source.engine.fetch(rows)
        self.warnings: list[str] = []
        self.place = self._match(self._ids())

    def side(self) -> ItemSide:
        """All columns."""
        config = self.config
        side = ItemSide(self._hashes(config.category, "data.items.category"))
        side.files, side.warnings = self.source.files, self.warnings
        if config.title is not None:
            side.title = [
                None if text is None or text == "" else str(text)
                for text in self.rows[config.title].take(self.place).to_pylist()
            ]
        for name, feature in config.features.items():
            key = f"data.items.features.{name}"
            read = self._hashes if feature.kind == "categorical" else self._numbers
            side.features[name] = read(name, key)
        if config.embedding is not None:
            side.embedding = self._vectors(config.embedding)
        return side

    def _ids(self) -> pa.Array:
        column = self._category_column(self.config.id, "data.items.id")
        if column.null_count:
            self.warnings.append(f"{column.null_count:,} rows of data.items have a null or empty id: ignored")
        if pa.types.is_integer(column.type) != pa.types.is_integer(self.ids.type):
            raise ConfigError(
                f"data.items.id: column {self.config.id!r} is {column.type}, but the log's item ids are"
                f" {self.ids.type}; write both as the same type"
            )
        return column

    def _match(self, side_ids: pa.Array) -> pa.Array:
        """For each item of the log, its row of the side table (the first, if there are several); null = none."""
        place = pc.index_in(self.ids, value_set=side_ids)
        if place.null_count:
            example = self.ids.filter(pc.is_null(place))[0].as_py()
            self.warnings.append(
                f"{place.null_count:,} of {len(self.ids):,} items of the log have no row in data.items,"
                f" such as {example!r}: they have no features"
            )
        filled = side_ids.drop_null()
        doubles = len(filled) - len(filled.unique())
        if doubles:
            self.warnings.append(f"{doubles:,} rows of data.items repeat an id: the first row counts")
        unseen = len(filled.unique()) - (len(place) - place.null_count)
        if unseen:
            self.warnings.append(f"{unseen:,} items of data.items have no event in the log: left out")
        return place

    def _category_column(self, name: str, key: str) -> pa.Array:
        """A column as int64 or text, null where null or empty."""
        column = _combine(self.rows[name])
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
            stat = self.stats.get(name)
            return column.cast("int64") if stat is not None and stat.is_integer else column.cast("string")
        if pa.types.is_boolean(kind):
            return column.cast("int64")
        if pa.types.is_integer(kind):
            try:
                return column.cast("int64")
            except pa.ArrowInvalid as error:
                raise ConfigError(f"{key}: column {name!r} has values above 2^63-1; write it as text") from error
        raise ConfigError(f"{key}: column {name!r} is {kind}; integers or text are needed, so cast it to one")

    def _hashes(self, name: str | None, key: str) -> NDArray[np.int64]:
        if name is None:
            return np.zeros(len(self.ids), np.int64)
        coded = self._category_column(name, key).dictionary_encode()
        hashes = np.append(hash_ids(coded.dictionary), 0)
        codes = pc.fill_null(coded.indices.take(self.place), len(hashes) - 1)
        return hashes[codes.to_numpy(zero_copy_only=False)]

    def _numbers(self, name: str, key: str) -> NDArray[np.float32]:
        column = _combine(self.rows[name])
        kind = column.type
        if self.source.text:
            empty = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
            try:
                column = empty.cast("float64")
            except pa.ArrowInvalid as error:
                raise ConfigError(f"{key}: column {name!r} is no number throughout ({error})") from error
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise ConfigError(f"{key}: column {name!r} is {kind}, not a number; declare it categorical or cast it")
        values = column.cast("float64").take(self.place)
        known = values.drop_null().to_numpy(zero_copy_only=False)
        if not np.isfinite(known).all():
            raise ConfigError(f"{key}: column {name!r} holds NaN or infinity; write null where it is unknown")
        return pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).astype(np.float32)

    def _vectors(self, name: str) -> NDArray[np.float32]:
        key, column = "data.items.embedding", _combine(self.rows[name])
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not (
            pa.types.is_floating(kind.value_type)
        ):
            raise ConfigError(f"{key}: column {name!r} is {kind}, not list<float>")
        taken = column.take(self.place)
        present = pc.is_valid(taken).to_numpy(zero_copy_only=False)
        vectors = taken.drop_null()
        widths = pc.unique(pc.list_value_length(vectors)).to_pylist()
        if len(widths) != 1 or widths[0] == 0:
            raise ConfigError(f"{key}: column {name!r} holds vectors of widths {sorted(widths)}; one width is needed")
        result = np.full((len(self.ids), widths[0]), np.nan, np.float32)
        flat = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).astype(np.float32)
        result[present] = flat.reshape(-1, widths[0])
        broken = present & ~np.isfinite(result).all(1)
        if broken.any():
            example = self.ids[int(np.flatnonzero(broken)[0])].as_py()
            raise ConfigError(
                f"{key}: the vector of item {example!r} holds NaN or null ({int(broken.sum()):,} items);"
                " write a null vector where there is none"
            )
        return result


def _combine(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
