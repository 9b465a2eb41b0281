"""Tables of callers: every kind, and values held to what preparing the log demands."""

from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recgpt.data.events import NO_TIME
from recgpt.data.hashing import hash_id
from recgpt.data.prepare import prepare
from recgpt.data.schema import DataConfig
from recgpt.data.table import read_events, read_features
from recgpt.errors import ConfigError, RecGPTError
from tests.recgpt.builders import columns, recgpt, schema


def as_tables(table: dict) -> list:
    arrow = pa.table(table)
    return [table, arrow, arrow.to_pandas(types_mapper=pd.ArrowDtype), pl.from_arrow(arrow), datasets.Dataset(arrow)]


def test_every_kind_of_table_gives_one_state() -> None:
    model = recgpt()
    states = [model.encode(table) for table in as_tables(columns(12))]
    for state in states[1:]:
        assert torch.equal(state.embedding, states[0].embedding)
        assert state.content_hash == states[0].content_hash


def test_ids_of_any_size_and_script_are_told_apart() -> None:
    model = recgpt()
    big = 2**63 - 1
    assert model.events({"item": [big, big - 1, -(2**63)]}).item.tolist() == [
        model.events({"item": [str(i)]}).item[0] for i in (big, big - 1, -(2**63))
    ]
    strings = ["ключ", "鍵", "clé", "cle\u0301", "🗝", " key", "key"]
    assert len(set(model.events({"item": strings}).item)) == len(strings)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"item": [1.0, 2.0]}, r"events\.item: ids are floating point \(first: 1\.0\); give integers or strings"),
        ({"item": [1, None]}, r"events\.item: null or empty at row 1; leave that event out"),
        ({"itme": [1]}, r"no item column 'item'; did you mean 'itme'"),
        ({"item": [True]}, r"events\.item: type bool is no id; give integers or strings"),
        ({"item": [1.5, "a"]}, r"events: a column mixes types"),
        ({"item": [2**63]}, r"events: a column mixes types"),
        ({"item": np.array([2**63], np.uint64)}, r"events\.item: 9223372036854775808 at row 0 is above 2\^63-1; give"),
        ({"item": 5}, r"events: a column mixes types or lengths"),
        ({"item": [1], "time": [1_600_000_000_000]}, r"events\.time: 1600000000000 .* no time .*; give times in s"),
        ({"item": [1], "time": [-5]}, r"events\.time: -5 at row 0 is no time from 1970 to 2099"),
        ({"item": [1], "time": [float("nan")]}, r"events\.time: nan at row 0 is no time; give null"),
        ({"item": [1], "time": [float("inf")]}, r"events\.time: inf at row 0 is no time from"),
        ({"item": [1], "time": np.ones(1, np.float32)}, r"events\.time: type float is no time"),
        ({"item": [1], "time": [datetime(1969, 12, 31)]}, r"events\.time: 1969-12-31 .*; correct the clock"),
        ({"item": [1, 2, 3], "time": [7, None, 6]}, r"events\.time: 6 at row 2 is before .*; give events oldest first"),
        ({"item": [1], "time": ["noon"]}, r"events\.time: type string is no time"),
        ({"item": [1], "click": [float("nan")]}, r"events\.click: nan at row 0 is no number; give null"),
        ({"item": [1], "click": ["yes"]}, r"events\.click: type string is no number"),
        ({"item": [1], "click": ["1"]}, r"events\.click: type string is no number"),
        ({"item": [1, 2], "click": [None, 2]}, r"events\.click: 2 at row 1 is not 0 or 1; give 0, 1 or null"),
        ({"item": [1], "click": [0.7]}, r"events\.click: 0\.7 at row 0 is not 0 or 1"),
        ({"item": [1], "click": [-1]}, r"events\.click: -1 at row 0 is not 0 or 1"),
        ({"item": [1], "seconds": [-0.5]}, r"events\.seconds: -0\.5 at row 0 is a negative watch time"),
        ({"item": [1], "volume": [float("-inf")]}, r"events\.volume: -inf at row 0 is not finite; give null"),
        ({"item": [1], "volume": [1e39]}, r"events\.volume: 1e\+39 at row 0 is not finite"),
        ({"item": [1], "device": [1.0]}, r"events\.device: ids are floating point"),
        ({"item": [1], "clik": [1]}, r"events\.clik: .*did you mean 'click'\? rename it, or leave it out"),
        ({"item": [1], "devise": ["a"]}, r"events\.devise: .*did you mean 'device'"),
        ({"item": [1], "tme": [1]}, r"events\.tme: .*did you mean 'time'"),
        ({"item": [1, "a"]}, r"events: a column mixes types"),
        ({"item": [""]}, r"events\.item: null or empty at row 0"),
        ([1, 2], r"events: got list; give a dict of columns"),
    ],
)
def test_bad_events_are_refused_by_name(table: object, message: str) -> None:
    with pytest.raises(RecGPTError, match=message) as error:
        recgpt().encode(table)
    assert "\n" not in str(error.value)


def times(column: object, unit: str = "s") -> list[int]:
    return read_events({"item": [1] * len(column), "time": column}, schema(time_unit=unit)).time.tolist()


def test_times_by_hand() -> None:
    assert times([1, None, 3]) == [1_000_000, NO_TIME, 3_000_000]
    assert times([0.5, 1.0000015]) == [500_000, 1_000_002]  # half a microsecond goes up
    assert times([1.5, None], "ms") == [1_500, NO_TIME]
    assert times([1_999, 2_000], "ns") == [1, 2]
    assert times(np.array([1_999, 2_000], "datetime64[ns]"), "s") == [1, 2]
    assert times(pd.Series(pd.to_datetime([1_999, None], unit="ns"))) == [1, NO_TIME]
    east = datetime(1970, 1, 1, 3, tzinfo=timezone(timedelta(hours=2)))
    assert times([datetime(1970, 1, 1, 1), east]) == [3_600_000_000, 3_600_000_000]
    assert times([date(1970, 1, 2)]) == [86_400_000_000]
    assert times([None, None]) == [NO_TIME, NO_TIME]


def test_a_clock_that_the_log_lacks_is_not_read() -> None:
    log = schema(time=None, has_time=False)
    assert read_events({"item": [1, 2], "time": [5, 4]}, log).time.tolist() == [NO_TIME] * 2


def test_outcomes_and_categories_by_hand() -> None:
    table = {"item": [1, 2, 3], "click": [True, False, None], "device": ["", None, "tv"], "seconds": [0, 1, None]}
    events = read_events(table, schema())
    np.testing.assert_array_equal(events.outcomes["click"], np.array([1, 0, np.nan], np.float32))
    np.testing.assert_array_equal(events.outcomes["seconds"], np.array([0, 1, np.nan], np.float32))
    assert events.context["device"].tolist() == [0, 0, hash_id("tv")]
    assert np.isnan(events.context["volume"]).all()
    flags = read_events({"item": [1, 2], "device": [True, False]}, schema())
    assert flags.context["device"].tolist() == [hash_id(1), hash_id(0)]
    frame = pd.DataFrame({"item": ["a"], "device": pd.Categorical(["tv"])})
    assert read_events(frame, schema()).context["device"].tolist() == [hash_id("tv")]


def test_a_table_is_read_as_the_log_is(tmp_path: Path) -> None:
    """The same rows, prepared and given, are the same events."""
    table = pa.table(
        {
            "user": ["u"] * 5,
            "item": [5, 3, 5, 1, 2],
            "time": pa.array([1.0000005, 2.25, 2.25, 3e9, 4.1e9]),
            "click": [True, None, False, True, None],
            "seconds": pa.array([0.1, 3e38, None, 0, 2], pa.float64()),
            "device": ["a", "", None, "b", "a"],
            "flag": [True, False, None, True, True],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    config = {
        "events": str(tmp_path / "log.parquet"),
        "user": "user",
        "item": "item",
        "time": "time",
        "outcomes": {"click": {"kind": "binary"}, "seconds": {"kind": "watch_time"}},
        "context": {"device": {"kind": "categorical"}, "flag": {"kind": "categorical"}},
        "prepared": str(tmp_path / "prepared"),
    }
    log = prepare(DataConfig.model_validate(config), progress=False)
    assert log.n_events == 5
    prepared, given = log.events(0, 5).columns(), read_events(table, log.schema).columns()
    assert prepared.keys() == given.keys()
    rows = [np.lexsort((events["item"], events["time"])) for events in (given, prepared)]  # two times are equal
    for name in given:
        np.testing.assert_array_equal(given[name][rows[0]], prepared[name][rows[1]], err_msg=name)


def test_features_by_hand() -> None:
    log = schema(features={"brand": "categorical", "price": "numeric"}, content_dim=2)
    table = {"brand": ["x", None], "embedding": [None, [1, 2.5]]}
    features, content = read_features(table, log, 2)
    assert features.keys() == {"brand"}
    assert features["brand"].tolist() == [hash_id("x"), 0]
    np.testing.assert_array_equal(content, np.array([[np.nan, np.nan], [1, 2.5]], np.float32))
    features, content = read_features({"price": [2, None]}, log, 2)
    np.testing.assert_array_equal(features["price"], np.array([2, np.nan], np.float32))
    assert content is None
    assert read_features({"embedding": np.ones((3, 2))}, log, 3)[1].tolist() == [[1, 1]] * 3
    features, _ = read_features({"tags": [["b", "a", "b"], None, ["3"]]}, schema(), 3)
    assert features["tags"].tolist() == [[hash_id("b"), hash_id("a")], [0, 0], [hash_id(3), 0]]
    assert read_features({"tags": [None, None]}, schema(), 2)[0]["tags"].tolist() == [[0], [0]]


ROWS = [["b", "a"], None, ["a", "c"]]


@pytest.mark.parametrize(
    "tags",
    [
        pa.array(ROWS, pa.list_(pa.large_string(), 2)),
        pa.chunked_array([ROWS[:2], ROWS[2:]]),
        pa.array([["9"], *ROWS], pa.large_list(pa.string()))[1:],
        pa.ListArray.from_arrays(  # values beneath a null, as polars leaves them
            pa.array([0, 2, 4, 6]), pa.array(list("baxyac")), mask=pa.array([False, True, False])
        ),
    ],
)
def test_lists_of_every_form(tags: pa.Array) -> None:
    found = read_features(pa.table({"tags": tags}), schema(), 3)[0]["tags"]
    assert found.tolist() == [[hash_id("b"), hash_id("a")], [0, 0], [hash_id("a"), hash_id("c")]]


def test_no_rows_of_lists() -> None:
    empty = pa.table({"tags": pa.chunked_array([], pa.list_(pa.string()))})
    assert read_features(empty, schema(), 0)[0]["tags"].shape == (0, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"brand": ["x"]}, "features: 1 rows for 2 items; give one row an item"),
        (
            {"tags": ["x", "y"]},
            r"features\.tags: type string is no list; give a list of integers or strings for each item",
        ),
        ({"tags": [[], list(range(65))]}, r"features\.tags: 65 values at row 1, and at most 64 may be; keep those"),
        ({"tags": [[0.5], []]}, r"features\.tags: ids are floating point"),
        ({"brnd": ["x", "y"]}, r"features\.brnd: .*did you mean 'brand'"),
        ({"embeding": [[1.0] * 6] * 2}, r"features\.embeding: .*did you mean 'embedding'"),
        ({"embedding": [[1.0] * 6, [1.0]]}, r"features\.embedding: 1 numbers at row 1; the model reads 6 numbers"),
        ({"embedding": [1.0, 2.0]}, r"features\.embedding: 1\.0 at row 0; the model reads 6"),
        ({"embedding": [None, [float("nan")] * 6]}, r"features\.embedding: the vector at row 1 holds NaN or null"),
        ({"embedding": [None, ["a"] * 6]}, r"features\.embedding: the vector at row 1 holds"),
        ("brand", "features: got str; give a dict"),
    ],
)
def test_bad_features_are_refused_by_name(table: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recgpt().item_vectors([1, 2], table)
