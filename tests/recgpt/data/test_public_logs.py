"""The public logs through the ready configs and as impressions, against plain computations.

Skipped where the logs are absent.
"""

import gzip
import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from recgpt.data.hashing import hash_id
from recgpt.data.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("RECGPT_DATA", ROOT.parent / "shared" / "data"))


def ready(monkeypatch, tmp_path, name, file):
    if not (DATA / name / file).exists():
        pytest.skip(f"{name} is not under {DATA} (set RECGPT_DATA)")
    monkeypatch.setenv("RECGPT_DATA", str(DATA))
    return prepare(ROOT / "configs" / "pretrain" / f"{name}.yaml", tmp_path / name, progress=False)


def test_ml_1m_keeps_the_file_order(monkeypatch, tmp_path):
    prepared = ready(monkeypatch, tmp_path, "ml-1m", "ml-1m_sasrec.txt.gz")
    assert (prepared.n_events, prepared.n_users, prepared.n_items) == (999_611, 6_040, 3_416)
    with gzip.open(DATA / "ml-1m" / "ml-1m_sasrec.txt.gz", "rt") as file:
        pairs = np.array([line.split() for line in file], np.int64)
    users, item = prepared.users, np.array(prepared.items.ids)[prepared.item_rows(0, 999_611)]
    for user in (1, 2, 3000, 6040):
        row = prepared.find_user(user)
        start = users.offset[row]
        mine = item[start : start + users.n_events[row]]
        assert mine.tolist() == pairs[pairs[:, 0] == user, 1].tolist()
        assert users.test_target[row] == len(mine) - 1
        assert users.valid_target[row] == users.train_end[row] == len(mine) - 2
    stable = pairs[np.argsort(pairs[:, 0], kind="stable"), 1]
    by_id = np.argsort(prepared.user_ids(range(6_040)))
    mine = np.concatenate([item[users.offset[r] : users.offset[r] + users.n_events[r]] for r in by_id])
    assert np.array_equal(mine, stable)


def test_amazon_beauty_with_items(monkeypatch, tmp_path):
    prepared = ready(monkeypatch, tmp_path, "amazon-beauty", "events.parquet")
    assert (prepared.n_events, prepared.n_users, prepared.n_items) == (198_502, 22_363, 12_101)
    assert prepared.summary["split"]["test"]["users"] == 22_363
    assert sum(title is not None for title in prepared.items.title) > 12_000


def test_kuairand_pure_against_sql(monkeypatch, tmp_path):
    prepared = ready(monkeypatch, tmp_path, "kuairand-pure", "events.parquet")
    valid, test = 1_651_161_600_000, 1_651_248_000_000
    log = f"(SELECT * FROM read_parquet('{DATA}/kuairand-pure/events.parquet') WHERE part <> 'test')"
    rows, users, items, likes, unknown = duckdb.sql(
        f"SELECT count(*), count(DISTINCT user_id), count(DISTINCT video_id), sum(is_like),"
        f" count(*) FILTER (time_ms IS NULL) FROM {log}"
    ).fetchall()[0]
    assert prepared.summary["rows"]["kept"] == rows == 911_971
    assert prepared.summary["rows"]["filtered"] == 133_545
    assert (prepared.n_users, prepared.n_items) == (users, items)
    events = prepared.events(0, rows)
    assert np.nansum(events.outcomes["is_like"]) == likes
    assert np.isnan(events.outcomes["is_like"]).sum() == unknown == prepared.summary["unknown_times"]
    assert events.target.sum() == np.nansum(events.outcomes["long_view"])
    # effective time = running maximum; one target a user: the first long view in the window,
    # history before the cut
    effective = (
        f"SELECT user_id, long_view, row_number() OVER w - 1 AS position,"
        f" max(time_ms) OVER w AS reached FROM {log} WINDOW w AS (PARTITION BY user_id ORDER BY"
        f' "order")'
    )
    for name, low, high in (("valid", valid, test), ("test", test, 2**62)):
        expected = duckdb.sql(
            f"SELECT user_id, coalesce(sum((coalesce(reached, 0) < {low})::int), 0)::BIGINT,"
            f" min(position)"
            f" FILTER (long_view = 1 AND reached >= {low} AND reached < {high}) FROM"
            f" ({effective}) GROUP BY user_id"
        ).fetchnumpy()
        user, cut, target = (np.ma.filled(column, -1) for column in expected.values())
        history, mine = (getattr(prepared.users, f"{name}_{part}") for part in ("history", "target"))
        row = np.array([prepared.find_user(int(one)) for one in user[:300]])
        assert np.array_equal(mine[row], target[:300])
        assert np.array_equal(history[row], np.where(target[:300] < 0, -1, cut[:300]))
        assert (mine >= 0).sum() == (target >= 0).sum() == prepared.summary["split"][name]["users"]
    seen = duckdb.sql(
        f"SELECT DISTINCT video_id FROM (SELECT video_id, max(time_ms) OVER (PARTITION BY user_id"
        f' ORDER BY "order") AS reached FROM {log}) WHERE coalesce(reached, 0) < {valid}'
    ).fetchnumpy()["video_id"]
    assert set(prepared.items.ids.filter(pa.array(prepared.items.valid_candidate)).to_pylist()) == set(seen.tolist())


def kuairand_impressions(tmp_path):
    """KuaiRand-Pure as impressions, validation on 30 April Beijing time; its log as a frame in user order."""
    import pandas as pd

    folder = DATA / "kuairand-pure"
    if not (folder / "events.parquet").exists():
        pytest.skip(f"kuairand-pure is not under {DATA} (set RECGPT_DATA)")
    section = {
        "events": str(folder / "events.parquet"),
        "user": "user_id",
        "item": "video_id",
        "order": "order",
        "time": "time_ms",
        "time_unit": "ms",
        "outcomes": {name: {"kind": "binary"} for name in ("is_click", "long_view", "is_like")},
        "users": {
            "path": str(folder / "user_features.parquet"),
            "id": "user_id",
            "features": {
                "user_active_degree": {"kind": "categorical"},
                "onehot_feat4": {"kind": "categorical"},
                "register_days": {"kind": "numeric"},
            },
        },
        "split": {
            "kind": "where",
            "valid": "part = 'train' and time_ms >= 1651248000000",
            "test": "part = 'test'",
        },
        "impressions": {"where": "part != 'history'"},
    }
    prepared = prepare({"data": section}, tmp_path / "kuairand", progress=False)
    frame = pd.read_parquet(folder / "events.parquet").sort_values(["user_id", "order"], kind="stable")
    return prepared, frame.reset_index(drop=True)


def test_kuairand_impressions_against_pandas(tmp_path):
    import pandas as pd

    prepared, log = kuairand_impressions(tmp_path)
    told = prepared.summary["impressions"]
    assert (told["test"], told["train"] + told["valid"], told["outside"]) == (133_545, 94_784, 0)
    assert told["rows"] == 228_329
    assert log[log.part != "history"].drop(columns="order").duplicated().sum() == 5_875
    assert told["history_cut"] >= 5_875
    train = (log.part == "train") & (log.time_ms < 1_651_248_000_000)
    for name, rate in told["rates"].items():
        assert rate == pytest.approx(log[name][train].mean(), rel=1e-5)

    # a history ends where the run of rows of the impression's own time begins; frozen: where the test part begins
    shown = log.part != "history"
    position = log.groupby("user_id").cumcount()
    run = (position == 0) | ~shown | (log.time_ms != log.time_ms.shift()).fillna(True)
    online = position.where(run).groupby(log.user_id).ffill().astype("int64")
    first_test = position.where(log.part == "test").groupby(log.user_id).transform("min")
    frozen = np.where(log.part == "test", np.minimum(online, first_test), -1)
    expected = pd.DataFrame({"online": online, "frozen": frozen, "part": log.part})[shown]
    expected.index = pd.MultiIndex.from_arrays([log.user_id[shown], position[shown]])

    found = prepared.impressions(0, prepared.n_events)
    user = np.searchsorted(prepared.users.offset, found.place, side="right") - 1
    ids = np.array(prepared.user_ids(range(prepared.n_users)))[user]
    mine = pd.DataFrame({"online": found.online, "frozen": found.frozen, "part": found.part})
    mine.index = pd.MultiIndex.from_arrays([ids, found.place - prepared.users.offset[user]])
    mine = mine.loc[expected.index]
    assert np.array_equal(mine.online, expected.online)
    test = (expected.part == "test").to_numpy()
    assert np.array_equal(mine.part == 2, test)
    assert np.array_equal(mine.frozen[test], expected.frozen[test])
    assert (mine.frozen[test] < mine.online[test]).mean() > 0.5
    assert np.array_equal(mine.part == 1, (expected.part == "train") & ~train[shown].to_numpy())


def test_kuairand_validation_part_and_the_date_column(tmp_path):
    """The log's own `date` runs up to minutes ahead of its clock, so the two cuts at midnight differ by some rows."""
    import pandas as pd

    prepared, log = kuairand_impressions(tmp_path)
    key = ["user_id", "video_id", "time_ms"]
    dated = pd.read_parquet(DATA / "kuairand-pure" / "train.parquet")[[*key, "date"]].drop_duplicates(key)
    train = log[log.part == "train"].merge(dated, on=key, how="left")  # a few copies carry two dates: the first counts
    by_date, by_time = train.date == 20_220_430, train.time_ms >= 1_651_248_000_000
    assert (by_date.sum(), by_time.sum()) == (21_196, 21_040)
    assert prepared.summary["impressions"]["valid"] == 21_040
    assert (by_time & ~by_date).sum() == 0
    assert (by_date & ~by_time).sum() == 156


def test_kuairand_profiles_against_pandas(tmp_path):
    import pandas as pd

    prepared, log = kuairand_impressions(tmp_path)
    table = pd.read_parquet(DATA / "kuairand-pure" / "user_features.parquet").set_index("user_id")
    rows = np.arange(prepared.n_users)
    mine = table.loc[prepared.user_ids(rows)]
    assert set(mine.index) == set(log.user_id)
    profile = prepared.profile(rows)
    assert np.array_equal(profile["register_days"], mine.register_days.to_numpy(np.float32))
    assert profile["user_active_degree"].tolist() == [hash_id(text) for text in mine.user_active_degree]
    codes = [0 if pd.isna(code) else hash_id(int(code)) for code in mine.onehot_feat4]
    assert profile["onehot_feat4"].tolist() == codes
    assert codes.count(0) > 0
