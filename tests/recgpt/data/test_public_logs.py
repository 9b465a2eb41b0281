"""The public logs through the ready configs, against plain computations.

Skipped where the logs are absent.
"""

import gzip
import os
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

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
