"""Splits against a plain loop over each user's events."""

import numpy as np
import pytest

from recgpt.data.events import NO_TIME
from recgpt.data.schema import DataConfig
from recgpt.data.split import by_column, by_time, event_parts, first, leave_one_out


def lay(users):
    counts = np.array([len(user) for user in users])
    return np.cumsum(counts) - counts, counts, np.array([x for user in users for x in user])


def test_first_by_hand():
    starts, counts, mask = lay([[0, 1, 1], [0], [1, 0]])
    assert first(mask == 1, starts, counts).tolist() == [1, -1, 0]
    assert first(mask == 1, starts, counts, np.array([2, 0, 1])).tolist() == [2, -1, -1]


def test_leave_one_out_by_hand():
    # positions of targets: [0, 2, 3] -> test 3, valid 2; two targets only -> all training
    starts, counts, target = lay([[1, 0, 1, 1, 0], [1, 1], [1, 1, 1]])
    split = leave_one_out(starts, counts, target == 1)
    assert split.test_target.tolist() == [3, -1, 2]
    assert split.valid_target.tolist() == [2, -1, 1]
    assert split.valid_history.tolist() == [2, -1, 1]
    assert split.test_history.tolist() == [3, -1, 2]
    assert split.train_end.tolist() == [2, 2, 1]


def test_column_by_hand():
    starts, counts, part = lay([[0, 0, 1, 0, 2, 2], [0, 0], [2]])
    target = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1], bool)
    split = by_column(starts, counts, target, part)
    assert split.train_end.tolist() == [2, 2, 0]
    assert split.valid_target.tolist() == [2, -1, -1]
    assert split.test_target.tolist() == [5, -1, 0]
    assert split.test_history.tolist() == [5, -1, 0]


def parts_of(split, starts, counts, found, part=None):
    config = DataConfig(events="log.csv", user="u", item="i", time="t", split=split)
    parts = event_parts(config, starts, counts, found, part)
    assert parts.part.dtype == np.int8
    return parts.part.tolist(), parts.begin.tolist()


def test_parts_of_leave_one_out_by_hand():
    # targets at 0, 2, 3: validation from 2, test from 3 on; the second user is not split
    starts, counts, target = lay([[1, 0, 1, 1, 0], [1, 1]])
    found = leave_one_out(starts, counts, target == 1)
    part, begin = parts_of({"kind": "leave_one_out"}, starts, counts, found)
    assert part == [0, 0, 1, 2, 2, 0, 0]
    assert begin == [[0, 0], [2, 2], [3, 2]]


def test_parts_of_a_time_split_by_hand():
    # parts are cut by the clock, with or without a target in them
    starts, counts, time = lay([[5, 12, 11, NO_TIME, 25], [30], [1]])
    target = np.array([1, 0, 0, 0, 1, 0, 1], bool)
    found = by_time(starts, counts, target, time, 12, 20)
    split = {"kind": "time", "valid": "1970-01-02", "test": "1970-01-03"}
    part, begin = parts_of(split, starts, counts, found)
    assert part == [0, 1, 1, 1, 2, 2, 0]
    assert begin == [[0, 0, 0], [1, 0, 1], [4, 0, 1]]


def test_parts_that_rows_name_by_hand():
    starts, counts, part = lay([[0, 0, 1, 0, 2, 1], [0, 0], [2, 0]])
    found = by_column(starts, counts, np.ones(10, bool), part)
    split = {"kind": "where", "valid": "a", "test": "b"}
    named, begin = parts_of(split, starts, counts, found, part)
    assert named == [0, 0, 1, -1, 2, 1, 0, 0, 2, -1]
    assert begin == [[0, 0, 0], [2, 2, 2], [4, 2, 0]]


def slow_time_split(times, targets, valid, test):
    """One user, event by event, by the definition.

    Effective time = running maximum of the known times.
    """
    effective, highest = [], -np.inf
    for time in times:
        highest = max(highest, -np.inf if time == NO_TIME else time)
        effective.append(highest)

    def cut(moment):
        return next((k for k, time in enumerate(effective) if time >= moment), len(times))

    def target(low, high):
        return next((k for k in range(len(times)) if targets[k] and low <= effective[k] < high), -1)

    valid_target, test_target = target(valid, test), target(test, np.inf)
    return (
        cut(valid),
        -1 if valid_target < 0 else cut(valid),
        valid_target,
        -1 if test_target < 0 else cut(test),
        test_target,
        cut(valid),
        cut(test),
    )


@pytest.mark.parametrize("seed", range(20))
def test_time_split_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    times = [
        np.where(rng.random(n) < 0.3, NO_TIME, np.sort(rng.integers(0, 30, n)) + rng.integers(-2, 3, n))
        for n in rng.integers(1, 12, 30)
    ]
    targets = [rng.random(len(user)) < 0.6 for user in times]
    starts, counts, time = lay(times)
    split = by_time(starts, counts, np.concatenate(targets), time, 12, 20)
    expected = [slow_time_split(t, w, 12, 20) for t, w in zip(times, targets, strict=True)]
    assert np.array_equal(np.stack(split, 1), expected)
