"""Tables beside the log: files of its folder with one row an item or a user."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from recgpt.errors import ConfigError
from recgpt.init import names
from recgpt.init.layout import file_kind, find_layout
from recgpt.init.roles import Roles, is_day_number, is_text_date
from recgpt.init.sample import Column, Sample, read_sample
from recgpt.init.values import describe

FILES = 40
ROWS = 100_000
SHARED = 0.5
"""Part of the log's ids that a table must hold."""
SEPARATORS = "|;,"
PARTED, REPEATED = 0.2, 5
"""Several values in a text: the part of its distinct texts that hold the separator; how often a value occurs there."""


@dataclass
class Side:
    """A table beside the log.

    Attributes:
        path: the file.
        id: its column that equals the log's ids.
        shared: part of the sample's ids that it holds.
        by_chance: whether these are small integers under another name, which match whatever they mean.
        rows: how many it has, as far as it was read.
        settings: the `format` section of a text file.
        title, category, embedding: columns, or None.
        text: columns whose words tell what an item is.
        features: column -> (its settings, what it looks like).
        rest: column -> what it looks like, or why it is left out.
        counts: columns that may count what happened in the time that is tested on.
    """

    path: Path
    id: str
    shared: float
    rows: int
    settings: dict[str, Any]
    title: str | None = None
    category: str | None = None
    embedding: str | None = None
    text: list[str] = field(default_factory=list)
    features: dict[str, tuple[dict[str, str], str]] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    counts: list[str] = field(default_factory=list)
    by_chance: bool = False


def find_sides(sample: Sample, roles: Roles) -> dict[str, Side]:
    """`items` and `users`: for each the table of the log's folder that holds most of the log's ids."""
    found: dict[str, Side] = {}
    wanted = {key: name for key, name in (("items", roles.item), ("users", roles.user)) if name is not None}
    own = {file.resolve() for file in sample.files}
    files = [file for file in sorted(sample.files[0].parent.iterdir()) if file.is_file() and file_kind(file)]
    for file in [file for file in files if file.resolve() not in own][:FILES]:
        try:
            if not _has_id(file, wanted):
                continue
            table = read_sample([file], str(file), ROWS)
        except ConfigError:
            continue  # no table that `prepare` could read
        for key, name in wanted.items():
            side = _side(key, table, sample.column(name))
            if side is not None and (key not in found or side.shared > found[key].shared):
                found[key] = side
    return found


def _has_id(file: Path, wanted: dict[str, str]) -> bool:
    """Whether a column is named like an id of the log: that much is read of every file."""
    if file_kind(file) == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            columns = pq.read_schema(file).names
        except pa.ArrowInvalid:
            return False
    else:
        columns = find_layout(file, str(file)).columns
    return any(_is_named(key, name, column) for key, name in wanted.items() for column in columns)


def _is_named(key: str, name: str, column: str) -> bool:
    words, weak = (names.ITEM, names.ITEM_WEAK) if key == "items" else (names.USER, names.USER_WEAK)
    return column == name or column.lower() == "id" or names.id_score(column, words, weak) >= 2.5


def _side(key: str, table: Sample, ids: Column) -> Side | None:
    """The table as a side table of these ids, if it is one: every id once, of the same type, most of the log's."""
    best: tuple[float, Column] | None = None
    for column in table.columns:
        if column.kind != ids.kind or column.distinct < column.known or not _is_named(key, ids.name, column.name):
            continue
        held = pc.is_in(ids.coded[1], value_set=column.coded[1])
        shared = (pc.sum(held).as_py() or 0) / max(1, ids.distinct)
        if shared >= SHARED and (best is None or shared > best[0]):
            best = (shared, column)
    if best is None:
        return None
    shared, column = best
    settings = table.layout.settings if table.layout is not None else {}
    side = Side(table.files[0], column.name, shared, table.total or table.rows, settings)
    dense = ids.kind == "integer" and ids.range is not None and ids.range[1] <= 10 * ids.distinct
    side.by_chance = dense and column.name != ids.name
    for other in table.columns:
        if other is not column:
            _place(side, key, other, table)
    return side


def _place(side: Side, key: str, column: Column, table: Sample) -> None:
    """Give a column of the table its place."""
    words, name = set(names.tokens(column.name)), column.name
    note = describe(column)
    many = column.distinct > 0.9 * max(1, column.known) and column.distinct > 50
    if key == "items" and column.kind == "text" and many and _in_words(column):
        side.text.append(name)
    if key == "items" and column.kind == "list" and side.embedding is None and "float" in column.stored:
        side.embedding = name
    elif key == "items" and re.fullmatch(r"array<!?(string|u?int\d+)>", column.stored):
        side.rest[name] = f"{note}; a feature of kind: categories if its values come again in other items"
    elif column.kind in ("list", "other", "moment") or column.distinct < 2:
        side.rest[name] = note
    elif key == "items" and column.kind == "text" and side.title is None and words & {"title", "name", "headline"}:
        side.title = name
    elif names.is_after(name):
        side.counts.append(name)
    elif is_day_number(column) or is_text_date(column):
        side.rest[name] = f"{note}; days"
    elif column.nans or column.odd:
        side.rest[name] = f"{note}; write null (or nothing) where it is unknown"
    elif column.kind == "float" or (column.kind == "integer" and (many or words & names.NUMBERS) and "id" not in words):
        side.features[name] = ({"kind": "numeric"}, note)
    elif key == "items" and column.kind == "text" and (separator := _separator(column)) is not None:
        side.features[name] = ({"kind": "categories", "separator": separator}, note)
    elif column.kind == "text" and many:
        side.rest[name] = f"{note}; {'almost every' if column.distinct < column.known else 'every'} row has its own"
    else:
        side.features[name] = ({"kind": "categorical"}, note)
        if (
            key == "items"
            and side.category is None
            and words & {"category", "cat", "genre", "genres", "brand", "topic"}
        ):
            side.category = name


def _separator(column: Column) -> str | None:
    """What stands between the several values of a text, which come again in other texts; None = it is one value."""
    texts = column.coded[1]
    odd = pc.match_substring_regex(texts, r"^\s*[\[{]|^-?\d+,\d+$")  # a list as a program writes it, a decimal comma
    if (pc.sum(odd).as_py() or 0) > 0.5 * len(texts):
        return None
    for separator in SEPARATORS:
        parted = pc.sum(pc.match_substring(texts, separator)).as_py() or 0
        values = pc.utf8_trim_whitespace(pc.list_flatten(pc.split_pattern(texts, separator)))
        if parted >= max(2, PARTED * len(texts)) and len(values) >= REPEATED * len(values.unique()):
            return separator
    return None


def _in_words(column: Column) -> bool:
    """Whether most values hold several words, as titles do and codes do not."""
    import pyarrow.compute as pc

    return (pc.mean(pc.count_substring_regex(column.coded[1], r"\p{L}{2,}")).as_py() or 0) >= 2


def side_lines(key: str, side: Side, quote: Any, flow: Any) -> list[str]:
    """The section, to be written as comments: without the leading `# ` it is one that `prepare` reads."""
    what = key.removesuffix("s")
    chance = "; CHECK: small integers match by chance too" if side.by_chance else ""
    held = f"{side.rows:,} rows, {side.shared:.0%} of the {what}s of the sample{chance}"
    lines = [
        f"{key}:  # {names.shown(side.path.name)}: {held}",
        f"  path: {quote(str(side.path))}",
        f"  id: {quote(side.id)}",
    ]
    lines += [f"  format: {flow(side.settings)}"] if side.settings else []
    for role in ("title", "category", "embedding"):
        name = getattr(side, role)
        lines += [f"  {role}: {quote(name)}"] if name is not None else []
    if side.features:
        lines.append("  features:")
        lines += [f"    {quote(name)}: {flow(feature)}  # {note}" for name, (feature, note) in side.features.items()]
    lines += [f"    # {quote(name)}: {note}" for name, note in side.rest.items()]
    if side.text and side.embedding is None:
        named = ", ".join(quote(name) for name in side.text)
        lines.append(f"  # text: [{named}]  # their words as a content vector, for items with few events or none")
    if side.counts:
        named = ", ".join(quote(name) for name in side.counts)
        lines.append(
            f"    # CHECK: by their names these may count what happened in the time that is tested on: {named}"
        )
    return lines
