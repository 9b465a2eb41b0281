"""The bounded look at a log."""

from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.errors import ConfigError
from recgpt.init.sample import read_sample


def test_kinds_of_text(tmp_path: Path) -> None:
    rows = ["int,zero,point,when,word,none,junk"]
    rows += [
        f"{n - 3},{n:03d},{n}.5,2024-05-{n % 28 + 1:02d} 10:00,w{n % 2},,{'NA' if n == 7 else n}" for n in range(400)
    ]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    sample = read_sample([tmp_path / "log.csv"], "LOG")
    kinds = {column.name: column.kind for column in sample.columns}
    assert kinds == {
        "int": "integer",
        "zero": "text",  # leading zeros: an id, not a number
        "point": "float",
        "when": "moment",
        "word": "text",
        "none": "text",
        "junk": "integer",
    }
    assert (sample.rows, sample.total, sample.text) == (400, 400, True)
    assert sample.column("int").values.to_pylist() == [n - 3 for n in range(400)]
    assert sample.column("int").range == (-3, 396)
    assert sample.column("when").values[0].as_py() == dt.datetime(2024, 5, 1, 10, tzinfo=dt.UTC)
    assert (sample.column("none").known, sample.column("none").missing) == (0, 1)
    assert (sample.column("junk").odd, sample.column("junk").known) == (1 / 400, 399)
    assert sample.column("word").distinct == 2


def test_rows_keep_their_order_in_every_column(tmp_path: Path) -> None:
    """What is compared row by row must come from the same row, in a file that the engine reads in pieces."""
    n = 300_000
    pq.write_table(pa.table({"a": np.arange(n), "b": [f"v{k}" for k in range(n)]}), tmp_path / "log.parquet")
    sample = read_sample([tmp_path / "log.parquet"], "LOG")
    assert (sample.rows, sample.total) == (200_000, n)
    assert sample.column("a").values.to_pylist() == list(range(200_000))
    assert sample.column("b").values[123_456].as_py() == "v123456"


def test_footers_tell_of_the_whole_log(tmp_path: Path) -> None:
    """Nulls and ranges beyond the sampled rows."""
    first = pa.table({"t": [5, 6, 7, 8], "x": ["a", "b", "", "d"]})
    second = pa.table({"t": pa.array([None, None, 1, 9], pa.int64()), "x": ["a", "b", "c", "d"]})
    for name, table in (("0", first), ("1", second)):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    sample = read_sample([tmp_path / "0.parquet", tmp_path / "1.parquet"], "LOG", rows=2)
    assert (sample.rows, sample.total) == (2, 8)
    assert (sample.column("t").missing, sample.column("t").range) == (0.25, (1, 9))
    assert sample.column("x").missing == 0  # of the sample: no footer tells of empty texts


def test_columns_of_every_parquet_type(tmp_path: Path) -> None:
    when = dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
    table = pa.table(
        {
            "u64": pa.array([1, 2], pa.uint64()),
            "f32": pa.array([0.5, float("nan")], pa.float32()),
            "yes": [True, None],
            "dict": pa.array(["a", "b"]).dictionary_encode(),
            "day": pa.array([dt.date(2024, 5, 1)] * 2),
            "us": pa.array([when, None], pa.timestamp("us", "UTC")),
            "vector": pa.array([[0.1, 0.2], [0.3, 0.4]], pa.list_(pa.float32())),
            "struct": [{"a": 1}, {"a": 2}],
            "bytes": pa.array([b"x", b"y"]),
            "decimal": pa.array([1, 2], pa.decimal128(10, 2)),
            "__hidden": [1, 2],
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    sample = read_sample([tmp_path / "log.parquet"], "LOG")
    assert {column.name: column.kind for column in sample.columns} == {
        "u64": "integer",
        "f32": "float",
        "yes": "boolean",
        "dict": "text",
        "day": "moment",
        "us": "moment",
        "vector": "list",
        "struct": "other",
        "bytes": "other",
        "decimal": "other",
    }
    assert sample.column("f32").nans == 0.5
    assert sample.column("f32").values.to_pylist() == [0.5, None]
    assert sample.column("yes").is_01
    assert sample.column("day").values[0].as_py() == when
    assert "__hidden" in sample.doubts[0]


def test_a_name_that_stands_twice_in_parquet(tmp_path: Path) -> None:
    """Each is called as `prepare` will call it, and has its own values."""
    columns = [pa.array([1, 2]), pa.array([3, 4]), pa.array([5, None]), pa.array([7, 8])]
    pq.write_table(pa.Table.from_arrays(columns, names=["a", "b", "a", "A"]), tmp_path / "log.parquet")
    sample = read_sample([tmp_path / "log.parquet"], "LOG")
    assert {column.name: column.values.to_pylist() for column in sample.columns} == {
        "a": [1, 2],
        "b": [3, 4],
        "a_1": [5, None],
        "A_2": [7, 8],
    }
    assert [column.missing for column in sample.columns] == [0, 0, 0.5, 0]


def test_a_large_text_file_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "user,item\n" + "".join(f"{n},{n % 7}\n" for n in range(5000))
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
    for limit, rows in ((("ROWS", 100), 5000), (("TEXT_BYTES", 2000), None)):
        with monkeypatch.context() as patch:
            patch.setattr(f"recgpt.init.sample.{limit[0]}", limit[1])
            sample = read_sample([tmp_path / "log.csv.gz"], "LOG")
        if rows is None:
            assert 100 < sample.rows < 400
            assert sample.total is None
            assert sample.column("user").values[-1].as_py() == sample.rows - 1  # no half line at the end
    few = read_sample([tmp_path / "log.csv.gz"], "LOG", rows=100)
    assert (few.rows, few.total) == (100, None)


def test_bytes_that_are_no_utf8_are_latin_1(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"user,title\n1,caf\xe9\n2,x\n")
    sample = read_sample([tmp_path / "log.csv"], "LOG")
    assert sample.column("user").values.to_pylist() == [1, 2]
    assert sample.column("title").values.to_pylist() == ["caf\xe9", "x"]
    assert sample.layout is not None
    assert sample.layout.settings == {"encoding": "latin-1"}
    assert "the file is not UTF-8 and was read as latin-1" in sample.doubts[-1]


@pytest.mark.parametrize("delimiter", [b",", b"::"])
def test_bytes_that_turn_out_to_be_no_utf8_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delimiter: bytes
) -> None:
    monkeypatch.setattr("recgpt.init.layout.HEAD_BYTES", 14)
    (tmp_path / "log.csv").write_bytes(b"user,title\n1,caf\xe9\n2,x\n".replace(b",", delimiter))
    assert read_sample([tmp_path / "log.csv"], "LOG").column("title").values.to_pylist() == ["caf\ufffd", "x"]


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "b.csv", "c.parquet"):
        (tmp_path / name).write_text("user,item\n1,2\n")
    with pytest.raises(ConfigError, match=r"LOG: 'a\.json' is neither Parquet .* nor text"):
        read_sample([tmp_path / "a.json"], "LOG")
    with pytest.raises(ConfigError, match="LOG: Parquet and text files are mixed"):
        read_sample([tmp_path / "b.csv", tmp_path / "c.parquet"], "LOG")
    with pytest.raises(ConfigError, match=r"c\.parquet is no whole Parquet file"):
        read_sample([tmp_path / "c.parquet"], "LOG")
