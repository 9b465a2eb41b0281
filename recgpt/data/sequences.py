"""The streaming pass over the sorted events: copies, ties, splits, impressions, counts, the final Parquet parts."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
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
from recgpt.data.keys import ShortNumbers
from recgpt.data.schema import DataConfig
from recgpt.data.split import UserSplit, event_parts, split_users
from recgpt.files import fsync_path

EVENTS_PER_PART = 1 << 23
ROW_GROUP = 1 << 19
"""Events that are counted and written together, at least."""
_VARIED = ("item_row", "time")
"""Columns that compression makes hardly smaller."""
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
    """Takes events sorted by (user_key, order, ties, place in the files) and writes `events/part-*.parquet`.

    Users are numbered in the order of their keys.

    Events that share their order and ties are written by their item's hash.

    Args:
        config: the data section.
        n_items: I; item_row is in [0, I), ascending by the items' hash.
        folder: where the parts are written.
        categories: name -> int64 [V], the hashes that the codes of a categorical context column stand for.
        order: what the stream's `__order` was shortened by, or None.

    Attributes:
        users: per user and in order of user_row: n_events, the split's positions, last_time (`NO_TIME` = unknown).
        keys: the users' keys in order.
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
        n_items: int,
        folder: Path,
        categories: Mapping[str, NDArray[np.int64]] | None = None,
        order: ShortNumbers | None = None,
    ) -> None:
        self.categories = {f"c.{name}": pa.array(hashes) for name, hashes in (categories or {}).items()}
        self.config, self.order = config, order
        self.folder = folder
        self.users: list[dict[str, NDArray[np.int64]]] = []
        self.keys: list[NDArray[np.integer]] = []
        self.n_events = np.zeros(n_items, np.int64)
        self.n_later = np.zeros((3, n_items), np.int64)
        self.n_copies = self.n_dropped = self.n_tied = self.n_targets = self.n_no_time = 0
        self.n_backwards = 0
        self.first_time: int | None = None
        self.last_time: int | None = None
        self.rows = self.n_users = 0
        self.impressions = None if config.impressions is None else ImpressionColumns(config)
        self.content = ContentDigest()
        self._parts = 0
        self._flushing: list[Future[None]] = []
        self._rows_in_part = 0
        self._writer: pq.ParquetWriter | None = None

    def write_all(
        self,
        batches: Iterable[pa.RecordBatch],
        told: Callable[[int], None] = lambda rows: None,
        stop: Callable[[], object] | None = None,
    ) -> None:
        """Consume the sorted stream: reading, counting, writing and flushing each have a thread.

        Args:
            batches: the stream.
            told: called with the number of rows written so far.
            stop: breaks off the making of a batch, where this ends by an error.
        """
        self.folder.mkdir()
        flusher = ThreadPoolExecutor(1, "flush")
        try:
            with closing(read_ahead(self._finished(read_ahead(batches, stop=stop)), stop=stop)) as whole:
                for events in whole:
                    self._write(events, flusher)
                    told(self.rows)
            self._close(flusher)
            for flushed in self._flushing:
                flushed.result()
        finally:
            flusher.shutdown(cancel_futures=True)

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
        """At least `ROW_GROUP` events each, but for the last: what is counted over all items is so often enough."""
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            if len(batch) == 0:
                continue
            keys = batch["user_key"].to_numpy()
            end = int(np.searchsorted(keys, keys[-1]))  # where the last user begins
            one_user = end == 0 and (not waiting or waiting[-1]["user_key"][-1].as_py() == keys[0])
            if one_user or rows + len(batch) < ROW_GROUP:
                waiting.append(batch)
                rows += len(batch)
                continue
            yield self._take(pa.Table.from_batches([*waiting, batch.slice(0, end)]))
            waiting, rows = [batch.slice(end)], len(batch) - end
        if waiting:
            yield self._take(pa.Table.from_batches(waiting))

    def column(self, name: str) -> NDArray[np.int64]:
        """One column of `users` over all users, int64 [U]."""
        return np.concatenate([chunk[name] for chunk in self.users])

    def _take(self, events: pa.Table) -> pa.Table:
        """Count whole users; the table as it is written."""
        if events.num_rows == 0:
            return events
        events = self._numbered(events.combine_chunks())
        user = events["user_row"].to_numpy()
        tied = repeats_place(events, user)
        self.n_tied += int(_shared(tied).sum())
        events = self._complete(by_item(events, tied))
        copies = self._copies(events, user, tied)
        self.n_copies += int(copies.sum())
        if self.config.duplicates == "drop" and copies.any():
            self.n_dropped += int(copies.sum())
            events = events.filter(pa.array(~copies))
            user = events["user_row"].to_numpy()
        starts = np.flatnonzero(_differs(user))
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

    def _numbered(self, events: pa.Table) -> pa.Table:
        """The events with `user_row` instead of the key, and their order as it was."""
        key = events["user_key"].to_numpy()
        new = _differs(key)
        self.keys.append(key[new])
        row = np.cumsum(new, dtype=np.int32) + np.int32(self.n_users - 1)
        self.n_users = int(row[-1]) + 1
        if self.order is not None:
            events = events.set_column(
                events.column_names.index("__order"), "__order", self.order.back(events["__order"])
            )
        return events.set_column(events.column_names.index("user_key"), "user_row", pa.array(row))

    def _copies(self, events: pa.Table, user: NDArray[np.integer], tied: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which events repeat an earlier one, bool [N]."""
        one_clock = self.config.order is None or self.config.time is None
        if one_clock and not self.config.tie:
            return find_neighbours(events, tied)
        return find_copies(events, user)

    def _complete(self, events: pa.Table) -> pa.Table:
        """Add what need not pass through the sort: time, target, outcomes and categories as they are written."""
        rows = events.num_rows
        if self.config.time is None:
            time = pa.nulls(rows, pa.int64())
        else:
            time = events["__time" if self.config.order is not None else "__order"]
        every = "__target" not in events.column_names
        columns = {
            "user_row": events["user_row"],
            "item_row": events["item_row"],
            "time": time,
            "target": pa.array(np.ones(rows, np.bool_)) if every else events["__target"],
        }
        names = events.column_names
        columns |= {n: events[n].cast("float32") for n in names if n.startswith("o.")}
        for prefix in ("c.", "__order", "__tie.", "__part", "__impression"):
            columns |= {n: events[n] for n in names if n.startswith(prefix)}
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
        known = time != NO_TIME
        n_known = int(np.count_nonzero(known))
        self.n_no_time += len(time) - n_known
        back = (time[1:] < time[:-1]) & known[1:]
        back[starts[1:] - 1] = False  # another user's clock
        self.n_backwards += int(np.count_nonzero(back))
        if n_known:
            low, high = int((time if n_known == len(time) else time[known]).min()), int(time.max())
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

    def _write(self, events: pa.Table, flusher: ThreadPoolExecutor) -> None:
        if events.num_rows == 0:
            return
        if self._writer is None or self._rows_in_part >= EVENTS_PER_PART:
            self._close(flusher)
            names = events.column_names
            self._writer = pq.ParquetWriter(
                self._path(),
                events.schema,
                compression={name: "none" if name in _VARIED else "lz4" for name in names},
                use_dictionary=[name for name in names if name.startswith("c.")] or False,
                write_statistics=False,
            )
            self._rows_in_part = 0
        self._writer.write_table(events, row_group_size=ROW_GROUP)
        self.content.update("events", events)
        self._rows_in_part += events.num_rows
        self.rows += events.num_rows

    def _path(self) -> Path:
        """Of the part that is written."""
        return self.folder / f"part-{self._parts:05d}.parquet"

    def _close(self, flusher: ThreadPoolExecutor) -> None:
        """End a part; it goes to the disk while the next ones are made."""
        if self._writer is not None:
            self._writer.close()
            for flushed in self._flushing:
                if flushed.done():
                    flushed.result()  # a full disk is told here
            self._flushing.append(flusher.submit(fsync_path, self._path()))
            self._parts += 1


def _ranges(first: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of [first, end) of all ranges, one after the other."""
    sizes = np.maximum(end - first, 0)
    return np.arange(sizes.sum()) + np.repeat(first - np.cumsum(sizes) + sizes, sizes)


def _times(events: pa.Table) -> NDArray[np.int64]:
    """int64 [N] microseconds, `NO_TIME` where unknown."""
    return pc.fill_null(events["time"], NO_TIME).to_numpy()


def _differs(values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which of N values are not the one before them, bool [N]; the first is not."""
    new = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new


def repeats_place(events: pa.Table, user: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which events have the user, the order and the tie columns of the one before them, bool [N]."""
    same = user[1:] == user[:-1]
    for name in events.column_names:
        if name == "__order" or name.startswith("__tie."):
            column = events[name].combine_chunks()
            equal = pc.equal(column[1:], column[:-1])
            both_null = pc.and_(pc.is_null(column[1:]), pc.is_null(column[:-1]))
            same &= pc.fill_null(equal, both_null).to_numpy(zero_copy_only=False)
    return np.append(False, same)


def _shared(tied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which events share their place with a neighbour, bool [N], from `repeats_place`."""
    return tied | np.append(tied[1:], False)


def by_item(events: pa.Table, tied: NDArray[np.bool_]) -> pa.Table:
    """The events with those that share their place ordered by their item_row (its hash's); equal ones stay as they are.

    Args:
        events: sorted but for that.
        tied: bool [N] of `repeats_place`.
    """
    shared = _shared(tied)
    places = np.flatnonzero(shared)
    run = np.cumsum(~tied[places])
    moved = places[np.lexsort((events["item_row"].to_numpy()[places], run))]
    if np.array_equal(moved, places):
        return events
    mask, rows = pa.array(shared), pa.array(moved)
    own = [
        name for name in events.column_names if name not in ("user_row", "__order") and not name.startswith("__tie.")
    ]
    for name in own:
        column = events[name].combine_chunks()
        replaced = pc.replace_with_mask(column, mask, column.take(rows))
        events = events.set_column(events.column_names.index(name), name, replaced)
    return events


def find_copies(events: pa.Table, user: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which events repeat an earlier one, bool [N].

    A copy has the same user, item and time (the same order, where the time is unknown).
    """
    item = events["item_row"].to_numpy()
    time = _times(events)
    order = _as_int64(events["__order"])
    unknown = time == NO_TIME
    key = np.where(unknown, order, time)
    with np.errstate(over="ignore"):
        mixed = (user.astype(np.int64) * 2_654_435_761 + item) * -7_046_029_254_386_353_131 + key
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


def find_neighbours(events: pa.Table, tied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """`find_copies` where they stand together: the order is the only clock, and nothing but the item breaks ties.

    Args:
        events: sorted.
        tied: bool [N] of `repeats_place`.
    """
    item = events["item_row"].to_numpy()
    return tied & np.append(False, item[1:] == item[:-1])


def _as_int64(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Sort keys as integers that are equal exactly when the keys are."""
    values = column.to_numpy()
    if values.dtype == np.float64:
        return (values + 0.0).view(np.int64)
    return values.astype(np.int64, copy=False)
