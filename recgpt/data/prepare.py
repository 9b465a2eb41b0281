"""`prepare`: an event log becomes sequences on disk, every input row accounted for.

    files -> types and checks (read.py) -> distinct ids, hashed -> side tables (side.py) -> join, sort
    -> one streaming pass (sequences.py) -> Prepared

Passes over the log: count the reasons; the ranges of users and order (told by the file, where one Parquet file has
events alone); distinct users (unless their ids are integers of a range below 2^31 and nothing else is known of them);
distinct items; one per categorical context column; the sort.

`rejects.parquet` has a line for every rejected row: `reason`, `field` (the config key), `value`, `file`, `row` and the
row as `json`. `row` counts from 0 in the file, as the log's lines stand there, the header and blank lines left out.
"""

from __future__ import annotations

import difflib
import shutil
import time as clock
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.config import Section, apply_overrides, read_config, validate
from recgpt.data.accounts import Accounts, summarise
from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_ids
from recgpt.data.items import ItemTable
from recgpt.data.keys import Range, ScatteredIds, ShortNumbers
from recgpt.data.prepared import FORMAT, REJECTS, Prepared, source_files, source_stamps
from recgpt.data.read import TICKS, Log, read_log
from recgpt.data.schema import ColumnSplit, DataConfig, WhereSplit
from recgpt.data.sequences import USER_COLUMNS, SequenceWriter
from recgpt.data.side import ItemSide, Side, read_items, read_users
from recgpt.errors import ConfigError
from recgpt.files import atomic_dir, exclusive, remove_leftovers, require_folder, write_json
from recgpt.progress import Stages

if TYPE_CHECKING:
    import ibis.expr.types as ir

BATCH_ROWS = 1 << 19
BUCKET_BITS = 8
_SMALL = 256
"""So many values fit a byte."""
SECTIONS = ("data", "model", "loss", "optim", "run", "heads", "tasks")
"""The sections of a stage's config; all but `data` are the stage's own business."""


class _DataOnly(Section):
    data: DataConfig
    """The log."""


def data_config(config: DataConfig | str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> DataConfig:
    """The `data` section of a config file (or of nested dicts), its other sections ignored.

    Args:
        config: a section, a YAML file with a `data` section, or nested dicts with one.
        overrides: `data.key=value`; those of other sections are left to their stage.

    Raises:
        ConfigError: no `data` section, a wrong value in it, or an override of no known section.
    """
    _check_sections(overrides)
    where = str(config) if isinstance(config, (str, Path)) else "config"
    values = {"data": config.model_dump()} if isinstance(config, DataConfig) else read_config(config)
    values = apply_overrides(values, overrides)
    if "data" not in values:
        raise ConfigError(f"{where}: no section `data`; write one that says where the log lies")
    return validate(_DataOnly, {"data": values["data"]}, where).data


def _check_sections(overrides: Sequence[str]) -> None:
    for name in apply_overrides({}, overrides):
        if name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"sections: {', '.join(SECTIONS)}"
            given = next(text for text in overrides if text.partition("=")[0].split(".")[0] == name)
            raise ConfigError(f"{given!r}: no section {name!r}; {hint}")


def prepare(
    config: DataConfig | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    progress: bool = True,
    overrides: Sequence[str] = (),
) -> Prepared:
    """Turn a log into sequences on disk, or open them where they are there, whole and fresh.

    Args:
        config: the `data` section, or a YAML file or nested dicts that hold one.
        out: the folder; by default `data.prepared`, else `prepared/DIGEST` under the working directory. A prepared
            log that is there is replaced; anything else is left alone.
        progress: show the stages on stderr.
        overrides: `data.key=value` strings.

    Raises:
        ConfigError: the config or the log is at fault: one line names the field, the value and the remedy.
        RecGPTError: the disk is full, or the memory limit too small.
    """
    config = data_config(config, overrides)
    folder = Path(out or config.prepared or Path("prepared") / config.digest())
    _check_place(folder, "out" if out else "data.prepared", config)
    found = Prepared.open_if_fresh(folder, config)
    if found is not None:
        return found
    with Stages(progress) as stages:
        waiting = f"another process prepares {folder}; waiting for it"
        with exclusive(folder.parent / f".{folder.name}.lock", lambda: stages.warn([waiting])):
            return Prepared.open_if_fresh(folder, config) or _prepare_alone(config, folder, stages)


def _check_place(folder: Path, field: str, config: DataConfig) -> None:
    """Refuse a place where preparing would write over something else, above all over the log itself."""
    require_folder(folder, field)
    for file in source_files(config):
        if file.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{field}: {folder} holds the input file {file.name}; choose another folder to write")


def _prepare_alone(config: DataConfig, folder: Path, stages: Stages) -> Prepared:
    remove_leftovers(folder.parent, folder.name)
    with atomic_dir(folder, REJECTS) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        with Engine(config.memory_limit, scratch / "spill") as engine:
            Preparation(config, engine, temporary, scratch, stages).run()
        shutil.rmtree(scratch)
    return Prepared.open(folder)


def prepare_from_config(config: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """`prepare` for a config file and `key.sub=value` overrides, with progress on stderr."""
    return prepare(config, overrides=overrides)


class Preparation:
    """One run of `prepare` into an empty folder."""

    def __init__(self, config: DataConfig, engine: Engine, folder: Path, scratch: Path, stages: Stages) -> None:
        self.config = config
        self.engine = engine
        self.folder = folder
        self.scratch = scratch
        self.stages = stages

    def run(self) -> Log:
        """All stages; `summary.json` is written last. Returns the log, open as long as the engine."""
        started = clock.perf_counter()
        with self.stages.stage("read the log") as told:
            log = read_log(self.engine, self.config, self.scratch, told)
            longest = max(pq.read_metadata(file).num_rows for file in self.engine.files)
        stamps = source_stamps(log.source.files)
        with self.stages.stage("check the rows") as told:
            accounts = Accounts.count(self.engine, log, self.config)
            told(accounts.rows_in)
            accounts.refuse_bad_log()
            accounts.write_rejects(self.folder / REJECTS)
        kept = log.kept if accounts.n_rejected or accounts.n_filtered else log.typed
        ranges = self._ranges(kept, log)
        users = self._users(kept, ranges)
        with self.stages.stage("distinct items") as told:
            ids, hashes = self._distinct(kept, "__item")
            by_hash = np.argsort(hashes, kind="stable")
            ids, hashes = ids.take(pa.array(by_hash)), hashes[by_hash]
            told(len(ids))
        profile, side = self._side_tables(users, ids)  # before the sort, so that a wrong column is told at once
        with self.stages.stage("sort and split") as told:
            order, shortened = self._order(kept, log, ranges)
            place = _place(kept, len(log.source.files), longest)
            events, categories = self._sorted(kept.mutate(__order=order, __row=place), users, ids)
            writer = SequenceWriter(self.config, len(ids), self.folder / "events", categories, shortened)
            writer.write_all(self.engine.batches(events, BATCH_ROWS), told, self.engine.interrupt)
        if self.config.duplicates == "fail" and writer.n_copies:
            raise ConfigError(
                f"data.duplicates: fail, and {writer.n_copies:,} events repeat the user, item and time of another;"
                " remove them from the log, or set data.duplicates to keep or drop"
            )
        with self.stages.stage("write users and items") as told:
            users = users if isinstance(users, pa.Table) else _user_table(users.back(np.concatenate(writer.keys)))
            told(users.num_rows)
            self._write_users(users, profile, writer)
            self._write_items(ids, hashes, side, writer)
        summary = summarise(self.config, accounts, writer, users, hashes, side, profile)
        summary |= {
            "format": FORMAT,
            "digest": self.config.digest(),
            "content": writer.content.hexdigest(),
            "sources": stamps + source_stamps(side.files + profile.files),
            "seconds": round(clock.perf_counter() - started, 3),
        }
        write_json(self.folder / "summary.json", summary)
        self.stages.warn(summary["warnings"])
        return log

    def _ranges(self, kept: ir.Table, log: Log) -> dict[str, Range]:
        """Of the events' users and order, by column, where these are integers.

        Where all rows of one Parquet file are events, the file tells; else it is a pass.
        """
        named = ("__user", "__order" if log.tick is None else TICKS)
        integers = [name for name in named if kept[name].type().is_integer()]
        if not integers:
            return {}
        ends = {f"least {name}": kept[name].min() for name in integers}
        [row] = self.engine.fetch(
            kept.aggregate(**ends, **{f"most {name}": kept[name].max() for name in integers})
        ).to_pylist()
        return {name: Range(row[f"least {name}"], row[f"most {name}"]) for name in integers}

    def _users(self, kept: ir.Table, ranges: Mapping[str, Range]) -> pa.Table | ScatteredIds:
        """The users in the order of the events; or, where that can be had without knowing them, how they are ordered.

        A table has the columns user and hash, sorted by (bucket, user), a bucket being a random part of the users.
        """
        scattered = ScatteredIds.of(ranges.get("__user"))
        if scattered is not None and self.config.users is None:
            return scattered
        with self.stages.stage("distinct users") as told:
            ids, hashes = self._distinct(kept, "__user")
            bucket = hashes.view(np.uint64) >> np.uint64(64 - BUCKET_BITS)
            order = np.argsort(bucket, kind="stable")
            told(len(ids))
            return pa.table({"user": ids.take(pa.array(order)), "hash": hashes[order]})

    def _side_tables(self, users: pa.Table | ScatteredIds, item_ids: pa.Array) -> tuple[Side, ItemSide]:
        """What is known of the log's users and items besides their events."""
        config = self.config
        named = config.users is not None or config.items is not None
        user_ids = _one_array(users["user"]) if isinstance(users, pa.Table) else pa.nulls(0, pa.int64())
        with self.stages.stage("users and items known") if named else nullcontext():
            profile = read_users(self.engine, config.users, user_ids, self.scratch)
            return profile, read_items(self.engine, config.items, item_ids, self.scratch)

    def _distinct(self, kept: ir.Table, column: str) -> tuple[pa.Array, NDArray[np.int64]]:
        """The distinct values of an id column, sorted, and their hashes; null left out."""
        table = self.engine.fetch(kept.select(id=kept[column]).distinct())
        ids = _one_array(table["id"]).drop_null()
        ids = ids.cast("string") if pa.types.is_large_string(ids.type) else ids
        ids = ids.take(pc.sort_indices(ids))
        return ids, hash_ids(ids)

    def _order(self, kept: ir.Table, log: Log, ranges: Mapping[str, Range]) -> tuple[ir.Column, ShortNumbers | None]:
        """The order as it is sorted, and what it was shortened by."""
        name = "__order" if log.tick is None else TICKS
        shortened = ShortNumbers.of(ranges.get(name), log.tick or 1)
        return (kept["__order"], None) if shortened is None else (shortened.short(kept[name]), shortened)

    def _sorted(
        self, kept: ir.Table, users: pa.Table | ScatteredIds, item_ids: pa.Array
    ) -> tuple[ir.Table, dict[str, NDArray[np.int64]]]:
        """The events with keys and rows instead of ids, in their final order; what the codes of categories stand for.

        What starts with `__` is not written. The order is (user, order, ties, place in the files): total, so that two
        runs are equal. Keys are as short as can be: an item among them doubles the time, so events of one place are
        ordered by their items after it, by `SequenceWriter`. Users of integer ids are spared a join, a third of the
        time.
        """
        config = self.config
        names = ["__order", *(f"__tie.{i}" for i in range(len(config.tie)))]
        keys = ["user_key", *names, "__row"]
        if config.order is not None and config.time is not None:
            names.append("__time")
        if config.target != "all":
            names.append("__target")
        if isinstance(config.split, ColumnSplit | WhereSplit):
            names.append("__part")
        if config.impressions is not None and config.impressions.where is not None:
            names.append("__impression")
        columns: dict[str, Any] = {name: kept[name] for name in (*names, "__row")}
        columns |= {
            f"o.{name}": kept[f"__o.{name}"].cast("int8" if outcome.kind == "binary" else "float32")
            for name, outcome in config.outcomes.items()
        }
        categorical = [name for name, context in config.context.items() if context.kind == "categorical"]
        for name in config.context:
            value = kept[f"__c.{name}"]
            columns[f"c.{name}"] = value if name in categorical else value.cast("float32")
        if isinstance(users, pa.Table):
            joined = kept.select("__user", "__item", **columns)
            joined = self._numbered(joined, "__user", users["user"], "user_key")
        else:
            joined = kept.select("__item", user_key=users.short(kept["__user"]), **columns)
        joined = self._numbered(joined, "__item", item_ids, "item_row")
        categories: dict[str, NDArray[np.int64]] = {}
        for name in categorical:
            values, categories[name] = self._distinct(kept, f"__c.{name}")
            joined = self._numbered(joined, f"c.{name}", values, f"code of {name}", required=False)
        ordered = {name: joined[name] for name in ("user_key", "item_row", *columns)}
        ordered |= {f"c.{name}": joined[f"code of {name}"] for name in categorical}
        events = joined.select(**ordered)
        events = events.order_by([events[key].asc(nulls_first=True) for key in keys])
        return events.drop("__row"), categories

    def _numbered(self, events: ir.Table, key: str, ids: pa.Array, name: str, required: bool = True) -> ir.Table:
        """Events with one more column, int32, the place of column `key` among `ids`.

        With `required` every event has one; else it is null where there is none, and of one byte where that is enough.
        """
        width = pa.int32() if required or len(ids) > _SMALL else pa.uint8()
        table = pa.table({f"id of {name}": ids, name: pa.array(np.arange(len(ids)), width)})
        numbered = self.engine.arrow(f"map of {name}", table)
        same = events[key] == numbered[f"id of {name}"]
        return events.inner_join(numbered, same) if required else events.left_join(numbered, same)

    def _write_users(self, users: pa.Table, profile: Side, writer: SequenceWriter) -> None:
        counts = writer.column("n_events")
        columns = {name: writer.column(name) for name in USER_COLUMNS if name not in ("hash", "offset")}
        last = columns.pop("last_time")
        table = users.append_column("offset", pa.array(np.cumsum(counts) - counts))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        table = table.append_column("last_time", pa.array(last, mask=last == NO_TIME))
        for name, values in profile.features.items():
            table = table.append_column(f"f.{name}", pa.array(values))
        repeated = [name for name in table.column_names if name.startswith("f.")]
        pq.write_table(table, self.folder / "users.parquet", use_dictionary=repeated or False)
        writer.content.update("users", table.drop_columns("user"))  # `hash` stands for the id

    def _write_items(self, ids: pa.Array, hashes: NDArray[np.int64], side: ItemSide, writer: SequenceWriter) -> None:
        items = ItemTable(
            ids=ids,
            hash=hashes,
            n_events=writer.n_events,
            n_train_events=writer.n_train_events,
            valid_candidate=writer.seen[0],
            test_candidate=writer.seen[1],
            category=side.category,
            title=side.title,
            features=side.features,
            embedding=side.embedding,
        )
        items.write(self.folder / "items.parquet")
        # `hash` stands for the id; titles are for people only
        table = items.to_arrow().drop_columns(["id"] if items.title is None else ["id", "title"])
        writer.content.update("items", table)


def _user_table(ids: NDArray[np.int64]) -> pa.Table:
    """user, hash."""
    return pa.table({"user": ids, "hash": hash_ids(ids)})


def _place(kept: ir.Table, n_files: int, longest: int) -> ir.IntegerColumn:
    """Where an event stands in the files, the longest of which has so many rows; in 4 bytes where that is enough."""
    place = kept[ROW] if n_files == 1 else kept[FILE] * longest + kept[ROW]
    return place.cast("int32") if n_files * longest < 1 << 31 else place


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
