import errno
import json
import os
import threading
import time
from fractions import Fraction
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.data import sequences
from recgpt.data.engine import Engine
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_id, hash_ids
from recgpt.data.prepare import Preparation, data_config, prepare
from recgpt.data.prepared import Prepared
from recgpt.data.schema import DataConfig
from recgpt.data.sequences import SequenceWriter, by_item, find_copies, find_neighbours, repeats_place
from recgpt.errors import ConfigError, RecGPTError
from tests.recgpt.data.logfiles import (
    config,
    history,
    refused,
    rejects,
    run,
    write_parquet,
    write_text,
)

IDS = [2**63 - 1, -(2**63), -1, 0, 2**53 + 1]
WORDS = ["日本語", "العربية", "e\u0301", "é", "007", "7", " ", 'a,b"c', "🎬", "o'neil\n"]


def test_integer_ids_survive(tmp_path):
    path = write_parquet(tmp_path / "log.parquet", {"u": IDS, "i": IDS[::-1], "t": [1] * 5})
    prepared = run(tmp_path, path)
    for user, item in zip(IDS, IDS[::-1], strict=True):
        assert history(prepared, user) == [item]
        row = prepared.find_user(user)
        assert prepared.user_ids([row]) == [user]
        assert prepared.users.hash[row] == hash_id(user)
    assert prepared.items.ids.type == pa.int64()


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_text_ids_of_any_script_survive(tmp_path, suffix):
    columns = {"u": WORDS, "i": WORDS[::-1], "t": [1] * len(WORDS)}
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        write_parquet(path, columns)
    else:
        quoted = ['"' + word.replace('"', '""') + '"' for word in WORDS]
        lines = [f"{u},{i},1\n" for u, i in zip(quoted, quoted[::-1], strict=True)]
        write_text(path, "u,i,t\n" + "".join(lines))
    prepared = run(tmp_path, str(path))
    for user, item in zip(WORDS, WORDS[::-1], strict=True):
        assert history(prepared, user) == [item]
        assert prepared.events(0, 10).item[prepared.users.offset[prepared.find_user(user)]] == hash_id(item)


def test_types_of_text_ids(tmp_path):
    path = write_text(tmp_path / "log.csv", f"u,i,t\n{2**63 - 1},007,1\n-5,7,2\n")
    prepared = run(tmp_path, path)
    assert history(prepared, 2**63 - 1) == ["007"]
    assert history(prepared, -5) == ["7"]
    too_big = write_text(tmp_path / "big.csv", f"u,i,t\n{2**63},1,1\n1,1,2\n")
    other = prepare(config(too_big), tmp_path / "big", progress=False)
    assert history(other, str(2**63)) == [1]


def test_columns_may_be_called_as_ours_are(tmp_path):
    columns = {
        "user": [1, 1],
        "item": [3, 4],
        "item_row": [9, 9],
        "target": [0, 1],
        "order": [2, 1],
    }
    path = write_parquet(tmp_path / "log.parquet", columns)
    section = {
        "events": path,
        "user": "user",
        "item": "item",
        "order": "order",
        "outcomes": {"target": {"kind": "binary"}},
        "context": {"item_row": {"kind": "categorical"}},
    }
    prepared = prepare({"data": section}, tmp_path / "prepared", progress=False)
    assert history(prepared, 1) == [4, 3]
    assert prepared.events(0, 2).outcomes["target"].tolist() == [1, 0]
    assert prepared.events(0, 2).context["item_row"].tolist() == [hash_id(9)] * 2


@pytest.mark.parametrize("kind", ["parquet", "csv.gz", "txt"])
def test_order_row_is_the_file_order(tmp_path, kind):
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 50, 30_000), rng.integers(0, 5_000, 30_000)
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        write_parquet(path, {"u": user, "i": item}, row_group_size=700)
    else:
        mark = " " if kind == "txt" else ","
        text = f"u{mark}i\n" + "".join(f"{u}{mark}{i}\n" for u, i in zip(user, item, strict=True))
        if kind == "csv.gz":
            with pa.CompressedOutputStream(str(path), "gzip") as stream:
                stream.write(text.encode())
        else:
            write_text(path, text)
    prepared = run(tmp_path, str(path), time=None, order="row")
    for one in range(50):
        assert history(prepared, one) == item[user == one].tolist()


def test_row_order_needs_one_file(tmp_path):
    for name in ("a.csv", "b.csv"):
        write_text(tmp_path / name, "u,i\n1,2\n")
    line = refused(tmp_path, f"{tmp_path}/*.csv", time=None, order="row")
    assert line.startswith("data.order: row needs a single file, data.events matches 2 (a.csv, b.csv")


def test_ties_are_broken_by_columns_then_the_item_hash(tmp_path):
    # order 1: ties 2 < 5; order 2: no tie column left to tell 30 and 40 apart
    columns = {"u": [1] * 4, "i": [10, 20, 30, 40], "t": [1, 1, 2, 2], "k": [5, 2, 0, 0]}
    prepared = run(tmp_path, write_parquet(tmp_path / "log.parquet", columns), tie=["k"])
    assert history(prepared, 1) == [20, 10, *sorted([30, 40], key=hash_id)]
    assert prepared.summary["tied_events"] == 2
    assert any("2 events share their place" in line for line in prepared.summary["warnings"])


@pytest.mark.parametrize(("duplicates", "kept"), [("keep", 3), ("drop", 2)])
def test_copies_that_a_tie_column_parts(tmp_path, duplicates, kept):
    columns = {"u": [1] * 3, "i": [7, 8, 7], "t": [5] * 3, "k": [0, 1, 2]}
    prepared = run(tmp_path, write_parquet(tmp_path / "log.parquet", columns), tie=["k"], duplicates=duplicates)
    assert prepared.summary["copies"] == 1
    assert history(prepared, 1) == [7, 8, 7][:kept]


@pytest.mark.parametrize("n_values", [1, 256, 257, 300])
def test_many_values_of_a_category(tmp_path, n_values):
    rng = np.random.default_rng(n_values)
    word = [None if k == n_values else f"w{k}" for k in rng.permutation(np.arange(n_values + 1).repeat(2))]
    columns = {"u": [1] * len(word), "i": list(range(len(word))), "t": list(range(len(word))), "w": word}
    context = {"w": {"kind": "categorical"}}
    prepared = run(tmp_path, write_parquet(tmp_path / "log.parquet", columns), context=context)
    expected = [0 if each is None else hash_id(each) for each in word]
    assert prepared.events(0, len(word)).context["w"].tolist() == expected


def test_of_copies_in_several_files_the_first_stays(tmp_path):
    for number, y in enumerate([[1, 0], [0], [0, 1]]):  # files of different lengths
        columns = {"u": [1] * len(y), "i": [7] * len(y), "t": [5] * len(y), "y": y}
        write_parquet(tmp_path / f"{number}.parquet", columns)
    outcomes = {"y": {"kind": "binary"}}
    kept = run(tmp_path / "kept", f"{tmp_path}/*.parquet", outcomes=outcomes)
    assert kept.events(0, 5).outcomes["y"].tolist() == [1, 0, 0, 0, 1]
    dropped = run(tmp_path / "dropped", f"{tmp_path}/*.parquet", outcomes=outcomes, duplicates="drop")
    assert dropped.events(0, 1).outcomes["y"].tolist() == [1]
    assert dropped.n_events == 1


COPIES = {
    "u": [1, 1, 1, 1, 2, 2, 2],
    "i": [10, 10, 10, 11, 10, 10, 10],
    "o": [1, 2, 3, 3, 1, 2, 2],
    "t": [5, 5, 6, 6, None, None, None],
    "y": [1, 0, 1, 1, 1, 0, 0],
}


@pytest.mark.parametrize("duplicates", ["keep", "drop", "fail"])
def test_copies(tmp_path, duplicates):
    # copies of (user, item, time): row 1; where the time is unknown, of (user, item, order): row 6
    path = write_parquet(tmp_path / "log.parquet", COPIES)
    changes = {"order": "o", "duplicates": duplicates, "outcomes": {"y": {"kind": "binary"}}}
    if duplicates == "fail":
        line = refused(tmp_path, path, **changes)
        assert line.startswith("data.duplicates: fail, and 2 events repeat")
        return
    prepared = run(tmp_path, path, **changes)
    assert prepared.summary["copies"] == 2
    dropped = 2 if duplicates == "drop" else 0
    rows = {"in": 7, "kept": 7 - dropped, "rejected": 0, "filtered": 0, "dropped": dropped}
    assert prepared.summary["rows"] == rows
    assert len(history(prepared, 1)) == (3 if duplicates == "drop" else 4)
    assert prepared.items.n_events.sum() == prepared.n_events == 7 - dropped
    if duplicates == "drop":  # the first of them is kept
        start = prepared.users.offset[prepared.find_user(1)]
        assert prepared.events(start, start + 1).outcomes["y"].tolist() == [1]


@pytest.mark.parametrize("seed", range(10))
def test_find_copies_equals_a_set(seed):
    rng = np.random.default_rng(seed)
    n = 400
    user = np.sort(rng.integers(0, 10, n))
    item, order = rng.integers(0, 6, n), rng.integers(0, 8, n)
    time = np.where(rng.random(n) < 0.5, NO_TIME, rng.integers(0, 8, n))
    table = pa.table({"item_row": item, "__order": order, "time": pa.array(time, mask=time == NO_TIME)})
    seen, expected = set(), []
    for key in zip(user, item, np.where(time == NO_TIME, order, time), time == NO_TIME, strict=True):
        expected.append(key in seen)
        seen.add(key)
    assert find_copies(table, user).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_where_the_order_is_the_clock_copies_stand_together(seed):
    rng = np.random.default_rng(seed)
    user, order, item = (rng.integers(0, n, 400) for n in (10, 8, 6))
    place = np.lexsort([item, order, user])
    user, order, item = user[place], order[place], item[place]
    table = pa.table({"item_row": item, "__order": order, "time": pa.array(order)})
    found = find_neighbours(table, repeats_place(table, user))
    assert found.any()
    assert found.tolist() == find_copies(table, user).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_events_of_one_place_are_put_in_the_order_of_their_items(seed):
    rng = np.random.default_rng(seed)
    n = 400
    user, order, tie, item = (np.sort(rng.integers(0, 9, n)), *(rng.integers(0, k, n) for k in (8, 2, 6)))
    place = np.lexsort([tie, order, user])  # as the engine sorts: equal places in the files' order
    known = rng.random(n) < 0.7
    columns = {"user_row": user, "__order": order, "__tie.0": pa.array(tie, mask=tie == 0), "item_row": item}
    columns |= {"o.seen": pa.array(np.arange(n, dtype=np.float32), mask=~known), "__target": known}
    table = pa.table(columns).take(place)
    done = by_item(table, repeats_place(table, user[place]))
    expected = pa.table(columns).take(np.lexsort([item, tie, order, user]))  # lexsort is stable
    assert done.equals(expected)
    assert not done.equals(table)


def sorted_stream(end):
    """Two users' events, then whatever `end` does."""
    yield pa.RecordBatch.from_pydict({"user_key": [0, 0, 1], "item_row": [0, 0, 0], "__order": [1, 2, 3]})
    yield pa.RecordBatch.from_pydict({"user_key": [2], "item_row": [0], "__order": [1]})
    end()


def small_writer(folder):
    section = DataConfig(events=["log.parquet"], user="u", item="i", order="t")
    return SequenceWriter(section, 1, folder)


def test_an_error_in_the_stream_is_told_and_ends_the_threads(tmp_path):
    def full():
        raise OSError("disk full")

    before = threading.active_count()
    with pytest.raises(OSError, match="disk full"):
        small_writer(tmp_path / "events").write_all(sorted_stream(full))
    assert threading.active_count() == before


def test_an_error_in_the_counting_is_told_and_ends_the_threads(tmp_path, monkeypatch):
    broken_off, before = threading.Event(), threading.active_count()
    monkeypatch.setattr(sequences, "ROW_GROUP", 1)
    writer = small_writer(tmp_path / "events")
    monkeypatch.setattr(writer, "_count_users", None)
    with pytest.raises(TypeError, match="not callable") as error:
        writer.write_all(sorted_stream(lambda: broken_off.wait(30)), stop=broken_off.set)
    assert threading.active_count() == before
    del error  # it held on to the frames until here


def test_an_interrupted_query_is_told_as_it_is(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1], "i": [1], "t": [1]})
    with Engine("200MB", tmp_path / "spill") as engine:
        engine.parquet("log", [Path(path)])
        monkeypatch.setattr("recgpt.data.engine._refuse_damaged", lambda files: pytest.fail("read the log again"))
        engine.backend.raw_sql("CREATE VIEW endless AS SELECT count(*) AS n FROM range(100000000), range(100000)")
        timer = threading.Timer(0.3, engine.interrupt)
        timer.start()
        with pytest.raises(duckdb.InterruptException):
            engine.fetch(engine.backend.table("endless"))


def test_ctrl_c_that_the_engine_took_for_itself_is_ctrl_c(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1], "i": [1], "t": [1]})

    def interrupted(*arguments):
        raise RuntimeError("Query interrupted")  # what DuckDB makes of it within a query of the main thread

    monkeypatch.setattr(Engine, "_reader", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, path)
    assert not [each for each in tmp_path.iterdir() if each.is_dir()]


def test_an_interrupted_writer_breaks_off_the_query(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "ROW_GROUP", 1)
    broken_off = threading.Event()

    def interrupted(rows):
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        small_writer(tmp_path / "events").write_all(
            sorted_stream(lambda: broken_off.wait(30)), interrupted, broken_off.set
        )
    assert broken_off.is_set()
    assert threading.active_count() == before


def nasty_log(seed):
    rng = np.random.default_rng(seed)
    n = 3_000
    user = rng.integers(-5, 60, n).astype(object)
    item = np.array([f"i{k}" for k in rng.integers(0, 40, n)], object)
    time = rng.integers(0, 50, n)
    click = rng.integers(0, 2, n).astype(float)
    user[rng.random(n) < 0.02] = None
    item[rng.random(n) < 0.02] = ""
    time[rng.random(n) < 0.02] = -3
    click[rng.random(n) < 0.02] = np.nan
    click[rng.random(n) < 0.02] = 0.5
    part = rng.choice(["a", "b"], n)
    return user, item, time, click, part


def fate(user, item, time, click, part, seen):
    if part == "b":
        return "filtered"
    if user is None:
        return "null or empty id data.user"
    if item == "":
        return "null or empty id data.item"
    if time < 0:
        return "time out of range data.time"
    if np.isnan(click):
        return "NaN data.outcomes.y"
    if click not in (0, 1):
        return "outcome is not 0 or 1 data.outcomes.y"
    if (user, item, time) in seen:
        return "dropped"
    seen.add((user, item, time))
    return "kept"


@pytest.mark.parametrize("seed", range(3))
def test_every_row_is_accounted_for(tmp_path, seed):
    rows = nasty_log(seed)
    seen, fates = set(), {}
    for row in zip(*rows, strict=True):
        name = fate(*row, seen)
        fates[name] = fates.get(name, 0) + 1
    user, item, time, click, part = rows
    for index in range(3):
        cut = slice(1_000 * index, 1_000 * (index + 1))
        write_parquet(
            tmp_path / f"log{index}.parquet",
            {
                "u": pa.array(list(user[cut]), pa.int64()),
                "i": pa.array(list(item[cut])),
                "t": time[cut],
                "y": pa.array(click[cut]),
                "part": part[cut],
            },
        )
    prepared = run(
        tmp_path,
        f"{tmp_path}/log*.parquet",
        where="part <> 'b'",
        duplicates="drop",
        outcomes={"y": {"kind": "binary"}},
        max_reject_fraction=0.5,
    )
    account = prepared.summary["rows"]
    assert account["kept"] == fates["kept"] == prepared.n_events
    assert account["filtered"] == fates["filtered"]
    assert account["dropped"] == fates["dropped"]
    assert account["in"] == 3_000 == sum(account[k] for k in ("kept", "rejected", "filtered", "dropped"))
    told = {f"{r['reason']} {r['field']}": r["rows"] for r in prepared.summary["rejected"]}
    assert told == {k: n for k, n in fates.items() if k not in ("kept", "filtered", "dropped")}
    assert len(rejects(prepared)) == account["rejected"]
    assert prepared.users.n_events.sum() == account["kept"]


def test_rejected_rows_tell_where_they_stood(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"u": [1, 2], "i": [1, 2], "t": [1, 2]})
    write_parquet(tmp_path / "b.parquet", {"u": [1, None], "i": [1, 2], "t": [1, 2]})
    prepared = run(tmp_path, f"{tmp_path}/*.parquet", max_reject_fraction=0.5)
    row = pq.read_table(prepared.folder / "rejects.parquet").to_pylist()[0]
    assert row["file"].endswith("b.parquet")
    assert row["row"] == 1
    assert json.loads(row["json"]) == {"u": None, "i": 2, "t": 2}


def test_users_with_one_event_are_kept_and_told(tmp_path):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1, 2, 2, 2], "i": [1, 1, 2, 3], "t": [1, 1, 2, 3]})
    prepared = run(tmp_path, path)
    row = prepared.find_user(1)
    assert prepared.summary["one_event_users"] == 1
    assert prepared.users.train_end[row] == 1
    assert prepared.users.test_target[row] == -1
    assert "1 users have one event: nothing to predict from" in prepared.summary["warnings"]


def test_users_of_text_ids_lie_in_hash_buckets(tmp_path):
    users = [f"u{i}" for i in range(500)]
    path = write_parquet(tmp_path / "log.parquet", {"u": users, "i": range(500), "t": range(500)})
    prepared = run(tmp_path, path)
    key = [
        (h >> 56 & 0xFF, u) for h, u in zip(prepared.users.hash.tolist(), prepared.user_ids(range(500)), strict=True)
    ]
    assert key == sorted(key)
    assert np.array_equal(prepared.users.offset, np.arange(500))


@pytest.mark.parametrize("least", [0, 7, -(2**62), 2**63 - 1 - 499])
def test_users_of_integer_ids_are_mixed(tmp_path, least):
    users = [least + i for i in range(500)]
    path = write_parquet(tmp_path / "log.parquet", {"u": users, "i": range(500), "t": range(500)})
    prepared = run(tmp_path, path)
    ids = prepared.user_ids(range(500))
    assert sorted(ids) == users
    assert prepared.users.hash.tolist() == hash_ids(ids).tolist()
    assert [prepared.events(row, row + 1).time[0] // 10**6 + least for row in range(500)] == ids
    tenths = np.array([[user - least for user in ids[k : k + 50]] for k in range(0, 500, 50)])
    assert (np.abs(tenths.mean(1) - 249.5) < 60).all()  # 20 is one standard error of fifty drawn ones


@pytest.mark.parametrize(("users", "joined"), [([0, 2**31 - 1], False), ([0, 2**31], True), ([5], False)])
def test_users_of_far_ids_are_numbered_by_a_join(tmp_path, monkeypatch, users, joined):
    names = []
    whole = Preparation._numbered
    monkeypatch.setattr(
        Preparation, "_numbered", lambda self, events, key, *rest: names.append(key) or whole(self, events, key, *rest)
    )
    path = write_parquet(
        tmp_path / "log.parquet", {"u": [*users, *users], "i": [1] * 2 * len(users), "t": [3] * 2 * len(users)}
    )
    prepared = run(tmp_path, path)
    assert sorted(prepared.user_ids(range(len(users)))) == users
    assert prepared.users.n_events.tolist() == [2] * len(users)
    assert ("__user" in names) == joined


def test_parts_and_batches_are_cut_at_users(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    columns = {
        "u": rng.integers(0, 20, 5_000),
        "i": rng.integers(0, 30, 5_000),
        "t": rng.permutation(5_000),
    }
    path = write_parquet(tmp_path / "log.parquet", columns)
    whole = run(tmp_path, path)
    monkeypatch.setattr(sequences, "EVENTS_PER_PART", 600)
    monkeypatch.setattr(sequences, "ROW_GROUP", 150)
    monkeypatch.setattr("recgpt.data.prepare.BATCH_ROWS", 100)
    cut = prepare(config(path), tmp_path / "cut", progress=False)
    parts = sorted((cut.folder / "events").iterdir())
    assert len(parts) > 3
    first = [pq.read_table(part)["user_row"] for part in parts]
    assert all(a[-1].as_py() < b[0].as_py() for a, b in zip(first, first[1:], strict=False))
    assert np.array_equal(cut.events(0, 5_000).item, whole.events(0, 5_000).item)
    assert np.array_equal(cut.users.offset, whole.users.offset)
    assert cut.content == whole.content


def test_column_split(tmp_path):
    columns = {"u": [1] * 5, "i": [1, 2, 3, 4, 5], "t": [1, 2, 3, 4, 5], "day": [1, 1, 2, 3, 3]}
    path = write_parquet(tmp_path / "log.parquet", columns)
    split = {"kind": "column", "column": "day", "valid": [2], "test": [3]}
    prepared = run(tmp_path, path, split=split)
    users = prepared.users
    assert [users.train_end[0], users.valid_history[0], users.valid_target[0]] == [2, 2, 2]
    assert [users.test_history[0], users.test_target[0]] == [3, 3]
    items = prepared.items
    assert items.valid_candidate.all()
    assert dict(zip(items.ids.to_pylist(), items.n_train_events.tolist(), strict=True)) == {
        1: 1,
        2: 1,
        3: 0,
        4: 0,
        5: 0,
    }


def test_time_split_candidates_were_seen_before(tmp_path):
    columns = {"u": [1, 1, 1, 2, 2], "i": [1, 2, 3, 1, 4], "t": [10, 20, 30, 15, 25]}
    path = write_parquet(tmp_path / "log.parquet", columns)
    prepared = run(tmp_path, path, split={"kind": "time", "valid": 20, "test": 30})
    items = prepared.items
    seen = {
        i: (v, t)
        for i, v, t in zip(
            items.ids.to_pylist(),
            items.valid_candidate.tolist(),
            items.test_candidate.tolist(),
            strict=True,
        )
    }
    assert seen == {1: (True, True), 2: (False, True), 3: (False, False), 4: (False, True)}
    assert prepared.summary["split"]["valid"] == {"users": 2, "without_history": 0, "candidates": 1}


def test_fresh_is_opened_and_stale_is_made_again(tmp_path, monkeypatch):
    path = write_text(tmp_path / "log.csv", "u,i,t\n1,2,3\n")
    stamp = run(tmp_path, path).folder.stat().st_ino
    assert run(tmp_path, path).folder.stat().st_ino == stamp
    assert run(tmp_path, path, time_unit="ms").folder.stat().st_ino != stamp
    write_text(tmp_path / "log.csv", "u,i,t\n1,2,3\n4,5,6\n")
    assert run(tmp_path, path).n_events == 2
    monkeypatch.chdir(tmp_path)
    assert prepare(config(path), progress=False).folder.parent.name == "prepared"


def test_a_new_file_of_the_glob_is_noticed(tmp_path):
    write_parquet(tmp_path / "day-1.parquet", {"u": [1], "i": [2], "t": [3]})
    items = {"path": f"{tmp_path}/items-*.parquet", "id": "i"}
    write_parquet(tmp_path / "items-1.parquet", {"i": [2]})
    glob = f"{tmp_path}/day-*.parquet"
    first = run(tmp_path, glob, items=items)
    assert first.n_events == 1
    write_parquet(tmp_path / "day-2.parquet", {"u": [1], "i": [4], "t": [5]})
    second = run(tmp_path, glob, items=items)
    assert second.n_events == 2
    assert second.content != first.content
    write_parquet(tmp_path / "items-2.parquet", {"i": [4]})
    third = run(tmp_path, glob, items=items)
    assert third.folder.stat().st_ino == run(tmp_path, glob, items=items).folder.stat().st_ino
    assert [entry["path"].rpartition("/")[2] for entry in third.summary["sources"]] == [
        "day-1.parquet",
        "day-2.parquet",
        "items-1.parquet",
        "items-2.parquet",
    ]
    (tmp_path / "day-1.parquet").unlink()
    assert run(tmp_path, glob, items=items).n_events == 1


def test_nothing_of_others_is_written_over(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    path = write_parquet(folder / "log.parquet", {"u": [1], "i": [2], "t": [3]})

    def line(events, place, out=None):
        with pytest.raises(ConfigError) as error:
            prepare(config(events, prepared=str(place)), out, progress=False)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert line(path, folder) == (
        f"data.prepared: {folder} holds the input file log.parquet; choose another folder to write"
    )
    assert line(path, tmp_path / "unused", folder).startswith(f"out: {folder} holds the input file")
    assert line(path, path) == f"data.prepared: {path} is a file, not a folder; choose another folder"
    assert line(path, f"{path}/deep").startswith(f"data.prepared: {path} is a file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "summary.json").write_text('{"what": "another tool\'s"}')
    assert line(path, other) == (
        f"{other}: is not empty and holds no rejects.parquet, so nothing there is replaced; choose another folder"
    )
    assert [entry.name for entry in other.iterdir()] == ["summary.json"]
    assert [entry.name for entry in folder.iterdir()] == ["log.parquet"]


def test_an_interrupted_run_leaves_nothing_and_is_made_again(tmp_path, monkeypatch):
    path = write_text(tmp_path / "log.csv", "u,i,t\n1,2,3\n")
    with monkeypatch.context() as patch:
        patch.setattr("recgpt.data.prepare.summarise", lambda *_: os.kill)
        with pytest.raises(TypeError):
            run(tmp_path, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]
    folder = run(tmp_path, path).folder
    (folder / "summary.json").unlink()
    with pytest.raises(ConfigError, match="no prepared log"):
        Prepared.open(folder)
    assert run(tmp_path, path).n_events == 1


def test_full_disk(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    path = write_text(tmp_path / "log.csv", "u,i,t\n1,2,3\n")
    monkeypatch.setattr("recgpt.data.sequences.pq.ParquetWriter", full)
    with pytest.raises(RecGPTError, match="no space left on the disk; free some"):
        run(tmp_path, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_config_file_with_other_sections(tmp_path):
    path = write_text(tmp_path / "log.csv", "u,i,t\n1,2,3\n")
    file = tmp_path / "my.yaml"
    write_text(file, f"data: {{events: {path}, user: u, item: i, time: t}}\nmodel: {{dim: 8}}\n")
    out = [f"data.prepared={tmp_path}/out", "model.dim=16", "data.time_unit=ms"]
    prepared = prepare(file, progress=False, overrides=out)
    assert prepared.folder == tmp_path / "out"
    assert prepared.events(0, 1).time.tolist() == [3_000]
    write_text(file, "model: {}\n")
    with pytest.raises(ConfigError, match="no section `data`"):
        prepare(file)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("dta.order=row", "'dta.order=row': no section 'dta'; did you mean 'data'?"),
        ("zzz=1", "'zzz=1': no section 'zzz'; sections: data, model, loss, optim, run, heads, tasks"),
        ("foo", "'foo': write overrides as key.sub=value, for example optim.lr=3e-4"),
    ],
)
def test_mistyped_overrides(tmp_path, override, told):
    path = write_parquet(tmp_path / "log.parquet", {"u": [1], "i": [2], "t": [3]})
    for section in (config(path), DataConfig(**config(path)["data"])):
        with pytest.raises(ConfigError) as error:
            data_config(section, ["optim.lr=1", override])
        assert str(error.value) == told


def test_overrides_of_a_section_and_errors_of_a_file(tmp_path):
    section = DataConfig(events=["log.parquet"], user="u", item="i", time="t")
    assert data_config(section, ["data.time_unit=ms", "run.epochs=1"]).time_unit == "ms"
    assert data_config(section) == section
    file = tmp_path / "my.yaml"
    file.write_text("data: {events: log.parquet, user: u, item: i, tme: t}\n")
    with pytest.raises(ConfigError) as error:
        data_config(file)
    assert str(error.value).startswith(f"{file}: data.tme: unknown key (value 't'); did you mean 'time'?")
    with pytest.raises(ConfigError, match="my.yaml: data.time_unit: "):
        data_config(file, ["data.time_unit=year"])


def test_unit_conversion_is_exact(tmp_path):
    ticks = [1_700_000_000_123_456_789, 1_700_000_000_123_456_999]
    path = write_parquet(tmp_path / "log.parquet", {"u": [1, 1], "i": [2, 1], "t": ticks[::-1]})
    prepared = run(tmp_path, path, time_unit="ns")
    assert prepared.events(0, 2).time.tolist() == [int(Fraction(t, 1000)) for t in ticks]


@pytest.mark.parametrize(
    "changes", [{"order": "o"}, {"time": "t", "time_unit": "ns"}, {"order": "o", "time": "t", "time_unit": "ns"}]
)
def test_a_column_of_the_log_may_have_any_name(tmp_path, changes):
    """What is computed beside the log's columns is not looked for among them."""
    columns = {"u": [1] * 3, "i": [10, 11, 12], "o": [1, 2, 3], "t": [10**18 + k * 10**9 for k in range(3)]}
    kept = []
    for name, more in (("plain", {}), ("odd", {"__ticks": [3, 2, 1], "__order": [3, 2, 1], "__key": [7, 7, 7]})):
        path = write_parquet(tmp_path / f"{name}.parquet", columns | more)
        prepared = prepare(config(path, **({"time": None} | changes)), tmp_path / name, progress=False)
        kept.append((prepared.events(0, 3).item.tolist(), prepared.events(0, 3).time.tolist()))
    assert kept[0] == kept[1]
    assert kept[0][0] == [hash_id(i) for i in (10, 11, 12)]


@pytest.mark.parametrize("key", ["order", "tie"])
def test_nan_in_a_text_order_is_rejected(tmp_path, key):
    rows = "".join(f"1,{i},{'nan' if i == 3 else i / 2},{i}\n" for i in range(200))
    path = write_text(tmp_path / "log.csv", "u,i,o,t\n" + rows)
    changes = {"order": "o"} if key == "order" else {"order": "t", "tie": ["o"]}
    prepared = run(tmp_path, path, time=None, **changes)
    assert [row[0] for row in rejects(prepared)] == ["NaN"]
    assert prepared.n_events == 199


def test_a_part_that_cannot_be_flushed_ends_prepare(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(sequences, "fsync_path", full)
    before = threading.active_count()
    path = write_parquet(tmp_path / "log.parquet", {"u": [1, 2], "i": [1, 2], "t": [1, 2]})
    with pytest.raises(RecGPTError, match="no space left on the disk"):
        run(tmp_path, path)
    assert threading.active_count() == before


def test_an_interrupted_writer_does_not_wait_for_all_flushes(tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "ROW_GROUP", 1)
    monkeypatch.setattr(sequences, "EVENTS_PER_PART", 1)
    flushed = []
    monkeypatch.setattr(sequences, "fsync_path", lambda path: time.sleep(0.2) or flushed.append(path))

    def interrupted(rows):
        if rows == 20:
            raise KeyboardInterrupt

    stream = (pa.RecordBatch.from_pydict({"user_key": [k], "item_row": [0], "__order": [1]}) for k in range(40))
    with pytest.raises(KeyboardInterrupt):
        small_writer(tmp_path / "events").write_all(stream, interrupted)
    assert len(flushed) < 5
