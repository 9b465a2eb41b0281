"""Batches of impressions: each once, read from exactly its own history; the order as a pure function."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from recgpt.data.batch import gap_between, gap_buckets, hours
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_id
from recgpt.data.impression_batches import MOST_IN_GROUP, PARTS, ImpressionBatch, ImpressionBatches, read_impressions
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import padded_widths
from recgpt.data.window import WindowConfig
from tests.finetune.logs import Columns, prepared_log, random_log

WINDOW = WindowConfig(length=16, stride=8, chunk=4)
TRACKS = ("online", "frozen")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared_log(tmp_path_factory.mktemp("log"), random_log())


class Row(NamedTuple):
    """One impression as it stands in a batch."""

    row: int
    item: int
    history: tuple[int, ...]
    batch: ImpressionBatch
    sequence: int
    at: int


def rows_of(batches: Iterator[list[ImpressionBatch]]) -> Iterator[Row]:
    for batch in itertools.chain.from_iterable(batches):
        events = batch.events
        positions = events.item.shape[1] + 1
        assert len(batch.row) == len(events.position) == len(events.target) == len(batch.hour) == len(batch.gap)
        for at, (position, target) in enumerate(zip(events.position.tolist(), events.target.tolist(), strict=True)):
            sequence, seen = divmod(position, positions)
            assert seen <= int(events.length[sequence])
            history = tuple(events.items[events.item[sequence, :seen]].tolist())
            yield Row(int(batch.row[at]), int(events.items[target]), history, batch, sequence, at)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("parts", [("train",), ("valid",), ("test",), ("train", "valid")])
def test_every_impression_once_from_what_its_state_reads(
    prepared: Prepared, parts: tuple[str, ...], track: Any
) -> None:
    """Against a loop over the users' impressions and their events."""
    data = ImpressionBatches(prepared, WINDOW, 100, parts, track, seed=4)
    users, found = prepared.users, {row.row: row for row in rows_of(data.epoch(3))}
    number = 0
    for user, (offset, count) in enumerate(zip(users.offset.tolist(), users.n_events.tolist(), strict=True)):
        log = prepared.events(offset, offset + count)
        known = prepared.profile([user])
        shown = prepared.impressions(offset, offset + count)
        for place, part, h in zip(shown.place, shown.part, getattr(shown, track), strict=True):
            if part not in [PARTS[name] for name in parts]:
                continue
            t, start = int(place) - offset, WINDOW.start(int(h))
            row = found.pop(number)
            read, batch, at, length = log[start : int(h)], row.batch, row.at, int(h) - start
            assert (data.user[number], data.history[number]) == (user, h)
            assert (row.item, row.history) == (int(log.item[t]), tuple(read.item.tolist()))
            inputs = batch.events
            same(inputs.gap[row.sequence, :length], gap_buckets(read.time))
            for columns, expected in ((inputs.outcomes, read.outcomes), (inputs.context, read.context)):
                assert columns.keys() == expected.keys()
                for name, column in expected.items():
                    same(columns[name][row.sequence, :length], column)
            for name, values in known.items():
                same(inputs.profile[name][row.sequence], values[0])
            for columns, expected in ((batch.labels, log.outcomes), (batch.context, log.context)):
                assert columns.keys() == expected.keys()
                for name, column in expected.items():
                    same(columns[name][at], column[t])
            same(batch.hour[at], hours(log.time[t : t + 1])[0])
            before = log.time[h - 1 : h] if h else np.array([NO_TIME])
            same(batch.gap[at], gap_between(before, log.time[t : t + 1])[0])
            number += 1
    assert number == len(data) > 20
    assert found == {}


def test_the_random_log_has_what_the_tests_are_about(prepared: Prepared) -> None:
    online = ImpressionBatches(prepared, WINDOW, 100, ("train", "valid", "test"), "online")
    frozen = ImpressionBatches(prepared, WINDOW, 100, ("train", "valid", "test"), "frozen")
    assert (online.history == 0).any()
    assert (online.start > 0).any()
    assert (online.history > frozen.history).sum() > 20
    assert not (online.history < frozen.history).any()
    assert len(np.unique(online.user)) < len(prepared.users)  # users without an impression
    assert len(online._begin) < len(online) / 3  # one pass serves many


# -- by hand -----------------------------------------------------------------------------------------------------------


def by_hand(folder: Path, **changes: Any) -> Prepared:
    """One user. Positions 2 and 3 are copies; the clock of position 5 is unknown; 6 to 9 are the test part."""
    log: Columns = {
        "user": ["a"] * 10,
        "item": [1, 2, 3, 3, 4, 5, 6, 7, 8, 9],
        "order": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "time": [0, 60, 120, 120, 7_200, None, 7_300, 7_300, 86_400, 90_000],
        "click": [0, 1, 1, 1, None, 0, 1, 0, 1, 0],
        "like": [None, 0, 1, 1, 0, 0, 0, 1, 0, None],
        "device": ["phone", None] * 5,
        "volume": [0.5] * 10,
        "shown": [True] * 10,
        "part": [0, 0, 0, 0, 0, 0, 2, 2, 2, 2],
    }
    return prepared_log(folder, log, profiles=False, **changes)


def positions(data: ImpressionBatches) -> dict[int, tuple[int, int]]:
    """Item -> start of its window and position in it."""
    ids = {hash_id(item): item for item in range(10)}
    read = {row.row: len(row.history) for row in rows_of(data.epoch(None))}
    items = {row.row: ids[row.item] for row in rows_of(data.epoch(None))}
    return {items[n]: (int(data.start[n]), read[n]) for n in range(len(data))}


def test_windows_and_positions_by_hand(tmp_path: Path) -> None:
    prepared = by_hand(tmp_path)
    window = WindowConfig(length=4, stride=2, chunk=2)  # starts: n <= 4: 0; 5, 6: 2; 7, 8: 4; 9: 6
    train = ImpressionBatches(prepared, window, 100, ("train",), "online")
    # both copies of item 3 read two events; the unknown clock (item 5) reads all five before it
    same(train.history, [0, 1, 2, 2, 4, 5])
    assert positions(train) == {1: (0, 0), 2: (0, 1), 3: (0, 2), 4: (0, 4), 5: (2, 3)}
    online = ImpressionBatches(prepared, window, 100, ("test",), "online")
    same(online.history, [6, 6, 8, 9])  # item 7 came with item 6
    assert positions(online) == {6: (2, 4), 7: (2, 4), 8: (4, 4), 9: (6, 3)}
    frozen = ImpressionBatches(prepared, window, 100, ("test",), "frozen")
    same(frozen.history, [6, 6, 6, 6])
    assert positions(frozen) == {6: (2, 4), 7: (2, 4), 8: (2, 4), 9: (2, 4)}


def test_labels_hours_and_gaps_by_hand(tmp_path: Path) -> None:
    prepared = by_hand(tmp_path)
    data = ImpressionBatches(prepared, WINDOW, 100, ("train",), "online")
    [[batch]] = data.epoch(None)
    assert batch.row.tolist() == [0, 1, 2, 3, 4, 5]
    same(batch.labels["click"], np.array([0, 1, 1, 1, np.nan, 0], np.float32))
    same(batch.labels["like"], np.array([np.nan, 0, 1, 1, 0, 0], np.float32))
    phone = hash_id("phone")
    assert batch.context["device"].tolist() == [phone, 0, phone, 0, phone, 0]
    assert batch.hour.tolist() == [1, 1, 1, 1, 3, 0]  # two hours = the third of the day; unknown = 0
    # 1 + floor(log2(1 + seconds)): 60 -> 6, 60 -> 6 (both copies look back to position 1), 7,080 -> 13
    assert batch.gap.tolist() == [0, 6, 6, 6, 13, 0]


# -- groups and order --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A user with 150 test impressions (one frozen state) and one with 3, both without other events' parts."""
    log = random_log([4, 160, 3])
    log["shown"] = [True] * len(log["user"])
    many = log["user"].index("user 1")
    log["part"] = [0 if row < many + 10 else 2 for row in range(len(log["user"]))]
    return prepared_log(tmp_path_factory.mktemp("log"), log)


@pytest.mark.parametrize(("changes", "most"), [({}, MOST_IN_GROUP), ({"group": 40}, 40), ({"group": 1}, 1)])
def test_groups_hold_at_most_so_many(crowded: Prepared, changes: dict[str, int], most: int) -> None:
    data = ImpressionBatches(crowded, WINDOW, 10**6, ("test",), "frozen", **changes)
    groups = [data.batch(np.array([group])) for group in range(len(data._begin))]
    sizes: dict[int, list[int]] = {}
    for batch in groups:
        [user] = set(data.user[batch.row.numpy()].tolist())
        sizes.setdefault(user, []).append(len(batch.row))
    # 160 - 10 read one state, and three another; by default 150 = 64 + 64 + 22
    expected = [[most] * (n // most) + [n % most] * (n % most > 0) for n in (3, 150)]
    assert sorted(sizes.values(), key=sum) == expected
    assert sorted(torch.cat([batch.row for batch in groups]).tolist()) == list(range(153))


def test_batches_are_cut_where_their_tokens_are_full(prepared: Prepared) -> None:
    """The epoch's groups end to end, cut at every 48th token: a group belongs to the batch where it ends."""
    data = ImpressionBatches(prepared, WINDOW, 48, ("train", "valid", "test"))
    before, last, mixed = 0, -1, 0
    for groups, parts in zip(data.order(0), data.epoch(0), strict=True):
        found = {int(part.row[0]): part.events.length for part in parts}
        assert len(found) == len(parts)
        rows = [data._sorted[data._begin[group] : data._end[group]] for group in groups]
        lengths = np.array([int((data.history[own] - data.start[own]).max()) for own in rows])
        assert sorted(torch.cat(list(found.values())).tolist()) == sorted(lengths.tolist())
        ends = before + np.cumsum(np.maximum(padded_widths(lengths, WINDOW.length), [len(own) for own in rows]))
        [bucket] = set(((ends - 1) // 48).tolist())
        assert bucket == last + 1
        before, last, mixed = int(ends[-1]), bucket, mixed + (len(set(lengths.tolist())) > 2)
    assert last > 5
    assert mixed > 3  # groups of any length meet
    # A group may be larger than a batch.
    assert all(len(groups) == 1 for groups in ImpressionBatches(prepared, WINDOW, 1, ("train",)).order(0))


def test_a_batch_comes_in_parts_of_like_width(prepared: Prepared) -> None:
    data, n_parts = ImpressionBatches(prepared, WINDOW, 200, ("train", "valid", "test")), 0
    for groups, parts in zip(data.order(1), data.epoch(1), strict=True):
        assert sum(len(part.events.length) for part in parts) == len(groups)
        n_parts = max(n_parts, len(parts))
        ranges = []
        for part in parts:
            own = padded_widths(part.events.length.numpy(), WINDOW.length)
            assert part.events.item.shape[1] == own.max() < 2 * own.min()  # less than half is padding
            ranges.append((own.min(), own.max()))
        assert all(high < low for (_, high), (low, _) in itertools.pairwise(ranges))
    assert n_parts > 1


def order(prepared: Prepared, seed: int, epoch: int | None) -> list[list[int]]:
    return [groups.tolist() for groups in ImpressionBatches(prepared, WINDOW, 48, ("train",), seed=seed).order(epoch)]


def test_order_is_a_function_of_seed_and_epoch(prepared: Prepared) -> None:
    assert order(prepared, 0, 1) == order(prepared, 0, 1)
    assert order(prepared, 0, 1) != order(prepared, 0, 2)
    assert order(prepared, 0, 1) != order(prepared, 1, 1)
    assert sorted(sum(order(prepared, 0, 1), [])) == sorted(sum(order(prepared, 5, 2), []))
    assert len(order(prepared, 0, 1)) == len(order(prepared, 5, 2))
    assert order(prepared, 0, None) == order(prepared, 1, None)
    assert sorted(sum(order(prepared, 0, None), [])) == sorted(sum(order(prepared, 0, 1), []))
    # Asked in any order, and whatever was drawn elsewhere.
    data = ImpressionBatches(prepared, WINDOW, 48, ("train",))
    np.random.seed(7)  # noqa: NPY002 (the global state must not matter)
    asked = [[groups.tolist() for groups in data.order(epoch)] for epoch in (2, None, 1, None, 2)]
    assert asked == [order(prepared, 0, epoch) for epoch in (2, None, 1, None, 2)]


def test_skipping_continues_the_epoch(prepared: Prepared) -> None:
    data = ImpressionBatches(prepared, WINDOW, 48, ("train",), seed=2)
    whole, rest = list(data.epoch(2)), list(data.epoch(2, skip=3))
    assert len(rest) == len(whole) - 3 > 2
    for a, b in zip(itertools.chain(*whole[3:]), itertools.chain(*rest), strict=True):
        assert a.row.equal(b.row)
        assert a.events.item.equal(b.events.item)
        assert a.events.position.equal(b.events.position)
    assert list(data.epoch(2, skip=len(whole))) == []


def test_blocks_of_the_log_do_not_matter(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_impressions(prepared, [0, 2])
    monkeypatch.setattr("recgpt.data.impression_batches.BLOCK", 7)
    parts = read_impressions(prepared, [0, 2])
    for name in ("place", "part", "online", "frozen"):
        same(getattr(parts, name), getattr(whole, name))
    assert set(parts.part.tolist()) == {0, 2}


def test_without_impressions_there_is_no_batch(prepared: Prepared, tmp_path: Path) -> None:
    none = ImpressionBatches(prepared, WINDOW, 48, ())
    assert (len(none), none.order(0), list(none.epoch(None))) == (0, [], [])
    log = prepared_log(tmp_path, random_log([3, 4]), impressions=None)
    assert len(ImpressionBatches(log, WINDOW, 48, ("train",))) == 0


def lengths(data: ImpressionBatches, epoch: int | None) -> np.ndarray:
    """Events that each impression reads in an epoch, by row."""
    read = {row.row: len(row.history) for row in rows_of(data.epoch(epoch))}
    return np.array([read[row] for row in range(len(data))]) + data.start


def test_a_stale_impression_reads_an_older_state_of_the_same_window(prepared: Prepared) -> None:
    data = ImpressionBatches(prepared, WINDOW, 64, ("train",), seed=3, stale=0.5)
    dropped = np.stack([data.history - lengths(data, epoch) for epoch in range(8)])
    assert dropped.min() == 0
    for row in dropped:
        # An older state, which serving would build from the same first event.
        same(WINDOW.start(data.history - row), data.start)
    can = np.where(data.start > 0, data.history - data.start - 8 - 1, data.history) > 0  # W - S = 8
    assert dropped[:, ~can].max(initial=0) == 0
    assert abs((dropped[:, can] > 0).mean() - 0.5) < 0.05
    assert len({tuple(row) for row in dropped}) == 8
    deep = dropped[:, data.history == 12]
    # Log-uniform over 1 .. 12: P(1) = log 2 / log 13.
    assert abs((deep == 1).sum() / (deep > 0).sum() - np.log(2) / np.log(13)) < 0.12


def test_only_an_epoch_of_training_is_stale(prepared: Prepared) -> None:
    stale = ImpressionBatches(prepared, WINDOW, 64, ("train",), seed=3, stale=1.0)
    same(lengths(stale, None), stale.history)
    same(lengths(stale, 2), lengths(stale, 2))
    fresh = ImpressionBatches(prepared, WINDOW, 64, ("train",), seed=3)
    same(lengths(fresh, 2), fresh.history)
    for old, new in zip(stale.epoch(2), fresh.epoch(2), strict=True):
        for a, b in zip(old, new, strict=True):  # the windows and the candidates stay
            assert torch.equal(a.events.item, b.events.item)
            assert torch.equal(a.events.items[a.events.target], b.events.items[b.events.target])
