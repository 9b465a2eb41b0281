"""Where each user's history ends and which event is the target: leave-one-out, by time, by column or conditions.

All functions work on whole users laid end to end: U users with N events in all, `starts` [U]
    ascending, `counts` [U].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recgpt.data.schema import DataConfig, LeaveOneOutSplit, TimeSplit, time_point

OUTSIDE, TRAIN, VALID, TEST = -1, 0, 1, 2


class UserSplit(NamedTuple):
    """Positions within each user's events, int64 [U]; -1 = none.

    Training events are [0, train_end). The history of a part is [0, history) and its target the
    event at `target`.
    """

    train_end: NDArray[np.int64]
    valid_history: NDArray[np.int64]
    valid_target: NDArray[np.int64]
    test_history: NDArray[np.int64]
    test_target: NDArray[np.int64]
    valid_seen_end: NDArray[np.int64]
    """Items of events before this position are candidates at validation (split by time; else all
    items are)."""
    test_seen_end: NDArray[np.int64]
    """The same for the test part."""


class Parts(NamedTuple):
    """Which part every event belongs to, and where a user's parts begin.

    Attributes:
        part: int8 [N], `TRAIN`, `VALID`, `TEST`; `OUTSIDE` where training has ended already.
        begin: int64 [3, U], position of a user's first event of each part, `n_events` where there is none.
    """

    part: NDArray[np.int8]
    begin: NDArray[np.int64]


def split_users(
    config: DataConfig,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    target: NDArray[np.bool_],
    time: NDArray[np.int64],
    part: NDArray[np.int64] | None,
) -> UserSplit:
    """Split whole users.

    Args:
        config: says how.
        starts: int64 [U], where each user's events start.
        counts: int64 [U], how many there are.
        target: bool [N], whether an event may be a target.
        time: int64 [N], microseconds, `NO_TIME` = unknown; read by the time split.
        part: int64 [N], 0 training, 1 validation, 2 test; needed by the splits by column and by conditions.
    """
    split = config.split
    if isinstance(split, LeaveOneOutSplit):
        return leave_one_out(starts, counts, target)
    if isinstance(split, TimeSplit):
        valid = time_point(split.valid, config.time_unit)
        test = time_point(split.test, config.time_unit)
        return by_time(starts, counts, target, time, valid, test)
    if part is None:
        raise ValueError("part: a split by rows needs the part of every event")
    return by_column(starts, counts, target, part)


def leave_one_out(starts: NDArray[np.int64], counts: NDArray[np.int64], target: NDArray[np.bool_]) -> UserSplit:
    """The last target is the test event and the one before it the validation event.

    Users with fewer than three targets are left to training.
    """
    places = np.flatnonzero(target)
    low, high = np.searchsorted(places, starts), np.searchsorted(places, starts + counts)
    split = high - low >= 3
    padded = np.append(places, 0)
    test = np.where(split, padded[np.maximum(high - 1, 0)] - starts, -1)
    valid = np.where(split, padded[np.maximum(high - 2, 0)] - starts, -1)
    train_end = np.where(split, valid, counts)
    return UserSplit(train_end, valid, valid, test, test, counts, counts)


def by_time(
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    target: NDArray[np.bool_],
    time: NDArray[np.int64],
    valid: int,
    test: int,
) -> UserSplit:
    """One target a user and part: the first at or after the cut; the history is all before the cut.

    The cut of a moment is the first event whose effective time (the running maximum of the known
    times) has reached it,
    which is the first event whose own time has. Unknown times before it count as earlier, after it
    as later.
    """
    valid_cut, test_cut = (first(time >= moment, starts, counts) for moment in (valid, test))
    valid_cut = np.where(valid_cut < 0, counts, valid_cut)
    test_cut = np.where(test_cut < 0, counts, test_cut)
    valid_target = first(target, starts, counts, valid_cut)
    valid_target = np.where(valid_target < test_cut, valid_target, -1)
    test_target = first(target, starts, counts, test_cut)
    return UserSplit(
        valid_cut,
        np.where(valid_target < 0, -1, valid_cut),
        valid_target,
        np.where(test_target < 0, -1, test_cut),
        test_target,
        valid_cut,
        test_cut,
    )


def by_column(
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    target: NDArray[np.bool_],
    part: NDArray[np.int64],
) -> UserSplit:
    """The first target of each part; training ends at the first event of another part."""
    train_end = first(part != 0, starts, counts)
    train_end = np.where(train_end < 0, counts, train_end)
    valid = first(target & (part == VALID), starts, counts)
    test = first(target & (part == TEST), starts, counts)
    return UserSplit(train_end, valid, valid, test, test, counts, counts)


def event_parts(
    config: DataConfig,
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    split: UserSplit,
    part: NDArray[np.int64] | None,
) -> Parts:
    """The part of every event, by what `split_users` found.

    Leave-one-out and the split by time cut a user's events into three runs. Where the rows name their own part, a
    training row after a row of another part is outside: it is neither trained on nor measured.
    """
    zero = np.zeros(len(counts), np.int64)
    position = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    if part is not None:
        found = [first(part == value, starts, counts) for value in (VALID, TEST)]
        begin = np.stack([zero, *(np.where(place < 0, counts, place) for place in found)])
        after = (part == TRAIN) & (position >= np.repeat(split.train_end, counts))
        return Parts(np.where(after, OUTSIDE, part).astype(np.int8), begin)
    if isinstance(config.split, LeaveOneOutSplit):
        test = np.where(split.test_target < 0, counts, split.test_target)
    else:
        test = split.test_seen_end
    later = (position >= np.repeat(split.train_end, counts)).astype(np.int8)
    return Parts(later + (position >= np.repeat(test, counts)), np.stack([zero, split.train_end, test]))


def first(
    mask: NDArray[np.bool_],
    starts: NDArray[np.int64],
    counts: NDArray[np.int64],
    at_least: NDArray[np.int64] | int = 0,
) -> NDArray[np.int64]:
    """Each user's first position >= `at_least` where the mask holds, int64 [U]; -1 = none."""
    places = np.append(np.flatnonzero(mask), np.iinfo(np.int64).max)
    found = places[np.searchsorted(places, starts + at_least)]
    return np.where(found < starts + counts, found - starts, -1)
