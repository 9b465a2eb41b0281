import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recgpt.data import prepared as module
from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_id
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from tests.recgpt.data.logfiles import run, write_parquet, write_text


@pytest.fixture
def log(tmp_path):
    """3,000 events with nulls in every nullable column, and the prepared log."""
    rng = np.random.default_rng(3)
    n = 3_000

    def holes(values, kind):
        return pa.array(values, mask=rng.random(n) < 0.3).cast(kind)

    columns = {
        "u": np.repeat(np.arange(30), 100),
        "i": rng.integers(0, 50, n),
        "o": np.arange(n),
        "t": holes(rng.integers(1, 10**6, n), "int64"),
        "y": holes(rng.integers(0, 2, n), "int8"),
        "w": holes(rng.random(n), "float32"),
        "tab": holes(rng.integers(0, 4, n), "int16"),
    }
    path = write_parquet(tmp_path / "log.parquet", columns)
    prepared = run(
        tmp_path,
        path,
        order="o",
        outcomes={"y": {"kind": "binary"}},
        context={"w": {"kind": "numeric"}, "tab": {"kind": "categorical"}},
        target={"outcome": "y"},
    )
    return prepared, columns


def by_user(columns, name, user, fill, convert=lambda x: x):
    values = columns[name][user * 100 : user * 100 + 100]
    values = values.to_pylist() if isinstance(values, pa.Array) else values.tolist()
    return np.array([fill if value is None else convert(value) for value in values])


def test_events_equal_the_log(log):
    prepared, columns = log
    for user in range(30):
        start = int(prepared.users.offset[prepared.find_user(user)])
        events = prepared.events(start, start + 100)
        np.testing.assert_array_equal(events.item, by_user(columns, "i", user, 0, hash_id))
        np.testing.assert_array_equal(events.time, by_user(columns, "t", user, NO_TIME, lambda t: t * 10**6))
        y = by_user(columns, "y", user, np.nan)
        np.testing.assert_array_equal(events.outcomes["y"], y)
        np.testing.assert_array_equal(events.target, y == 1)
        np.testing.assert_array_equal(events.context["tab"], by_user(columns, "tab", user, 0, hash_id))
        np.testing.assert_array_equal(events.context["w"], by_user(columns, "w", user, np.nan).astype(np.float32))
        known = by_user(columns, "t", user, 0).max() * 10**6
        assert prepared.users.last_time[prepared.find_user(user)] == known
    assert events.outcomes["y"].dtype == events.context["w"].dtype == np.float32


def test_any_run_is_a_slice_of_the_whole(log, monkeypatch):
    prepared, _ = log
    whole = prepared.events(0, 3_000).columns()
    written = {name: v for name, v in whole.items() if name != "item"}
    written["item_row"] = prepared.item_rows(0, 3_000).astype(np.int32)
    columns = {
        name: pa.chunked_array([pa.array(v[:7]), pa.array(v[7:1000]), pa.array(v[1000:])])
        for name, v in written.items()
    }
    monkeypatch.setattr(prepared, "_columns", {n: module._column_reader(n, c) for n, c in columns.items()})
    rng = np.random.default_rng(0)
    for start, stop in [
        (0, 0),
        (5, 5),
        (3_000, 3_000),
        (6, 8),
        (0, 3_000),
        *rng.integers(0, 3_000, (50, 2)),
    ]:
        part = prepared.events(int(start), int(stop)).columns()
        for name, values in whole.items():
            np.testing.assert_array_equal(part[name], values[start:stop])
            assert part[name].dtype == values.dtype
        rows = prepared.item_rows(int(start), int(stop))
        assert rows.dtype == np.int64
        np.testing.assert_array_equal(prepared.items.hash[rows], part["item"])


def test_nothing_is_written_elsewhere_and_two_processes_may_open_at_once(log):
    prepared, _ = log
    code = (
        "import sys; from recgpt.data.prepared import Prepared;"
        "print(int(Prepared.open(sys.argv[1]).events(0, 3000).item.sum()))"
    )
    root = Path(__file__).resolve().parents[3]
    home = prepared.folder.parent / "home"
    home.mkdir()
    expected = str(int(prepared.events(0, 3_000).item.sum()))
    shutil.rmtree(prepared.folder / module.CACHE)
    environment = {"HOME": str(home), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(prepared.folder)],
            env=environment,
            cwd=home,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in runs] == [expected] * 2
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_keeps_its_cache_at_home(log, tmp_path):
    prepared, _ = log
    copy, home = tmp_path / "read_only", tmp_path / "home"
    shutil.copytree(prepared.folder, copy, ignore=shutil.ignore_patterns(module.CACHE))
    home.mkdir()
    code = (
        "import os, sys; os.access = lambda path, mode: False; from recgpt.data.prepared import Prepared;"
        "print(int(Prepared.open(sys.argv[1]).events(0, 3000).item.sum()))"
    )
    environment = {"HOME": str(home), "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    told = subprocess.run(
        [sys.executable, "-c", code, str(copy)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert told.stdout.strip() == str(int(prepared.events(0, 3_000).item.sum()))
    assert not (copy / module.CACHE).exists()
    assert any(home.rglob("*.arrow"))


def test_reading_from_threads(log):
    prepared, _ = log
    expected = prepared.events(0, 3_000).item
    prepared = Prepared.open(prepared.folder)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda k: prepared.events(k, k + 10).item, range(0, 3_000, 10)))
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_a_folder_that_changes_under_an_opened_log(tmp_path):
    path = tmp_path / "log.csv"
    early = run(tmp_path, write_text(path, "u,i,t\n5,1,1\n"))
    late = Prepared.open(early.folder)
    assert len(early.events(0, 1)) == 1
    run(tmp_path, write_text(path, "u,i,t\n5,1,1\n5,2,2\n"))
    with pytest.raises(ConfigError, match="another log was prepared there since this one was opened"):
        late.events(0, 1)


def test_a_folder_without_its_events(tmp_path):
    prepared = run(tmp_path, write_text(tmp_path / "log.csv", "u,i,t\n5,1,1\n"))
    shutil.rmtree(prepared.folder / "events")
    with pytest.raises(ConfigError, match=r"no part-\*.parquet in it; remove .* and prepare again"):
        Prepared.open(prepared.folder).events(0, 1)


def test_find_user(tmp_path):
    path = write_text(tmp_path / "log.csv", "u,i,t\n5,1,1\n-7,2,2\n")
    prepared = run(tmp_path, path)
    assert prepared.user_ids([prepared.find_user(-7)]) == [-7]
    assert prepared.find_user("5") == prepared.find_user(5)
    for other in ("005", "+5", "5 ", "-07", "-0", "٥", "5.0"):
        with pytest.raises(ConfigError, match="is not in the log"):
            prepared.find_user(other)
    with pytest.raises(ConfigError, match="user 9 is not in the log; ids of column 'u' are int64, such as"):
        prepared.find_user(9)


def test_missing_damaged_and_foreign_folders(tmp_path):
    with pytest.raises(ConfigError, match="no prepared log .* run `recgpt prepare"):
        Prepared.open(tmp_path / "none")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged .*; remove the folder"):
        Prepared.open(tmp_path)
    (tmp_path / "summary.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match="prepared in format 0, this version reads"):
        Prepared.open(tmp_path)
