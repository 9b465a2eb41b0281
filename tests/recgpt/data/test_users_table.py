"""The users' side table: profiles."""

import json

import numpy as np
import pytest

from recgpt.config import load_config
from recgpt.data.check import check
from recgpt.data.hashing import hash_id
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.data.schema import DataConfig
from recgpt.errors import ConfigError
from tests.recgpt.data.logfiles import config, refused, run, write_parquet, write_text

SIDE = {
    "id": [30, 10, 10, None, 99],
    "plan": ["free", None, "paid", "x", "y"],
    "age": [3.5, None, 7.0, 1.0, 1.0],
    "level": [2.0, 0.0, 1.0, 1.0, 1.0],
}
FEATURES = {"plan": {"kind": "categorical"}, "age": {"kind": "numeric"}, "level": {"kind": "categorical"}}


@pytest.fixture
def log(tmp_path):
    return write_parquet(tmp_path / "log.parquet", {"u": [10, 20, 30, 30], "i": [1, 1, 1, 2], "t": [1, 2, 3, 4]})


def side(tmp_path, **changes):
    path = write_parquet(tmp_path / "side.parquet", SIDE | changes)
    return {"path": path, "id": "id", "features": FEATURES}


def test_profiles_are_joined_by_id(tmp_path, log):
    prepared = run(tmp_path, log, users=side(tmp_path))
    rows = [prepared.find_user(user) for user in (10, 20, 30, 10)]
    profile = prepared.profile(rows)
    assert list(profile) == list(FEATURES)
    assert profile["plan"].tolist() == [0, 0, hash_id("free"), 0]
    np.testing.assert_array_equal(profile["age"], np.float32([np.nan, np.nan, 3.5, np.nan]))
    assert profile["age"].dtype == np.float32
    assert profile["level"].tolist() == [hash_id(0), 0, hash_id(2), hash_id(0)]  # codes, as pandas writes them
    assert prepared.profile(np.array([], np.int64))["plan"].shape == (0,)
    assert prepared.schema.profile == {"plan": "categorical", "age": "numeric", "level": "categorical"}
    assert prepared.schema.features == {}
    told = "\n".join(prepared.summary["warnings"])
    assert "1 of 3 users of the log have no row in data.users, such as 20: they have no features" in told
    assert "1 rows of data.users repeat an id: the first row counts" in told
    assert "1 rows of data.users have a null or empty id: ignored" in told
    assert "1 users of data.users have no event in the log: left out" in told
    assert prepared.user_ids([0, 1, 2]) == [prepared.user_ids([k])[0] for k in range(3)]


def test_without_a_table_there_is_no_profile(tmp_path, log):
    prepared = run(tmp_path, log)
    assert prepared.profile([0, 1]) == {}
    assert prepared.schema.profile == {}


def test_items_and_users_in_one_config(tmp_path, log):
    write_text(tmp_path / "users.csv", "id,plan,age\n10,free,2.5\n30,,\n")
    write_text(tmp_path / "items.csv", "id,plan,age\n1,thin,4\n2,,5\n")
    features = {"plan": {"kind": "categorical"}, "age": {"kind": "numeric"}}
    tables = {name: {"path": f"{tmp_path}/{name}.csv", "id": "id", "features": features} for name in ("users", "items")}
    prepared = run(tmp_path, log, **tables)
    profile = prepared.profile([prepared.find_user(user) for user in (10, 20, 30)])
    assert profile["plan"].tolist() == [hash_id("free"), 0, 0]
    np.testing.assert_array_equal(profile["age"], np.float32([2.5, np.nan, np.nan]))
    assert sorted(prepared.items.features["plan"].tolist()) == sorted([hash_id("thin"), 0])
    assert [entry["path"].rpartition("/")[2] for entry in prepared.summary["sources"]] == [
        "log.parquet",
        "items.csv",
        "users.csv",
    ]
    inode = prepared.folder.stat().st_ino
    assert run(tmp_path, log, **tables).folder.stat().st_ino == inode
    write_text(tmp_path / "users.csv", "id,plan,age\n10,paid,2.5\n30,,\n")
    assert run(tmp_path, log, **tables).folder.stat().st_ino != inode


def test_text_ids(tmp_path):
    path = write_parquet(tmp_path / "log.parquet", {"u": ["a", "b"], "i": [1, 2], "t": [1, 2]})
    prepared = run(tmp_path, path, users=side(tmp_path, id=["b", "x", "y", "", "z"]))
    rows = [prepared.find_user(user) for user in "ab"]
    assert prepared.profile(rows)["plan"].tolist() == [0, hash_id("free")]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": list("abcde")}, "data.users.id: column 'id' is string, but the log's user ids are int64; write both"),
        ({"id": [1.0] * 5}, "data.users.id: column 'id' is double; integers or text"),
        ({"age": [float("nan")] * 5}, "data.users.features.age: column 'age' holds NaN or infinity"),
        ({"age": ["a"] * 5}, "data.users.features.age: column 'age' is string, not a number"),
        ({"plan": [1.5] * 5}, "data.users.features.plan: column 'plan' is double; integers or text"),
        ({"level": [float("nan")] * 5}, "data.users.features.level: column 'level' is double; integers or text"),
        ({"level": [2.0**53] * 5}, "data.users.features.level: column 'level' is double; integers or text"),
    ],
)
def test_bad_tables(tmp_path, log, changes, told):
    assert refused(tmp_path, log, users=side(tmp_path, **changes)).startswith(told)


def test_missing_table_and_column(tmp_path, log):
    line = refused(tmp_path, log, users={"path": f"{tmp_path}/none.parquet", "id": "id"})
    assert line.startswith("data.users.path: no file matches")
    line = refused(tmp_path, log, users=side(tmp_path) | {"features": {"plann": {"kind": "categorical"}}})
    assert line.startswith("data.users.features.plann: no column 'plann' in side.parquet; did you mean 'plan'?")


@pytest.mark.parametrize("name", ["id", "u"])
def test_the_id_is_no_feature(name):
    users = {"path": "users.csv", "id": "id", "features": {name: {"kind": "categorical"}}}
    with pytest.raises(ConfigError) as error:
        load_config(DataConfig, {"events": "log.csv", "user": "u", "item": "i", "time": "t", "users": users})
    line = str(error.value)
    assert f"users.features: {name!r} is the user id, which the model must not see; remove it" in line
    assert "\n" not in line


def test_suspected_leaks(tmp_path):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 5)
    likes = rng.integers(0, 2, 200)
    path = write_parquet(
        tmp_path / "log.parquet",
        {"u": user, "i": rng.integers(0, 20, 1_000), "t": np.arange(1_000), "y": likes[user]},
    )
    table = {
        "id": rng.permutation(200),
        "n_likes": np.zeros(200),
        "fan": ["no"] * 200,
        "play_cnt": rng.random(200),
        "phone": rng.permutation(200) + 10**9,
        "age": rng.random(200),
        "plan": rng.integers(0, 5, 200),
    }
    table["n_likes"] = (likes * 3.0 + rng.random(200))[table["id"]]
    table["fan"] = np.where(likes[table["id"]] == 1, "yes", "no")
    kinds = {name: "categorical" if name in ("fan", "phone", "plan") else "numeric" for name in table if name != "id"}
    users = {
        "path": write_parquet(tmp_path / "users.parquet", table),
        "id": "id",
        "features": {name: {"kind": kind} for name, kind in kinds.items()},
    }
    leaks = check(config(path, users=users, outcomes={"y": {"kind": "binary"}}))["leaks"]
    told = "\n".join(leaks)
    assert "data.users.features.n_likes: it tells the outcome y (AUC 1.000 alone)" in told
    assert "data.users.features.fan: it tells the outcome y (AUC 1.000 alone)" in told
    assert "data.users.features.play_cnt: by its name" in told
    assert "data.users.features.phone: 200 values for 200 users, so it stands for the user id" in told
    assert "age" not in told
    assert "plan" not in told


def test_an_older_format_is_refused_and_prepared_again(tmp_path, log):
    prepared = run(tmp_path, log)
    path = prepared.folder / "summary.json"
    path.write_text(json.dumps(prepared.summary | {"format": 2}))
    with pytest.raises(ConfigError, match="prepared in format 2, this version reads 4; run prepare again"):
        Prepared.open(prepared.folder)
    assert prepare(config(log), prepared.folder, progress=False).summary["format"] == 4
