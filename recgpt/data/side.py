"""The side tables, joined by id: items' categories, titles, features and content vectors; users' profiles."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.hashing import MOST_CATEGORIES, distinct_hashes, hash_ids, padded_hashes
from recgpt.data.logs import find_files
from recgpt.data.schema import FeatureConfig, FormatConfig, ItemFeatureConfig, ItemsConfig, UsersConfig, VectorsConfig
from recgpt.data.source import TextStats, open_source
from recgpt.data.text import encoder_vectors, ngram_vectors
from recgpt.errors import ConfigError


@dataclass(kw_only=True)
class Side:
    """What a side table says of N ids; rows without an entry hold 0 (categorical, categories) or NaN (numeric)."""

    features: dict[str, NDArray[Any]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class ItemSide(Side):
    """What a side table says of I items; rows without an entry hold 0, NaN or None."""

    category: NDArray[np.int64]
    title: list[str | None] | None = None
    embedding: NDArray[np.float32] | None = None


def read_items(engine: Engine, config: ItemsConfig | None, ids: pa.Array, scratch: Path) -> ItemSide:
    """Look the log's item ids [I] up in the side table.

    Raises:
        ConfigError: a missing file or column, ids of another type than the log's, a NaN, vectors of several widths, no
            text at all, a sentence encoder that cannot be had.
    """
    if config is None:
        return ItemSide(category=np.zeros(len(ids), np.int64))
    more = {"category": config.category, "title": config.title, "embedding": config.embedding}
    columns = {key: name for key, name in more.items() if name is not None}
    columns |= {f"text.{place}": name for place, name in enumerate(config.text)}
    table = _Join(engine, config, "items", columns, ids, scratch)
    side = ItemSide(
        category=np.zeros(len(ids), np.int64) if config.category is None else table.hashes(config.category, "category"),
        features=table.features(),
        files=table.source.files,
        warnings=table.warnings,
        title=table.texts(config.title) if config.title is not None else None,
    )
    if config.embedding is not None:
        side.embedding = table.vectors(config.embedding, "embedding")
    if config.text:
        side.embedding = _text_vectors(table, config)
    if config.vectors is not None:
        other = _Join(engine, config.vectors, "items.vectors", {"column": config.vectors.column}, ids, scratch)
        side.embedding = other.vectors(config.vectors.column, "column")
        side.files, side.warnings = side.files + other.source.files, side.warnings + other.warnings
    return side


def _text_vectors(table: _Join, config: ItemsConfig) -> NDArray[np.float32]:
    """The content vectors that the text columns become."""
    texts = table.joined_texts(config.text)
    known = sum(text is not None for text in texts)
    if known == 0:
        raise ConfigError(
            f"data.items.text: no item of the log has a text in {', '.join(config.text)}; name other columns"
        )
    if known < len(texts):
        table.warnings.append(f"{len(texts) - known:,} of {len(texts):,} items have no text in data.items.text")
    if config.encoder is not None:
        return encoder_vectors(texts, config.encoder)
    return ngram_vectors(texts, config.text_width)


def read_users(engine: Engine, config: UsersConfig | None, ids: pa.Array, scratch: Path) -> Side:
    """Look the log's user ids [U] up in the side table.

    Raises:
        ConfigError: a missing file or column, ids of another type than the log's, a NaN.
    """
    if config is None:
        return Side()
    table = _Join(engine, config, "users", {}, ids, scratch)
    return Side(features=table.features(), files=table.source.files, warnings=table.warnings)


class _Join:
    """Looks ids up in a side table and turns its columns into arrays over the log's ids.

    Args:
        engine: the query engine.
        config: the table's section.
        kind: the section's name, `items`, `items.vectors` or `users`.
        more: key -> column of what the section names beside the id and the features.
        ids: the log's ids [N].
        scratch: folder for parsed text.
    """

    def __init__(
        self,
        engine: Engine,
        config: ItemsConfig | VectorsConfig | UsersConfig,
        kind: str,
        more: dict[str, str],
        ids: pa.Array,
        scratch: Path,
    ) -> None:
        self.kind, self.ids, self.what = kind, ids, kind.partition(".")[0]
        self.declared = {} if isinstance(config, VectorsConfig) else config.features
        layout = FormatConfig() if isinstance(config, VectorsConfig) else config.format
        path = f"data.{kind}.path"
        columns = {"id": config.id, **more} | {f"features.{name}": name for name in self.declared}
        used = {f"data.{kind}.{key}": name for key, name in columns.items()}
        files = find_files([config.path], path)
        self.source = open_source(engine, kind.replace(".", " "), files, layout, path, scratch, used)
        self.stats: dict[str, TextStats] = self.source.text_stats(used.values()) if self.source.text else {}
        rows = self.source.table.order_by([FILE, ROW]).select(*dict.fromkeys(used.values()))
        self.rows = engine.fetch(rows)
        self.warnings: list[str] = []
        self.place = self._match(self._ids(config.id))

    def features(self) -> dict[str, NDArray[Any]]:
        """The declared features: int64 hashes [N] or [N, W], 0 = unknown, or float32 [N], NaN = unknown."""
        return {name: self._feature(name, feature) for name, feature in self.declared.items()}

    def _feature(self, name: str, feature: FeatureConfig | ItemFeatureConfig) -> NDArray[Any]:
        key = f"features.{name}"
        if isinstance(feature, ItemFeatureConfig) and feature.kind == "categories":
            return self._categories(name, key, feature.separator)
        return self.hashes(name, key) if feature.kind == "categorical" else self._numbers(name, key)

    def texts(self, name: str) -> list[str | None]:
        """A readable column [N], None where there is none."""
        found = self.rows[name].take(self.place).to_pylist()
        return [None if text is None or text == "" else str(text) for text in found]

    def joined_texts(self, names: list[str]) -> list[str | None]:
        """Text columns joined by blanks [N], None where all are null or blank; a list of texts counts as its texts."""
        columns = [self._texts_of(name) for name in names]
        joined = (" ".join(text for text in row if text) for row in zip(*columns, strict=True))
        return [text if text.strip() else None for text in joined]

    def _texts_of(self, name: str) -> list[str | None]:
        column = _combine(self.rows[name])
        kind = column.type
        many = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        inner = kind.value_type if many else kind
        if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
            raise self._error("text", name, f"is {kind}, not text; cast it to text, or declare it a feature")
        found = column.take(self.place).to_pylist()
        return [" ".join(text for text in texts or () if text) for texts in found] if many else found

    def _ids(self, name: str) -> pa.Array:
        column = self._category_column(_combine(self.rows[name]), name, "id")
        if column.null_count:
            self.warnings.append(f"{column.null_count:,} rows of data.{self.kind} have a null or empty id: ignored")
        if pa.types.is_integer(column.type) != pa.types.is_integer(self.ids.type):
            raise ConfigError(
                f"data.{self.kind}.id: column {name!r} is {column.type}, but the log's {self.what[:-1]}"
                f" ids are {self.ids.type}; write both as the same type"
            )
        return column

    def _match(self, side_ids: pa.Array) -> pa.Array:
        """For each id of the log, its row of the side table (the first, if there are several); null = none."""
        place = pc.index_in(self.ids, value_set=side_ids)
        if place.null_count:
            example = self.ids.filter(pc.is_null(place))[0].as_py()
            self.warnings.append(
                f"{place.null_count:,} of {len(self.ids):,} {self.what} of the log have no row in data.{self.kind},"
                f" such as {example!r}: they have no {'features' if self.what == self.kind else 'vector'}"
            )
        filled = side_ids.drop_null()
        doubles = len(filled) - len(filled.unique())
        if doubles:
            self.warnings.append(f"{doubles:,} rows of data.{self.kind} repeat an id: the first row counts")
        unseen = len(filled.unique()) - (len(place) - place.null_count)
        if unseen:
            self.warnings.append(f"{unseen:,} {self.what} of data.{self.kind} have no event in the log: left out")
        return place

    def _category_column(self, column: pa.Array, name: str, key: str, listed: bool = False) -> pa.Array:
        """A column, or the values of its lists, as int64 or text, null where null or empty."""
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
            stat = None if listed else self.stats.get(name)
            return column.cast("int64") if stat is not None and stat.is_integer else column.cast("string")
        if pa.types.is_boolean(kind):
            return column.cast("int64")
        if pa.types.is_integer(kind):
            try:
                return column.cast("int64")
            except pa.ArrowInvalid as error:
                raise self._error(key, name, "has values above 2^63-1; write it as text") from error
        is_kind = f"holds lists of {kind}" if listed else f"is {kind}"
        raise self._error(key, name, f"{is_kind}; integers or text are needed, so cast it to one")

    def _whole_numbers(self, name: str) -> pa.Array | None:
        """A floating point column as int64 if it holds codes: integers with nulls, as pandas writes them."""
        column = _combine(self.rows[name])
        if not pa.types.is_floating(column.type):
            return None
        values = column.drop_null().to_numpy().astype(np.float64)
        whole = np.isfinite(values) & (np.abs(values) < 2**53) & (np.floor(values) == values)
        return column.cast("int64") if whole.all() else None

    def _error(self, key: str, name: str, told: str) -> ConfigError:
        return ConfigError(f"data.{self.kind}.{key}: column {name!r} {told}")

    def hashes(self, name: str, key: str) -> NDArray[np.int64]:
        """A categorical column as hashes, int64 [N], 0 = unknown."""
        codes = self._whole_numbers(name)
        column = self._category_column(_combine(self.rows[name]), name, key) if codes is None else codes
        return _hashed(column, self.place)

    def _categories(self, name: str, key: str, separator: str | None) -> NDArray[np.int64]:
        """A column of lists as hashes, int64 [N, W]: an item's distinct values in their order, then zeros."""
        lists = self._lists(_combine(self.rows[name]), name, key, separator).take(self.place)
        row = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False).astype(np.int64)
        row, hashes = distinct_hashes(row, _hashed(self._category_column(pc.list_flatten(lists), name, key, True)))
        count = np.bincount(row, minlength=len(lists))
        if count.max(initial=0) > MOST_CATEGORIES:
            example = self.ids[int(count.argmax())].as_py()
            told = (
                f"holds {count.max():,} values for {self.what[:-1]} {example!r}, and at most {MOST_CATEGORIES} may be"
            )
            raise self._error(key, name, f"{told}; keep those that say most")
        return padded_hashes(row, hashes, count)

    def _lists(self, column: pa.Array, name: str, key: str, separator: str | None) -> pa.Array:
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if pa.types.is_null(kind) or (is_list and pa.types.is_null(kind.value_type)):
            raise self._error(key, name, "has no value for any item; leave it out")
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if is_text and separator is not None:
            return self._parted(column, name, key, separator)
        if separator is not None:
            remedy = "drop the separator" if is_list else "declare it categorical, without one"
            raise self._error(key, name, f"is {kind}, which separator: {separator!r} does not part; {remedy}")
        if not is_list:
            remedy = "tell its separator, such as '|'" if is_text else "declare it categorical"
            raise self._error(key, name, f"is {kind}, not a list; {remedy}")
        return column

    def _parted(self, column: pa.Array, name: str, key: str, separator: str) -> pa.Array:
        """The parts of texts, without the blanks around them."""
        parts = pc.split_pattern(column.cast("string"), separator)
        if not (pc.max(pc.list_value_length(parts)).as_py() or 0) > 1:
            told = f"no text of column {name!r} holds the separator {separator!r}, so each is one value"
            self.warnings.append(f"data.{self.kind}.{key}: {told}")
        return pa.ListArray.from_arrays(parts.offsets, pc.utf8_trim_whitespace(parts.values), mask=parts.is_null())

    def _numbers(self, name: str, key: str) -> NDArray[np.float32]:
        column = _combine(self.rows[name])
        kind = column.type
        if self.source.text:
            empty = pc.if_else(pc.equal(column, ""), pa.scalar(None, kind), column)
            try:
                column = empty.cast("float64")
            except pa.ArrowInvalid as error:
                raise self._error(key, name, f"is no number throughout ({error})") from error
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise self._error(key, name, f"is {kind}, not a number; declare it categorical or cast it")
        values = column.cast("float64").take(self.place)
        known = values.drop_null().to_numpy(zero_copy_only=False)
        if not np.isfinite(known).all():
            raise self._error(key, name, "holds NaN or infinity; write null where it is unknown")
        return pc.fill_null(values, np.nan).to_numpy(zero_copy_only=False).astype(np.float32)

    def vectors(self, name: str, key: str) -> NDArray[np.float32]:
        """A column of vectors, float32 [N, width], NaN rows = none."""
        column = _combine(self.rows[name])
        kind = column.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) or not (
            pa.types.is_floating(kind.value_type)
        ):
            raise self._error(key, name, f"is {kind}, not list<float>")
        taken = column.take(self.place)
        present = pc.is_valid(taken).to_numpy(zero_copy_only=False)
        vectors = taken.drop_null()
        widths = pc.unique(pc.list_value_length(vectors)).to_pylist()
        if not widths:
            raise self._error(key, name, "has no vector for any item of the log; check the ids, or leave it out")
        if len(widths) != 1 or widths[0] == 0:
            raise self._error(key, name, f"holds vectors of widths {sorted(widths)}; one width is needed")
        result = np.full((len(self.ids), widths[0]), np.nan, np.float32)
        flat = pc.list_flatten(vectors).to_numpy(zero_copy_only=False).astype(np.float32)
        result[present] = flat.reshape(-1, widths[0])
        broken = present & ~np.isfinite(result).all(1)
        if broken.any():
            example = self.ids[int(np.flatnonzero(broken)[0])].as_py()
            raise ConfigError(
                f"data.{self.kind}.{key}: the vector of {self.what[:-1]} {example!r} holds NaN, infinity or null"
                f" ({int(broken.sum()):,} {self.what}); write a null vector where there is none"
            )
        return result


def _hashed(column: pa.Array, place: pa.Array | None = None) -> NDArray[np.int64]:
    """Hashes of int64 or text, 0 = null; at these places, where some are told (null: 0 too)."""
    coded = column.dictionary_encode()
    hashes = np.append(hash_ids(coded.dictionary), 0)
    indices = coded.indices if place is None else coded.indices.take(place)
    return hashes[pc.fill_null(indices, len(hashes) - 1).to_numpy(zero_copy_only=False)]


def _combine(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
