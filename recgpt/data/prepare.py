"""`prepare`: an event log becomes sequences on disk, every input row accounted for.

    files -> types and checks (read.py) -> distinct ids, hashed -> join, sort -> one streaming pass (sequences.py) -> Prepared

Passes over the log: count the reasons; distinct users; distinct items; one per categorical context column; the sort.
"""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.config import Section, load_config, read_config
from recgpt.data.accounts import Accounts, summarise
from recgpt.data.engine import FILE, ROW, Engine
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_ids
from recgpt.data.items import ItemTable
from recgpt.data.prepared import FORMAT, Prepared, source_stamps
from recgpt.data.progress import Stages
from recgpt.data.read import Log, read_log
from recgpt.data.schema import DataConfig
from recgpt.data.sequences import USER_COLUMNS, SequenceWriter
from recgpt.data.side import ItemSide, read_items
from recgpt.errors import ConfigError
from recgpt.files import atomic_dir, write_json

if TYPE_CHECKING:
    import ibis.expr.types as ir

BATCH_ROWS = 1 << 19
BUCKET_BITS = 8


class _DataOnly(Section):
    data: DataConfig
    """The log."""


def data_config(
    config: DataConfig | str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> DataConfig:
    """The `data` section of a config file (or of nested dicts), its other sections ignored.

    Args:
        config: a section, a YAML file with a `data` section, or nested dicts with one.
        overrides: `data.key=value`; those of other sections are ignored.
    """
    if isinstance(config, DataConfig):
        return config
    values = read_config(config)
    if "data" not in values:
        raise ConfigError(f"{config if isinstance(config, (str, Path)) else 'config'}: no section `data`")
    mine = [text for text in overrides if text.startswith("data.")]
    return load_config(_DataOnly, {"data": values["data"]}, mine).data


def prepare(
    config: DataConfig | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    progress: bool = True,
    overrides: Sequence[str] = (),
) -> Prepared:
    """Turn a log into sequences on disk, or open them where they are there, whole and fresh.

    Args:
        config: the `data` section, or a YAML file or nested dicts that hold one.
        out: the folder; by default `data.prepared`, else `prepared/DIGEST` under the working directory.
        progress: show the stages on stderr.
        overrides: `data.key=value` strings.

    Raises:
        ConfigError: the config or the log is at fault: one line names the field, the value and the remedy.
        RecGPTError: the disk is full, or the memory limit too small.
    """
    config = data_config(config, overrides)
    folder = Path(out or config.prepared or Path("prepared") / config.digest())
    found = Prepared.open_if_fresh(folder, config)
    if found is not None:
        return found
    with Stages(progress) as stages, atomic_dir(folder) as temporary:
        scratch = temporary / "scratch"
        scratch.mkdir()
        with Engine(config.memory_limit, scratch / "spill") as engine:
            _Preparation(config, engine, temporary, scratch, stages).run()
        _remove(scratch)
    return Prepared.open(folder)


def prepare_from_config(config: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """`prepare` for a config file and `key.sub=value` overrides, with progress on stderr."""
    return prepare(config, overrides=overrides)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


class _Preparation:
    """One run of `prepare` into an empty folder."""

    def __init__(
        self, config: DataConfig, engine: Engine, folder: Path, scratch: Path, stages: Stages
    ) -> None:
        self.config = config
        self.engine = engine
        self.folder = folder
        self.scratch = scratch
        self.stages = stages

    def run(self) -> None:
        """All stages; `summary.json` is written last."""
        started = clock.perf_counter()
        with self.stages.stage("read the log") as told:
            log = read_log(self.engine, self.config, self.scratch, told)
        stamps = source_stamps(log.source.files)
        with self.stages.stage("check the rows") as told:
            accounts = Accounts.count(self.engine, log, self.config)
            told(accounts.rows_in)
            accounts.refuse_bad_log()
            accounts.write_rejects(self.folder / "rejects.parquet")
        kept = log.kept if accounts.n_rejected or accounts.n_filtered else log.typed
        with self.stages.stage("distinct users") as told:
            users = self._user_table(kept)
            told(users.num_rows)
        with self.stages.stage("distinct items") as told:
            ids, hashes = self._distinct(kept, "__item")
            told(len(ids))
        with self.stages.stage("sort and split") as told:
            events = self._sorted(kept, users, ids, hashes)
            writer = SequenceWriter(self.config, len(ids), self.folder / "events")
            writer.write_all(self.engine.batches(events, BATCH_ROWS), told)
        if self.config.duplicates == "fail" and writer.n_copies:
            raise ConfigError(
                f"data.duplicates: fail, and {writer.n_copies:,} events repeat the user, item and time of"
                " another; remove them from the log, or set data.duplicates to keep or drop"
            )
        with self.stages.stage("write users and items"):
            self._write_users(users, writer)
            side = read_items(self.engine, self.config.items, ids, self.scratch)
            self._write_items(ids, hashes, side, writer)
        summary = summarise(self.config, accounts, writer, users, hashes, side)
        summary |= {
            "format": FORMAT,
            "digest": self.config.digest(),
            "sources": stamps + source_stamps(side.files),
            "seconds": round(clock.perf_counter() - started, 3),
        }
        write_json(self.folder / "summary.json", summary)
        self.stages.warn(summary["warnings"])

    def _distinct(self, kept: ir.Table, column: str) -> tuple[pa.Array, NDArray[np.int64]]:
        """The distinct values of an id column, sorted, and their hashes; null left out."""
        table = self.engine.fetch(kept.select(id=kept[column]).distinct())
        ids = _one_array(table["id"]).drop_null()
        ids = ids.cast("string") if pa.types.is_large_string(ids.type) else ids
        ids = ids.take(pc.sort_indices(ids))
        return ids, hash_ids(ids)

    def _user_table(self, kept: ir.Table) -> pa.Table:
        """user, hash, sorted by (bucket, user); the row is the user_row. A bucket is a random part of the users."""
        ids, hashes = self._distinct(kept, "__user")
        bucket = hashes.view(np.uint64) >> np.uint64(64 - BUCKET_BITS)
        order = np.argsort(bucket, kind="stable")
        return pa.table({"user": ids.take(pa.array(order)), "hash": hashes[order]})

    def _sorted(
        self, kept: ir.Table, users: pa.Table, ids: pa.Array, hashes: NDArray[np.int64]
    ) -> ir.Table:
        """The events with rows instead of ids, in their final order; what starts with `_` is not written."""
        import ibis

        user_map = self.engine.arrow(
            "user_map", pa.table({"uid": users["user"], "user_row": np.arange(users.num_rows)})
        )
        item_map = self.engine.arrow(
            "item_map", pa.table({"iid": ids, "item_row": np.arange(len(ids)), "item": hashes})
        )
        kept = kept.select(*(name for name in kept.columns if name.startswith("__")))
        joined = kept.inner_join(user_map, kept["__user"] == user_map["uid"])
        joined = joined.inner_join(item_map, joined["__item"] == item_map["iid"])
        for index, (name, context) in enumerate(self.config.context.items()):
            if context.kind == "categorical":
                values, codes = self._distinct(kept, f"__c.{name}")
                value_map = self.engine.arrow(
                    f"context_map_{index}", pa.table({f"v{index}": values, f"h{index}": codes})
                )
                joined = joined.left_join(value_map, joined[f"__c.{name}"] == value_map[f"v{index}"])
        columns: dict[str, Any] = {name: joined[name] for name in ("user_row", "item", "item_row")}
        columns["time"] = joined["__time"] if self.config.time is not None else ibis.null("int64")
        columns["target"] = joined["__target"]
        for name in self.config.outcomes:
            columns[f"o.{name}"] = joined[f"__o.{name}"].cast("float32")
        for index, (name, context) in enumerate(self.config.context.items()):
            categorical = context.kind == "categorical"
            columns[f"c.{name}"] = (
                joined[f"h{index}"] if categorical else joined[f"__c.{name}"].cast("float32")
            )
        ties = [f"__tie.{index}" for index in range(len(self.config.tie))]
        columns |= {name: joined[name] for name in ("__order", "__part", *ties, FILE, ROW)}
        table = joined.select(**columns)
        keys = ["user_row", "__order", *ties, "item", FILE, ROW]
        return table.order_by([table[key].asc(nulls_first=True) for key in keys])

    def _write_users(self, users: pa.Table, writer: SequenceWriter) -> None:
        counts = writer.column("n_events")
        columns = {name: writer.column(name) for name in USER_COLUMNS if name not in ("hash", "offset")}
        last = columns.pop("last_time")
        table = users.append_column("offset", pa.array(np.cumsum(counts) - counts))
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values))
        table = table.append_column("last_time", pa.array(last, mask=last == NO_TIME))
        pq.write_table(table, self.folder / "users.parquet")

    def _write_items(
        self, ids: pa.Array, hashes: NDArray[np.int64], side: ItemSide, writer: SequenceWriter
    ) -> None:
        ItemTable(
            ids=ids,
            hash=hashes,
            n_events=writer.n_events,
            n_train_events=writer.n_train_events,
            valid_candidate=writer.valid_seen,
            test_candidate=writer.test_seen,
            category=side.category,
            title=side.title,
            features=side.features,
            embedding=side.embedding,
        ).write(self.folder / "items.parquet")


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole
