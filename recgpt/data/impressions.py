"""Impressions: which events they are, of which part, and how much of the user's past each may read.

An impression reads the user's events at positions [0, h): no event that happened with it or after it, as far as the
log can tell. h is the length of the longest prefix of events with a smaller order key and, where both times are known,
a strictly smaller time. Order alone would not do: real logs hold exact copies of rows, and a copy shows an impression
its own outcomes.

All functions work on whole users laid end to end: U users with N events in all, `starts` [U] ascending, `counts` [U].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recgpt.data.events import NO_TIME
from recgpt.data.schema import DataConfig
from recgpt.data.split import OUTSIDE, TRAIN, Parts


@dataclass(frozen=True)
class Impressions:
    """N impressions in the order of the events.

    Attributes:
        place: int64 [N], global positions of the events that they are.
        part: int8 [N], 0 training, 1 validation, 2 test.
        online: int64 [N], the user's events that an impression may read: its first ones, as many as this.
        frozen: int64 [N], the same where a user's state stays as it was when the part began.
    """

    place: NDArray[np.int64]
    part: NDArray[np.int8]
    online: NDArray[np.int64]
    frozen: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.place)


def online_lengths(
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    order: NDArray[np.int64],
    time: NDArray[np.int64],
    places: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Lengths of the histories of events, int64 [M].

    An unknown time tells nothing, on either side. A clock that runs backwards shortens histories: whatever comes after
    an event with a later or equal time is left out too, so that a history stays a prefix.

    Args:
        starts: int64 [U], where each user's events start.
        counts: int64 [U], how many there are.
        order: int64 [N], equal where the order keys are; events are sorted by them.
        time: int64 [N] microseconds, `NO_TIME` = unknown.
        places: int64 [M], ascending indices of the events.
    """
    if len(places) == 0:
        return np.zeros(0, np.int64)
    run = np.append(True, order[1:] != order[:-1])
    run[starts] = True
    tied = np.maximum.accumulate(np.where(run, np.arange(len(order)), 0))[places]
    stop = np.where(time[places] == NO_TIME, tied, np.minimum(tied, first_reached(starts, counts, time)[places]))
    return stop - np.repeat(starts, counts)[places]


def first_reached(starts: NDArray[np.int64], counts: NDArray[np.int64], time: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each event the first of its user's events with a known time at or after its own, as an index, int64 [N].

    For an event of unknown time it is some event of its user.
    """
    known = time != NO_TIME
    if not known.any():
        return np.arange(len(time))
    value = np.where(known, time - (int(time[known].min()) - 1), 0)
    width = int(value.max()) + 1
    # The running maximum of the times reaches a time where it first stands. Each user's times are lifted above those of
    # the users before, as many users at a time as int64 has room for.
    room = np.iinfo(np.int64).max // width
    key = value + np.repeat(np.arange(len(counts)) % room, counts) * width
    edges = [*starts[::room].tolist(), len(time)]
    found = [
        low + np.searchsorted(np.maximum.accumulate(key[low:high]), key[low:high])
        for low, high in zip(edges[:-1], edges[1:], strict=True)
    ]
    return np.concatenate(found)


class ImpressionColumns:
    """Makes the columns of the impressions, whole users at a time, and counts them.

    Args:
        config: the data section.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.n_cut = 0
        self._parts = np.zeros(4, np.int64)  # from OUTSIDE on
        self._known = dict.fromkeys(config.outcomes, 0)
        self._sum = dict.fromkeys(config.outcomes, 0.0)

    def of(
        self,
        events: pa.Table,
        starts: NDArray[np.int64],
        counts: NDArray[np.int64],
        order: NDArray[np.int64],
        time: NDArray[np.int64],
        parts: Parts,
    ) -> dict[str, pa.Array]:
        """The columns of N events: `impression` (the part, -1 = none), `online` and `frozen` (0 where it is none).

        Args:
            events: has the outcomes as `o.NAME`, and `__impression` where a condition says which events are shown.
            starts: int64 [U], where each user's events start.
            counts: int64 [U], how many there are.
            order: int64 [N], equal where the order keys are.
            time: int64 [N] microseconds, `NO_TIME` = unknown.
            parts: of the N events.
        """
        shown = np.ones(len(time), np.bool_)
        if "__impression" in events.column_names:
            shown = events["__impression"].to_numpy()
        part = np.where(shown, parts.part, np.int8(OUTSIDE))
        places = np.flatnonzero(part != OUTSIDE)
        online, frozen = np.zeros((2, len(time)), np.int32)
        length = online_lengths(starts, counts, order, time, places)
        user = np.searchsorted(starts, places, side="right") - 1
        begin = parts.begin[part[places], user]
        online[places] = length
        frozen[places] = np.where(part[places] == TRAIN, length, np.minimum(length, begin))
        self.n_cut += int((length < places - starts[user]).sum())
        self._parts += np.bincount(parts.part[shown] - OUTSIDE, minlength=4)
        trained = pa.array(part == TRAIN)
        for name in self.config.outcomes:
            values = events[f"o.{name}"].filter(trained).drop_null()
            self._known[name] += len(values)
            self._sum[name] += pc.sum(values.cast("float64")).as_py() or 0.0
        return {"impression": pa.array(part), "online": pa.array(online), "frozen": pa.array(frozen)}

    def summary(self) -> dict[str, Any]:
        """What `summary.json` tells: counts by part and the mean of each outcome where training knows it."""
        outside, train, valid, test = self._parts.tolist()
        return {
            "rows": train + valid + test,
            "train": train,
            "valid": valid,
            "test": test,
            "outside": outside,
            "history_cut": self.n_cut,
            "rates": {
                name: float(f"{self._sum[name] / known:.6g}") if known else None for name, known in self._known.items()
            },
        }
