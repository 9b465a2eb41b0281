"""The streaming pass over the sorted events: copies, ties, splits, impressions, counts, the final Parquet parts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recgpt.ahead import read_ahead
from recgpt.data.content import ContentDigest
from recgpt.data.events import NO_TIME
from recgpt.data.impressions import ImpressionColumns
from recgpt.data.schema import DataConfig
from recgpt.data.split import UserSplit, event_parts, split_users

EVENTS_PER_PART = 1 << 23
ROW_GROUP = 1 << 19
USER_COLUMNS = (
    "hash",
    "offset",
    "n_events",
    "train_end",
    "valid_history",
    "valid_target",
    "test_history",
    "test_target",
    "last_time",
)


class SequenceWriter:
    """Takes events sorted by (user_row, order, ...) and writes `events/part-*.parquet`.

    Args:
        config: the data section.
        item_hash: int64 [I], by item_row.
        folder: where the parts are written.
        categories: name -> int64 [V], the hashes that the codes of a categorical context column stand for.

    Attributes:
        users: per user and in order of user_row: n_events, the split's positions, last_time (`NO_TIME` = unknown).
        n_events: int64 [I], events per item.
        n_later: int64 [3, I], those of them after the training part, and after what is seen at validation and test.
        n_copies, n_dropped, n_tied, n_targets, n_no_time: counts of events.
        n_backwards: events whose time is smaller than that of the event before them.
        first_time, last_time: the range of the known times, microseconds; None where there are none.
        impressions: makes and counts the impressions; None where the config has none.
        content: digest of the written events.
    """

    def __init__(
        self,
        config: DataConfig,
        item_hash: NDArray[np.int64],
        folder: Path,
        categories: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        n_items = len(item_hash)
        self.categories = {f"c.{name}": pa.array(hashes) for name, hashes in (categories or {}).items()}
        self.config = config
        self.item_hash = item_hash
        self.folder = folder
        self.users: list[dict[str, NDArray[np.int64]]] = []
        self.n_events = np.zeros(n_items, np.int64)
        self.n_later = np.zeros((3, n_items), np.int64)
        self.n_copies = self.n_dropped = self.n_tied = self.n_targets = self.n_no_time = 0
        self.n_backwards = 0
        self.first_time: int | None = None
        self.last_time: int | None = None
        self.rows = 0
        self.impressions = None if config.impressions is None else ImpressionColumns(config)
        self.content = ContentDigest()
        self._parts = 0
        self._rows_in_part = 0
        self._writer: pq.ParquetWriter | None = None

    def write_all(
        self,
        batches: Iterable[pa.RecordBatch],
        told: Callable[[int], None] = lambda rows: None,
        stop: Callable[[], object] | None = None,
    ) -> None:
        """Consume the sorted stream: reading, counting and writing each have a thread.

        Args:
            batches: the stream.
            told: called with the number of rows written so far.
            stop: breaks off the making of a batch, where this ends by an error.
        """
        self.folder.mkdir()
        with closing(read_ahead(self._finished(read_ahead(batches, stop=stop)), stop=stop)) as whole:
            for events in whole:
                self._write(events)
                told(self.rows)
        if self._writer is not None:
            self._writer.close()

    @property
    def n_train_events(self) -> NDArray[np.int64]:
        """Events per item in the training part, int64 [I]."""
        return self.n_events - self.n_later[0]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Items with an event before validation's moment, and before the test's (split by time), bool [2, I]."""
        return self.n_events > self.n_later[1:]

    def _finished(self, batches: Generator[pa.RecordBatch]) -> Iterator[pa.Table]:
        """The stream in tables of whole users, counted and complete; it ends with this generator."""
        with closing(batches):
            yield from self._whole(batches)

    def _whole(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        waiting: list[pa.RecordBatch] = []
        for batch in batches:
            rows = batch["user_row"].to_numpy()
            end = int(np.searchsorted(rows, rows[-1])) if len(rows) else 0
            same = waiting and len(rows) and waiting[-1]["user_row"][-1].as_py() == rows[0]
            if end == 0 and (same or not waiting):
                waiting.append(batch)
                continue
            yield self._take(pa.Table.from_batches([*waiting, batch.slice(0, end)]))
            waiting = [batch.slice(end)]
        if waiting:
            yield self._take(pa.Table.from_batches(waiting))

    def column(self, name: str) -> NDArray[np.int64]:
        """One column of `users` over all users, int64 [U]."""
        return np.concatenate([chunk[name] for chunk in self.users])

    def _take(self, events: pa.Table) -> pa.Table:
        """Count whole users; the table as it is written."""
        if events.num_rows == 0:
            return events
        events = self._complete(events)
        user = events["user_row"].to_numpy()
        self.n_tied += _count_tied(events, user)
        copies = self._copies(events, user)
        self.n_copies += int(copies.sum())
        if self.config.duplicates == "drop" and copies.any():
            self.n_dropped += int(copies.sum())
            events = events.filter(pa.array(~copies))
            user = events["user_row"].to_numpy()
        starts = np.flatnonzero(np.diff(user, prepend=user[0] - 1))
        counts = np.diff(starts, append=len(user))
        time, item = _times(events), events["item_row"].to_numpy()
        target = events["target"].to_numpy()
        part = events["__part"].to_numpy() if "__part" in events.column_names else None
        split = split_users(self.config, starts, counts, target, time, part)
        self._count_users(starts, counts, time, split)
        self._count_items(item, starts, counts, split)
        self.n_targets += int(target.sum())
        if self.impressions is not None:
            order = _as_int64(events["__order"])
            parts = event_parts(self.config, starts, counts, split, part)
            for name, column in self.impressions.of(events, starts, counts, order, time, parts).items():
                events = events.append_column(name, column)
        return events.drop_columns([n for n in events.column_names if n.startswith("__")])

    def _copies(self, events: pa.Table, user: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which events repeat an earlier one, bool [N]."""
        one_clock = self.config.order is None or self.config.time is None
        return (find_neighbours if one_clock and not self.config.tie else find_copies)(events, user)

    def _complete(self, events: pa.Table) -> pa.Table:
        """Add the columns that need not pass through the sort: wide rows, the item hash, the time, the target."""
        row = events["item_row"].to_numpy()
        if self.config.time is None:
            time = pa.nulls(len(row), pa.int64())
        else:
            time = events["__time" if self.config.order is not None else "__order"]
        every = "__target" not in events.column_names
        columns = {
            "user_row": events["user_row"].cast("int64"),
            "item": pa.array(self.item_hash[row]),
            "item_row": events["item_row"].cast("int64"),
            "time": time,
            "target": pa.array(np.ones(len(row), np.bool_)) if every else events["__target"],
        }
        for prefix in ("o.", "c.", "__order", "__tie.", "__part", "__impression"):
            columns |= {n: events[n] for n in events.column_names if n.startswith(prefix)}
        columns |= {name: hashes.take(events[name]) for name, hashes in self.categories.items()}
        return pa.table(columns)

    def _count_users(
        self,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        time: NDArray[np.int64],
        split: UserSplit,
    ) -> None:
        positions = {name: values for name, values in split._asdict().items() if name in USER_COLUMNS}
        last = np.maximum.reduceat(time, starts)
        self.users.append({"n_events": counts, **positions, "last_time": last})
        known = time[time != NO_TIME]
        self.n_no_time += len(time) - len(known)
        back = (time[1:] < time[:-1]) & (time[1:] != NO_TIME)
        back[starts[1:] - 1] = False  # another user's clock
        self.n_backwards += int(back.sum())
        if len(known):
            low, high = int(known.min()), int(known.max())
            self.first_time = low if self.first_time is None else min(low, self.first_time)
            self.last_time = high if self.last_time is None else max(high, self.last_time)

    def _count_items(
        self,
        item: NDArray[np.int64],
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        split: UserSplit,
    ) -> None:
        self.n_events += np.bincount(item, minlength=len(self.n_events))
        for later, end in zip(self.n_later, (split.train_end, split.valid_seen_end, split.test_seen_end), strict=True):
            np.add.at(later, item[_ranges(starts + end, starts + counts)], 1)

    def _write(self, events: pa.Table) -> None:
        if events.num_rows == 0:
            return
        if self._writer is None or self._rows_in_part >= EVENTS_PER_PART:
            if self._writer is not None:
                self._writer.close()
            path = self.folder / f"part-{self._parts:05d}.parquet"
            few_values = [n for n in events.column_names if n.startswith(("o.", "c.", "impression"))]
            self._writer = pq.ParquetWriter(
                path, events.schema, compression="lz4", use_dictionary=["user_row", *few_values]
            )
            self._parts += 1
            self._rows_in_part = 0
        self._writer.write_table(events, row_group_size=ROW_GROUP)
        self.content.update("events", events)
        self._rows_in_part += events.num_rows
        self.rows += events.num_rows


def _ranges(first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of [first, end) of all ranges, one after the other."""
    sizes = np.maximum(end - first, 0)
    return np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)


def _times(events: pa.Table) -> NDArray[np.int64]:
    """int64 [N] microseconds, `NO_TIME` where unknown."""
    return pc.fill_null(events["time"], NO_TIME).to_numpy()


def _count_tied(events: pa.Table, user: NDArray[np.int64]) -> int:
    """Events whose (user, order, tie columns) another event shares; they are neighbours."""
    same = user[1:] == user[:-1]
    for name in events.column_names:
        if name == "__order" or name.startswith("__tie."):
            column = events[name].combine_chunks()
            equal = pc.equal(column[1:], column[:-1])
            both_null = pc.and_(pc.is_null(column[1:]), pc.is_null(column[:-1]))
            same &= pc.fill_null(equal, both_null).to_numpy(zero_copy_only=False)
    return int((np.append(same, False) | np.append(False, same)).sum())


def find_copies(events: pa.Table, user: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which events repeat an earlier one, bool [N].

    A copy has the same user, item and time (the same order, where the time is unknown).
    """
    item = events["item_row"].to_numpy()
    time = _times(events)
    order = _as_int64(events["__order"])
    unknown = time == NO_TIME
    key = np.where(unknown, order, time)
    with np.errstate(over="ignore"):
        mixed = (user * 2_654_435_761 + item) * -7_046_029_254_386_353_131 + key
        mixed = (mixed ^ (mixed >> 29)) * -4_658_895_280_553_007_687 + unknown
    ordered = np.sort(mixed)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    copies = np.zeros(len(user), np.bool_)
    if len(repeated) == 0:
        return copies
    # equal mixes are almost surely copies; the few suspects are compared in full
    place = np.minimum(np.searchsorted(repeated, mixed), len(repeated) - 1)
    suspects = np.flatnonzero(repeated[place] == mixed)
    columns = [column[suspects] for column in (user, item, key, unknown)]
    rank = np.lexsort([suspects, *reversed(columns)])
    equal = np.ones(len(rank) - 1, np.bool_)
    for column in columns:
        equal &= column[rank][1:] == column[rank][:-1]
    copies[suspects[rank[1:][equal]]] = True
    return copies


def find_neighbours(events: pa.Table, user: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`find_copies` where they stand together: the order is the only clock, and nothing but the item breaks ties."""
    copies = np.zeros(len(user), np.bool_)
    if len(user) > 1:
        columns = (user, _as_int64(events["__order"]), events["item_row"].to_numpy())
        copies[1:] = np.logical_and.reduce([column[1:] == column[:-1] for column in columns])
    return copies


def _as_int64(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Sort keys as integers that are equal exactly when the keys are."""
    values = column.to_numpy()
    if values.dtype == np.float64:
        return (values + 0.0).view(np.int64)
    return values.astype(np.int64)
