"""The item side table."""

import numpy as np
import pyarrow as pa
import pytest

from recgpt.data.hashing import hash_id
from tests.recgpt.data.logfiles import refused, run, write_parquet, write_text

SIDE = {
    "id": [30, 10, 10, None, 99],
    "kind": ["film", "book", "film", "x", "y"],
    "name": ["Thirty", None, "again", "none", "unseen"],
    "size": [3.5, None, 7.0, 1.0, 1.0],
    "vector": [[1.0, 2.0], [3.0, 4.0], None, [0.0, 0.0], [0.0, 0.0]],
}
SECTION = {
    "id": "id",
    "category": "kind",
    "title": "name",
    "embedding": "vector",
    "features": {"size": {"kind": "numeric"}, "kind": {"kind": "categorical"}},
}


@pytest.fixture
def log(tmp_path):
    return write_parquet(tmp_path / "log.parquet", {"u": [1, 1, 1], "i": [10, 20, 30], "t": [1, 2, 3]})


def side(tmp_path, **changes):
    return write_parquet(tmp_path / "side.parquet", SIDE | changes)


def test_columns_are_joined_by_id(tmp_path, log):
    prepared = run(tmp_path, log, items=SECTION | {"path": side(tmp_path)})
    items = prepared.items
    row = {item: k for k, item in enumerate(items.ids.to_pylist())}
    order = [row[10], row[20], row[30]]
    assert items.category[order].tolist() == [hash_id("book"), 0, hash_id("film")]
    assert [items.title[k] for k in order] == [None, None, "Thirty"]
    np.testing.assert_array_equal(items.features["size"][order], np.float32([np.nan, np.nan, 3.5]))
    np.testing.assert_array_equal(items.features["kind"][order], items.category[order])
    np.testing.assert_array_equal(items.embedding[order], np.float32([[3, 4], [np.nan, np.nan], [1, 2]]))
    schema = prepared.schema
    assert (schema.content_dim, schema.has_category) == (2, True)
    assert schema.features == {"size": "numeric", "kind": "categorical"}
    told = "\n".join(prepared.summary["warnings"])
    assert "1 of 3 items of the log have no row in data.items, such as 20" in told
    assert "1 rows of data.items repeat an id: the first row counts" in told
    assert "1 rows of data.items have a null or empty id" in told
    assert "1 items of data.items have no event in the log: left out" in told


def test_text_side_table(tmp_path, log):
    path = write_text(tmp_path / "side.csv", "id,kind,size\n10,film,2.5\n20,,\n")
    section = {
        "path": path,
        "id": "id",
        "category": "kind",
        "features": {"size": {"kind": "numeric"}},
    }
    items = run(tmp_path, log, items=section).items
    row = {item: k for k, item in enumerate(items.ids.to_pylist())}
    assert items.category[[row[10], row[20]]].tolist() == [hash_id("film"), 0]
    np.testing.assert_array_equal(items.features["size"][[row[10], row[20]]], np.float32([2.5, np.nan]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"id": ["a", "b", "c", "d", "e"]},
            "data.items.id: column 'id' is string, but the log's item ids are int64",
        ),
        (
            {"id": [1.0, 2.0, 3.0, 4.0, 5.0]},
            "data.items.id: column 'id' is double; integers or text",
        ),
        (
            {"size": [float("nan")] * 5},
            "data.items.features.size: column 'size' holds NaN or infinity",
        ),
        ({"size": ["a"] * 5}, "data.items.features.size: column 'size' is string, not a number"),
        ({"vector": [1.0] * 5}, "data.items.embedding: column 'vector' is double, not list<float>"),
        (
            {"vector": [[1.0], [1.0, 2.0], [1.0], None, None]},
            "holds vectors of widths [1, 2]; one width is needed",
        ),
        ({"vector": [[1.0, float("nan")]] * 5}, "the vector of item "),
        ({"kind": [1.5] * 5}, "data.items.category: column 'kind' is double; integers or text"),
    ],
)
def test_bad_side_tables(tmp_path, log, changes, told):
    line = refused(tmp_path, log, items=SECTION | {"path": side(tmp_path, **changes)})
    assert told in line


def test_missing_side_table_and_column(tmp_path, log):
    line = refused(tmp_path, log, items={"path": f"{tmp_path}/none.parquet", "id": "id"})
    assert line.startswith("data.items.path: no file matches")
    line = refused(tmp_path, log, items={"path": side(tmp_path), "id": "idd"})
    assert line.startswith("data.items.id: no column 'idd' in side.parquet; did you mean 'id'?")


def test_large_and_fixed_lists(tmp_path, log):
    vectors = pa.array(SIDE["vector"], pa.list_(pa.float32(), 2))
    fixed = run(tmp_path, log, items=SECTION | {"path": side(tmp_path, vector=vectors)}).items.embedding
    large = pa.array(SIDE["vector"], pa.large_list(pa.float64()))
    other = run(tmp_path, log, items=SECTION | {"path": side(tmp_path, vector=large)}).items.embedding
    np.testing.assert_array_equal(fixed, other)
