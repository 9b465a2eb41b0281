"""Impressions and their histories: by hand, and against a plain loop over each user's events."""

import numpy as np
import pyarrow as pa
import pytest

from recgpt.data import sequences
from recgpt.data.check import check, print_check
from recgpt.data.events import NO_TIME
from recgpt.data.impressions import online_lengths
from recgpt.data.prepare import prepare
from tests.recgpt.data.logfiles import config, refused, run, write_parquet, write_text

OUTCOME = {"y": {"kind": "binary"}}


def found(prepared, user):
    """(part, online, frozen) of each event of a user, None where it is no impression."""
    row = prepared.find_user(user)
    start, n = int(prepared.users.offset[row]), int(prepared.users.n_events[row])
    impressions = prepared.impressions(start, start + n)
    rows = zip(impressions.place - start, impressions.part, impressions.online, impressions.frozen, strict=True)
    told = {int(place): (int(part), int(online), int(frozen)) for place, part, online, frozen in rows}
    return [told.get(place) for place in range(n)]


def lengths(order, time):
    """Online lengths of one user's events."""
    time = np.array([NO_TIME if t is None else t for t in time], np.int64)
    n = len(time)
    return online_lengths(np.array([0]), np.array([n]), np.array(order), time, np.arange(n)).tolist()


@pytest.mark.parametrize(
    ("order", "time", "expected"),
    [
        ([0, 1, 2, 3], [10, 20, 30, 40], [0, 1, 2, 3]),
        ([0, 1, 2, 3], [10, 20, 20, 40], [0, 1, 1, 3]),  # a copy, by its time
        ([0, 1, 1, 3], [10, 20, 30, 40], [0, 1, 1, 3]),  # an equal order key is not smaller
        ([0, 1, 1, 3], [None] * 4, [0, 1, 1, 3]),
        ([0, 1, 2, 3], [None, None, 20, 20], [0, 1, 2, 2]),  # unknown times cut nothing
        ([0, 1, 2, 3], [20, None, 20, 30], [0, 1, 0, 3]),
        ([0, 1, 2, 3], [20, 10, None, 15], [0, 0, 2, 0]),  # a clock that runs backwards keeps a prefix only
        ([0, 1, 2, 3], [10, 30, 20, 25], [0, 1, 1, 1]),
        ([5, 5, 5], [1, 1, 1], [0, 0, 0]),
        ([7], [None], [0]),
    ],
)
def test_online_lengths_by_hand(order, time, expected):
    assert lengths(order, time) == expected


def slow_length(order, time, t):
    """The events before the first that may not be read."""
    for j in range(t):
        later = time[j] is not None and time[t] is not None and time[j] >= time[t]
        if later or not order[j] < order[t]:
            return j
    return t


@pytest.mark.parametrize("latest", [40, 4 * 10**15])
def test_online_lengths_of_many_users_equal_the_definition(latest):
    """Over more users than their times leave room for in one int64, where the times span 130 years."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 7, 6_000)
    starts, n = np.cumsum(counts) - counts, int(counts.sum())
    time = np.where(rng.random(n) < 0.2, NO_TIME, rng.choice(rng.integers(0, latest, 30), n))
    order = np.concatenate([np.sort(rng.integers(0, 8, count)) for count in counts])
    places = np.flatnonzero(rng.random(n) < 0.8)
    expected = []
    for start, count in zip(starts, counts, strict=True):
        mine = slice(start, start + count)
        times = [None if t == NO_TIME else t for t in time[mine].tolist()]
        expected += [slow_length(order[mine].tolist(), times, t) for t in range(count)]
    assert online_lengths(starts, counts, order, time, places).tolist() == np.array(expected)[places].tolist()


def slow_parts(config, times, targets, named):
    """The part of each of a user's events and the first positions of parts 1 and 2, by the definition of the split."""
    n, split = len(times), config["split"]
    if split["kind"] == "leave_one_out":
        places = [k for k in range(n) if targets[k]]
        valid, test = (places[-2], places[-1]) if len(places) >= 3 else (n, n)
    elif split["kind"] == "time":
        valid, test = (
            next((k for k in range(n) if times[k] is not None and times[k] >= split[name]), n)
            for name in ("valid", "test")
        )
    else:
        part = list(named)
        begin = {name: part.index(name) if name in part else n for name in (1, 2)}
        end = min(begin.values())
        return [None if part[k] == 0 and k >= end else part[k] for k in range(n)], begin
    return [2 if k >= test else 1 if k >= valid else 0 for k in range(n)], {1: valid, 2: test}


SPLITS = {
    "leave_one_out": {"kind": "leave_one_out"},
    "time": {"kind": "time", "valid": 25, "test": 35},
    "column": {"kind": "column", "column": "p", "valid": [1], "test": [2]},
    "where": {"kind": "where", "valid": "p >= 1", "test": "p = 2"},  # rows that meet both are test
}


def random_log(rng):
    """Columns of 60 users: tied and repeated orders, equal and unknown times, clocks that run backwards, copies."""
    n = 900
    user = rng.integers(0, 60, n)
    order = rng.integers(0, 25, n)
    time = order + rng.integers(0, 20, n) + np.where(rng.random(n) < 0.1, -8, 0)
    time = np.maximum(0, np.where(rng.random(n) < 0.2, time // 6 * 6, time))
    part = rng.choice([0, 1, 2], n, p=[0.9, 0.05, 0.05]) if rng.random() < 0.5 else np.clip(order // 10, 0, 2)
    columns = {
        "u": user,
        "i": rng.integers(0, 9, n),
        "o": order,
        "t": pa.array(time, mask=rng.random(n) < 0.25),
        "y": pa.array(rng.integers(0, 2, n), mask=rng.random(n) < 0.2),
        "p": part,
        "s": pa.array(rng.random(n) < 0.7, mask=rng.random(n) < 0.1),
    }
    table = pa.table(columns)
    again = rng.integers(0, n, 200)
    return pa.concat_tables([table, table.take(pa.array(again))]).to_pydict()


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_impressions_equal_the_definition(tmp_path, monkeypatch, kind, seed, duplicates):
    rng = np.random.default_rng(seed)
    log = random_log(rng)
    monkeypatch.setattr("recgpt.data.prepare.BATCH_ROWS", 150)
    monkeypatch.setattr("recgpt.data.sequences.ROW_GROUP", 150)
    changes = {
        "order": "o",
        "outcomes": OUTCOME,
        "context": {"o": {"kind": "numeric"}, "p": {"kind": "numeric"}, "s": {"kind": "numeric"}},
        "target": {"outcome": "y"} if seed % 2 else "all",
        "split": SPLITS[kind],
        "impressions": {"where": "s"},
        "duplicates": duplicates,
    }
    prepared = run(tmp_path, write_parquet(tmp_path / "log.parquet", log), **changes)
    users, events = prepared.users, prepared.events(0, prepared.n_events)
    counts, cut, rates = [0, 0, 0, 0], 0, []
    for row in range(prepared.n_users):
        start = int(users.offset[row])
        mine = events[start : start + int(users.n_events[row])]
        times = [None if t == NO_TIME else t / 1e6 for t in mine.time.tolist()]
        order, named, shown = (mine.context[name].tolist() for name in ("o", "p", "s"))
        parts, begin = slow_parts(changes, times, mine.target.tolist(), named)
        expected = []
        for t, part in enumerate(parts):
            if shown[t] != 1:  # false and unknown alike
                expected.append(None)
                continue
            counts[3 if part is None else int(part)] += 1
            if part is None:
                expected.append(None)
                continue
            online = slow_length(order, times, t)
            cut += online < t
            expected.append((part, online, online if part == 0 else min(online, begin[part])))
            if part == 0 and not np.isnan(mine.outcomes["y"][t]):
                rates.append(float(mine.outcomes["y"][t]))
        assert found(prepared, prepared.user_ids([row])[0]) == expected
    told = prepared.summary["impressions"]
    assert [told[name] for name in ("train", "valid", "test", "outside")] == counts
    assert told["rows"] == sum(counts[:3]) == len(prepared.impressions(0, prepared.n_events))
    assert told["history_cut"] == cut > 0
    assert told["rates"]["y"] == pytest.approx(np.mean(rates), rel=1e-5)
    assert (prepared.summary["rows"]["dropped"] > 0) == (duplicates == "drop")


def test_every_event_is_an_impression_without_a_condition_and_none_without_the_section(tmp_path):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1, 1, 1], "i": [1, 2, 3], "t": [1, 2, 3], "y": [0, 1, None]})
    every = run(tmp_path, path, outcomes=OUTCOME, impressions={})
    assert found(every, 1) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    # the last event's outcome is unknown and the second is of the validation part
    assert every.summary["impressions"]["rates"] == {"y": 0.0}
    none = prepare(config(path, outcomes=OUTCOME), tmp_path / "none", progress=False)
    assert len(none.impressions(0, 3)) == 0
    assert none.impressions(0, 3).place.dtype == np.int64
    assert none.summary["impressions"] is None
    assert none.content != every.content


def test_frozen_histories_end_where_the_part_begins(tmp_path):
    # positions   0    1    2    3    4    5
    columns = {
        "u": [1] * 6,
        "i": [1, 2, 3, 4, 5, 6],
        "t": [1, 2, 3, 3, 5, 6],
        "p": ["a", "a", "v", "v", "a", "t"],
        "y": [0, 1, 0, 1, 0, 1],
    }
    path = write_parquet(tmp_path / "log.parquet", columns)
    split = {"kind": "where", "valid": "p = 'v'", "test": "p = 't' and t > 4"}
    prepared = run(tmp_path, path, order="t", outcomes=OUTCOME, impressions={}, split=split)
    assert sorted(filter(None, found(prepared, 1))) == [(0, 0, 0), (0, 1, 1), (1, 2, 2), (1, 2, 2), (2, 5, 5)]
    assert found(prepared, 1)[4] is None  # of training, after training has ended
    assert prepared.summary["impressions"]["outside"] == 1
    assert any(line.startswith("1 impressions of training come after") for line in prepared.summary["warnings"])
    users = prepared.users
    assert [users.train_end[0], users.valid_target[0], users.test_target[0]] == [2, 2, 5]


def test_duplicates_are_dropped_before_histories_are_counted(tmp_path):
    columns = {"u": [1] * 4, "i": [7, 7, 8, 9], "o": [1, 2, 3, 4], "t": [5, 5, 6, 7], "y": [1, 1, 0, 0]}
    path = write_parquet(tmp_path / "log.parquet", columns)
    changes = {"order": "o", "outcomes": OUTCOME, "impressions": {}}
    kept = run(tmp_path, path, **changes)
    assert found(kept, 1) == [(0, 0, 0), (0, 0, 0), (1, 2, 2), (2, 3, 3)]
    assert kept.summary["impressions"]["history_cut"] == 1
    dropped = prepare(config(path, duplicates="drop", **changes), tmp_path / "dropped", progress=False)
    assert found(dropped, 1) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert dropped.summary["impressions"]["history_cut"] == 0


def test_any_run_gives_the_impressions_in_it(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    log = random_log(rng)
    monkeypatch.setattr(sequences, "EVENTS_PER_PART", 300)
    changes = {"order": "o", "outcomes": OUTCOME, "impressions": {"where": "s"}, "split": SPLITS["column"]}
    prepared = run(tmp_path, write_parquet(tmp_path / "log.parquet", log), **changes)
    whole = prepared.impressions(0, prepared.n_events)
    assert whole.part.dtype == np.int8
    for start, stop in [(0, 0), (17, 17), (0, 1), *rng.integers(0, prepared.n_events, (40, 2)).tolist()]:
        part, inside = prepared.impressions(start, stop), (whole.place >= start) & (whole.place < stop)
        for name in ("place", "part", "online", "frozen"):
            assert np.array_equal(getattr(part, name), getattr(whole, name)[inside])


def test_the_history_that_is_read_does_not_make_a_log_stale(tmp_path):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1], "i": [1], "t": [1], "y": [0]})
    first = run(tmp_path, path, outcomes=OUTCOME, impressions={}).folder.stat().st_ino
    assert run(tmp_path, path, outcomes=OUTCOME, impressions={"history": "frozen"}).folder.stat().st_ino == first
    assert run(tmp_path, path, outcomes=OUTCOME, impressions={"where": "y = 0"}).folder.stat().st_ino != first


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"impressions": {"where": "seen >"}}, "data.impressions.where: 'seen >' is no SQL condition"),
        ({"impressions": {"where": "count(*) > 1"}}, "data.impressions.where: 'count(*) > 1' is no SQL condition"),
        ({"impressions": {"where": "y + 1"}}, "data.impressions.where: 'y + 1' is no SQL condition (its type is"),
        ({"impressions": {"where": "sen = 1"}}, "data.impressions.where: no column 'sen' in log.parquet; did you"),
        ({"split": {"kind": "where", "valid": "p = ", "test": "p = 2"}}, "data.split.valid: 'p = ' is no SQL"),
        ({"split": {"kind": "where", "valid": "p = 1", "test": "part = 2"}}, "data.split.test: no column 'part'"),
    ],
)
def test_bad_conditions_have_one_line(tmp_path, changes, told):
    columns = {"u": [1, 1], "i": [1, 2], "t": [1, 2], "y": [0, 1], "seen": [1, 0], "p": [1, 2]}
    line = refused(tmp_path, write_parquet(tmp_path / "log.parquet", columns), outcomes=OUTCOME, **changes)
    assert line.startswith(told)


def test_conditions_over_a_text_log(tmp_path):
    # as texts '9' >= '10' would hold, and '' is unknown
    path = write_text(tmp_path / "log.csv", "u,i,t,y,day\n1,1,1,0,9\n1,2,2,1,10\n1,3,3,1,11\n1,4,4,,\n")
    split = {"kind": "where", "valid": "Day >= 10", "test": "day >= 11"}
    changes = {"split": split, "impressions": {"where": "y is not null"}, "where": "t < 4"}
    prepared = run(tmp_path, path, outcomes=OUTCOME, **changes)
    assert found(prepared, 1) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    assert prepared.summary["rows"]["filtered"] == 1
    row = prepared.users
    assert [row.train_end[0], row.valid_target[0], row.test_target[0]] == [1, 1, 2]


def test_check_tells_impressions(tmp_path, capsys):
    columns = {"u": [1] * 4, "i": [7, 7, 8, 9], "o": [1, 2, 3, 4], "t": [5, 5, 6, 7], "y": [1, 0, 0, None]}
    path = write_parquet(tmp_path / "log.parquet", columns)
    split = {"kind": "where", "valid": "t = 6", "test": "t = 7"}
    section = config(path, order="o", outcomes=OUTCOME, impressions={}, split=split, duplicates="fail")
    told = check(section)
    assert told["impressions"] == {
        "rows": 4,
        "train": 2,
        "valid": 1,
        "test": 1,
        "outside": 0,
        "history_cut": 1,
        "rates": {"y": 0.5},
    }
    assert told["leaks"] == []  # a copy is in no history
    print_check(told)
    assert "rows 4, train 2, valid 1, test 1, outside 0, history_cut 1, rates y 0.5" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )
    empty = check(config(path, order="o", outcomes=OUTCOME, impressions={"where": "t = 6"}, split=split))
    assert "no event of the train part is an impression by data.impressions and data.split" in empty["warnings"]
    assert empty["impressions"]["rates"] == {"y": None}
