"""The digest of what was prepared."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.data.content import ContentDigest
from recgpt.data.prepare import prepare
from tests.recgpt.data.logfiles import config, write_parquet

COLUMNS = {
    "u": [1, 1, 1, 2, 2],
    "i": [5, 6, 7, 5, 6],
    "t": [1, 2, 3, 4, None],
    "o": [1, 2, 3, 4, 5],
    "y": [0.0, None, 1.0, 1.0, 0.0],
    "c": ["a", "b", None, "a", "b"],
}


def content(tmp_path, name, order=(0, 1, 2, 3, 4), **changes):
    columns = {key: [values[k] for k in order] for key, values in (COLUMNS | changes).items()}
    path = write_parquet(tmp_path / f"{name}.parquet", columns)
    section = config(path, order="o", outcomes={"y": {"kind": "binary"}}, context={"c": {"kind": "categorical"}})
    prepared = prepare(section, tmp_path / name, progress=False)
    assert prepared.content == prepared.summary["content"]
    return prepared.content


def test_equal_logs_have_equal_digests(tmp_path):
    first = content(tmp_path, "first")
    assert len(first) == 32
    assert int(first, 16) > 0
    assert content(tmp_path, "again") == first
    assert content(tmp_path, "another order in the file", order=(3, 0, 4, 2, 1)) == first


@pytest.mark.parametrize(
    "changes",
    [
        {"u": [1, 1, 1, 3, 3]},
        {"i": [5, 6, 7, 5, 8]},
        {"t": [1, 2, 4, 4, None]},
        {"t": [0, 2, 3, 4, None]},
        {"t": [None, 2, 3, 4, None]},
        {"o": [2, 1, 3, 4, 5]},
        {"y": [0.0, 0.0, 1.0, 1.0, 0.0]},
        {"y": [1.0, None, 1.0, 1.0, 0.0]},
        {"c": ["a", "b", None, "a", "x"]},
    ],
    ids=str,
)
def test_one_changed_value_changes_the_digest(tmp_path, changes):
    assert content(tmp_path, "first") != content(tmp_path, "changed", **changes)


ITEMS = {
    "id": [5, 6, 7],
    "kind": ["a", "b", None],
    "size": [1.0, None, 2.0],
    "vector": [[1.0, 2.0], [3.0, 4.0], None],
    "title": ["x", "y", "z"],
}
USERS = {"id": [1, 2], "plan": ["a", None], "age": [1.0, 2.0]}


def side_content(tmp_path, name, **changes):
    def table(kind, columns):
        mine = {key: changes.get(key, values) for key, values in columns.items()}
        return write_parquet(tmp_path / f"{name} {kind}.parquet", mine)

    kinds = {"kind": "categorical", "size": "numeric", "plan": "categorical", "age": "numeric"}
    features = {key: {"kind": kind} for key, kind in kinds.items()}
    items = {"path": table("items", ITEMS), "id": "id", "title": "title", "embedding": "vector", "category": "kind"}
    section = config(
        write_parquet(tmp_path / f"{name}.parquet", COLUMNS),
        order="o",
        items=items | {"features": {key: features[key] for key in ("kind", "size")}},
        users={"path": table("users", USERS), "id": "id", "features": {key: features[key] for key in ("plan", "age")}},
    )
    return prepare(section, tmp_path / name, progress=False).content


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ["a", "b", "c"]},
        {"size": [1.0, 0.0, 2.0]},
        {"vector": [[1.0, 2.0], [3.0, 5.0], None]},
        {"vector": [[1.0, 2.0], None, [3.0, 4.0]]},
        {"plan": ["a", "b"]},
        {"age": [1.0, None]},
    ],
    ids=str,
)
def test_a_changed_value_of_a_side_table_changes_the_digest(tmp_path, changes):
    assert side_content(tmp_path, "first") != side_content(tmp_path, "changed", **changes)


def test_a_changed_title_does_not(tmp_path):
    assert side_content(tmp_path, "first") == side_content(tmp_path, "changed", title=["x", "y", "another"])


def test_vectors_are_hashed_in_any_runs():
    def digest(*parts):
        found = ContentDigest()
        for rows in parts:
            found.update("t", pa.table({"v": pa.array(rows, pa.list_(pa.float32(), 2))}))
        return found.hexdigest()

    assert digest([[1, 2], [3, 4], [5, 6]]) == digest([[1, 2]], [[3, 4], [5, 6]])
    assert digest([[1, 2], [3, 4]]) != digest([[1, 2], [4, 3]])
    whole = pa.table({"v": pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2))})
    cut, same = ContentDigest(), ContentDigest()
    cut.update("t", whole.slice(1))
    same.update("t", pa.table({"v": pa.array([[3, 4], [5, 6]], pa.list_(pa.float32(), 2))}))
    assert cut.hexdigest() == same.hexdigest()


def test_the_runs_of_rows_do_not_matter(tmp_path):
    def digest(*parts):
        found = ContentDigest()
        for values, flags in parts:
            found.update("t", pa.table({"x": pa.array(values, pa.float32()), "b": pa.array(flags, pa.bool_())}))
        return found.hexdigest()

    whole = digest(([1, None, 0, 4], [True, False, None, True]))
    assert digest(([1], [True]), ([None, 0], [False, None]), ([4], [True])) == whole
    assert digest(([1, 0, None, 4], [True, False, None, True])) != whole  # another place of the null
    assert digest(([1, None, 0, 4], [True, False, False, True])) != whole


def test_the_time_of_writing_and_the_folder_do_not_enter(tmp_path):
    first = content(tmp_path, "first")
    table = pq.read_table(tmp_path / "first.parquet")
    pq.write_table(table, tmp_path / "first.parquet", compression="none", row_group_size=2)
    section = config(
        str(tmp_path / "first.parquet"),
        order="o",
        outcomes={"y": {"kind": "binary"}},
        context={"c": {"kind": "categorical"}},
    )
    assert prepare(section, tmp_path / "second", progress=False).content == first
