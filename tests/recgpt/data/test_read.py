"""Bad input: one clear line each, naming the field, the value and the remedy."""

import datetime
import decimal
import gzip
import re

import numpy as np
import pyarrow as pa
import pytest

from recgpt.data import source
from recgpt.errors import RecGPTError
from tests.recgpt.data.logfiles import history, refused, rejects, run, write_parquet, write_text

GOOD = {"u": [1, 1, 1, 2], "i": [10, 11, 12, 10], "t": [100, 200, 300, 100]}


def log(tmp_path, name="log.parquet", **changes):
    return write_parquet(tmp_path / name, GOOD | changes)


def test_missing_file(tmp_path):
    line = refused(tmp_path, f"{tmp_path}/none.parquet")
    assert line.startswith("data.events: no file matches")
    assert "none.parquet" in line


def test_missing_column_names_the_nearest_and_all(tmp_path):
    line = refused(tmp_path, log(tmp_path), user="uu")
    assert line == "data.user: no column 'uu' in log.parquet; did you mean 'u'? columns: u, i, t"
    line = refused(tmp_path, log(tmp_path), outcomes={"click": {"kind": "binary"}})
    assert line.startswith("data.outcomes.click: no column 'click'")


@pytest.mark.parametrize("order", ["t", "row"])
def test_missing_column_of_a_text_names_all_of_the_header(tmp_path, order):
    path = write_text(tmp_path / "log.csv", "u,i,t,score\n1,2,3,4\n")
    line = refused(tmp_path, path, item="it", order=order, time=None)
    assert re.fullmatch(r"data\.item: no column 'it' in log\.csv; did you mean '[it]'\? columns: u, i, t, score", line)
    line = refused(tmp_path, path, where="scor > 1")
    assert "no column 'scor' in log.csv; did you mean 'score'? columns: u, i, t, score" in line
    items = {"path": write_text(tmp_path / "items.csv", "id,title,category\n2,a,b\n"), "id": "id", "title": "titel"}
    line = refused(tmp_path, path, items=items)
    assert line == (
        "data.items.title: no column 'titel' in items.csv; did you mean 'title'? columns: id, title, category"
    )


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([1.0, 1.0, 1.0, 2.0], "float64"),
        (pa.array([1, 1, 1, 2], pa.float32()), "float32"),
        ([True, True, True, False], "boolean"),
        ([decimal.Decimal(1)] * 4, "decimal"),
        ([datetime.date(2020, 1, 1)] * 4, "date"),
        ([b"a"] * 4, "binary"),
    ],
)
def test_ids_of_a_wrong_type(tmp_path, ids, told):
    line = refused(tmp_path, log(tmp_path, u=ids))
    assert line.startswith("data.user: column 'u' is ")
    assert told in line
    assert "integers or text" in line


def test_float_ids_in_text(tmp_path):
    path = write_text(tmp_path / "log.csv", "u,i,t\n1.0,5,1\n2.0,6,2\n")
    line = refused(tmp_path, path)
    assert line.startswith("data.user: column 'u' is numbers with a decimal point")


def test_ids_above_int64(tmp_path):
    ids = pa.array([1, 1, 1, 2**63 + 5], pa.uint64())
    line = refused(tmp_path, log(tmp_path, u=ids))
    assert "data.user: 1 of 4 rows are rejected, id above 2^63-1 (column 'u', such as 9223372036854775813)" in line
    assert "cast the column to text" in line
    assert run(tmp_path, log(tmp_path, u=ids), max_reject_fraction=0.5).n_events == 3


def test_null_and_empty_ids(tmp_path):
    path = log(tmp_path, u=["a", None, "", "b"], i=[10, 11, 12, None])
    line = refused(tmp_path, path)
    assert line.startswith("data.user: 3 of 4 rows are rejected, 2 of them: null or empty id (column 'u', such as ")
    assert "raise data.max_reject_fraction (now 0.01)" in line
    prepared = run(tmp_path, path, max_reject_fraction=0.8)
    assert prepared.summary["rows"] == {
        "in": 4,
        "kept": 1,
        "rejected": 3,
        "filtered": 0,
        "dropped": 0,
    }
    assert rejects(prepared) == [
        ("null or empty id", "data.item", None, 3),
        ("null or empty id", "data.user", "", 2),
        ("null or empty id", "data.user", None, 1),
    ]


def test_time_out_of_range_hints_at_the_unit(tmp_path):
    times = [1_600_000_000_000 + k for k in range(4)]
    line = refused(tmp_path, log(tmp_path, t=times))
    assert "data.time: 4 of 4 rows are rejected, time out of range (column 't', such as 16000000000" in line
    assert "set data.time_unit to ms" in line
    prepared = run(tmp_path, log(tmp_path, t=times), time_unit="ms")
    assert prepared.events(0, 4).time.min() == 1_600_000_000_000_000


@pytest.mark.parametrize(
    ("bad", "unit"),
    [(-1, "s"), (4_102_444_800, "s"), (4_102_444_800_000, "ms"), (2**62, "us"), (-5, "ns")],
)
def test_bounds_of_time(tmp_path, bad, unit):
    path = log(tmp_path, t=[1, 2, 3, bad])
    prepared = run(tmp_path, path, time_unit=unit, max_reject_fraction=0.5)
    assert rejects(prepared) == [("time out of range", "data.time", str(bad), 3)]


@pytest.mark.parametrize("kind", ["timestamp[s]", "timestamp[ms]", "timestamp[us]", "timestamp[ns]"])
def test_timestamps(tmp_path, kind):
    base = np.datetime64("2022-04-28T12:00:00")
    times = pa.array([base, base + 60, base + 120, base]).cast(kind)
    prepared = run(tmp_path, log(tmp_path, t=times))
    start = prepared.users.offset[prepared.find_user(1)]
    moments = prepared.events(start, start + 3).time
    assert moments.tolist() == [1_651_147_200_000_000 + 60_000_000 * k for k in range(3)]


def test_timestamps_with_a_zone_and_out_of_range(tmp_path):
    zone = datetime.timezone(datetime.timedelta(hours=2))
    times = [datetime.datetime(2022, 4, 28, 14, tzinfo=zone)] * 3 + [datetime.datetime(1969, 1, 1, tzinfo=zone)]
    prepared = run(tmp_path, log(tmp_path, t=pa.array(times)), max_reject_fraction=0.5)
    assert set(prepared.events(0, 3).time.tolist()) == {1_651_147_200_000_000}
    assert [row[0] for row in rejects(prepared)] == ["time out of range"]


def test_nanoseconds_with_a_zone(tmp_path):
    """What pandas writes of a clock with a zone."""
    times = pa.array([1_651_147_200_000_000_123] * 4, pa.timestamp("ns", "Europe/Amsterdam"))
    prepared = run(tmp_path, log(tmp_path, t=times))
    assert set(prepared.events(0, 3).time.tolist()) == {1_651_147_200_000_000}


def test_null_time_needs_an_order(tmp_path):
    path = log(tmp_path, t=[100, None, 300, 100], o=[1, 2, 3, 1])
    assert "null time (column 't'" in refused(tmp_path, path)
    prepared = run(tmp_path, path, order="o")
    assert prepared.summary["unknown_times"] == 1
    assert history(prepared, 1) == [10, 11, 12]


def test_wrong_time_type(tmp_path):
    line = refused(tmp_path, log(tmp_path, t=["a", "b", "c", "d"]))
    assert line.startswith("data.time: column 't' is string; a clock is an integer or a timestamp")


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("binary", 2.0, "outcome is not 0 or 1"),
        ("binary", float("nan"), "NaN"),
        ("regression", float("nan"), "NaN"),
        ("regression", float("inf"), "not finite"),
        ("regression", 1e39, "not finite"),
        ("watch_time", -1.0, "negative watch time"),
    ],
)
def test_bad_outcomes(tmp_path, kind, value, reason):
    path = log(tmp_path, x=[0.0, None, 1.0, value])
    outcomes = {"x": {"kind": kind}}
    line = refused(tmp_path, path, outcomes=outcomes)
    assert f"data.outcomes.x: 1 of 4 rows are rejected, {reason} (column 'x', such as {value!r})" in line
    prepared = run(tmp_path, path, outcomes=outcomes, max_reject_fraction=0.5)
    start = prepared.users.offset[prepared.find_user(1)]
    np.testing.assert_array_equal(prepared.events(start, start + 3).outcomes["x"], [0, np.nan, 1])


def test_nan_context_and_wrong_kinds(tmp_path):
    path = log(tmp_path, x=[0.0, None, 1.0, float("nan")], word=["a", "b", "c", "d"])
    assert "data.context.x: 1 of 4 rows are rejected, NaN" in refused(
        tmp_path, path, context={"x": {"kind": "numeric"}}
    )
    line = refused(tmp_path, path, context={"x": {"kind": "categorical"}})
    assert line.startswith("data.context.x: column 'x' is float64; floating point cannot hold every id")
    line = refused(tmp_path, path, outcomes={"word": {"kind": "regression"}})
    assert line.startswith("data.outcomes.word: column 'word' is string, not a number")


def test_text_that_does_not_parse(tmp_path):
    rows = "".join(f"{k},5,{k},{'x' if k == 7 else ''}\n" for k in range(200))
    path = write_text(tmp_path / "log.csv", "u,i,t,y\n" + rows + "300,5,soon,\n")
    prepared = run(tmp_path, path, outcomes={"y": {"kind": "regression"}})
    assert rejects(prepared) == [
        ("not a number", "data.outcomes.y", "x", 7),
        ("not a time", "data.time", "soon", 200),
    ]


def test_lines_of_a_wrong_width(tmp_path):
    rows = "".join(f"{k},5,{k}\n" for k in range(200))
    path = write_text(tmp_path / "log.csv", "u,i,t\n" + rows + "1,2\n")
    prepared = run(tmp_path, path)
    assert prepared.summary["rows"] == {
        "in": 201,
        "kept": 200,
        "rejected": 1,
        "filtered": 0,
        "dropped": 0,
    }
    assert rejects(prepared) == [("wrong number of fields", "data.format", "1,2", 200)]


@pytest.mark.parametrize("header", [True, False])
def test_row_numbers_stay_true_after_lines_of_a_wrong_width(tmp_path, header, monkeypatch):
    monkeypatch.setattr(source, "BLOCK_BYTES", 128)  # many blocks: the numbers must go on from one to the next
    rows = [f"{k},5,{k}" for k in range(300)]
    for k in (10, 11, 150):
        rows[k] = "1,2"
    bad = (0, 9, 12, 151, 299)
    for k in bad:
        rows[k] = f"{k},5,soon"
    files = []
    for name, lines in (("a", rows[:200]), ("b", rows[200:])):
        text = "\n".join([*(["u,i,t"] if header else []), *lines[:50], "", *lines[50:]])
        files.append(write_text(tmp_path / f"{name}.csv", text + "\n"))
    layout = {} if header else {"header": False, "columns": ["u", "i", "t"]}
    prepared = run(tmp_path, files, format=layout, max_reject_fraction=0.5)
    assert rejects(prepared) == sorted(
        [("wrong number of fields", "data.format", "1,2", k) for k in (10, 11, 150)]
        + [("not a time", "data.time", "soon", k % 200) for k in bad],
        key=str,
    )


def test_wrong_delimiter(tmp_path):
    path = write_text(tmp_path / "log.txt", "1,5,3\n2,6,4\n")
    line = refused(tmp_path, path, format={"header": False, "columns": ["u", "i", "t"]})
    assert "data.format: 2 of 2 rows are rejected, wrong number of fields (expected 3, found 1 in '1,5,3')" in line
    assert "check data.format.delimiter" in line


@pytest.mark.parametrize("name", ["log.csv", "log.csv.gz", "log.parquet"])
def test_empty_log(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        write_parquet(path, {k: pa.array([], pa.int64()) for k in GOOD})
    else:
        data = b"u,i,t\n"
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert refused(tmp_path, str(path)) == f"data.events: {name} has no rows; name a log with events"


@pytest.mark.parametrize("damaged", ["log-1", "items"])
def test_parquet_with_a_damaged_body(tmp_path, damaged):
    n = 5_000
    columns = {"u": [f"user {k}" for k in range(n)], "i": [f"item {k % 7}" for k in range(n)], "t": list(range(n))}
    for name in ("log-0", "log-1", "items"):
        write_parquet(tmp_path / f"{name}.parquet", columns, compression="zstd", use_dictionary=False)
    path = tmp_path / f"{damaged}.parquet"
    data = bytearray(path.read_bytes())
    data[40 : len(data) // 2] = b"\xff" * (len(data) // 2 - 40)
    path.write_bytes(data)
    line = refused(tmp_path, f"{tmp_path}/log-*.parquet", items={"path": f"{tmp_path}/items.parquet", "id": "i"})
    assert line.startswith(f"{path}: damaged Parquet file (")
    assert line.endswith("); copy it anew")


def test_empty_and_broken_files(tmp_path):
    assert "is empty; the log has no rows" in refused(tmp_path, write_text(tmp_path / "log.csv", ""))
    whole = gzip.compress(b"u,i,t\n" + b"1,2,3\n" * 10_000)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "Truncated" in refused(tmp_path, f"{tmp_path}/cut.csv.gz")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1nothing")
    assert "no whole Parquet file" in refused(tmp_path, f"{tmp_path}/cut.parquet")
    (tmp_path / "latin.csv").write_bytes("u,i,t\né,2,3\n".encode("latin-1"))
    assert "UTF-8" in refused(tmp_path, f"{tmp_path}/latin.csv")
    (tmp_path / "log.xlsx").write_bytes(b"x")
    assert "neither Parquet" in refused(tmp_path, f"{tmp_path}/log.xlsx")


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("t >", "is no SQL condition"),
        ("1; DROP TABLE log", "it is no single condition"),
        ("part = 'x'", "no column 'part'"),
        ('i = "x"', "a text stands in single quotes"),
        ("t + 1", "not boolean"),
        ("count(*) > 1", "columns of the same row"),
        ("t IN (SELECT 1)", "columns of the same row"),
        ("nosuch(t)", "is no SQL condition"),
    ],
)
def test_bad_where(tmp_path, where, told):
    line = refused(tmp_path, log(tmp_path), where=where)
    assert line.startswith("data.where: ")
    assert told in line


def test_where_counts_the_filtered(tmp_path):
    path = log(tmp_path, part=["a", None, "b", "a"], u=[1, 1, None, 2])
    prepared = run(tmp_path, path, where="part = 'a' AND t < 1000")
    assert prepared.summary["rows"] == {
        "in": 4,
        "kept": 2,
        "rejected": 0,
        "filtered": 2,
        "dropped": 0,
    }
    assert "leaves none of 4 rows" in refused_after(tmp_path, path, where="t > 1000")


def refused_after(tmp_path, path, **changes):
    other = tmp_path / "other"
    other.mkdir()
    return refused(other, path, **changes)


def test_where_on_text_compares_numbers(tmp_path):
    path = write_text(tmp_path / "log.csv", "u,i,t,score\n1,5,1,9\n1,6,2,10\n1,7,3,\n")
    assert history(run(tmp_path, path, where="score >= 10"), 1) == [6]


def test_a_condition_that_fails_on_a_row(tmp_path):
    path = log(tmp_path, part=["1", "2", "x", "4"])
    with pytest.raises(RecGPTError, match="reading the log failed .*'x'.*data.where") as error:
        run(tmp_path, path, where="CAST(part AS BIGINT) > 1")
    assert "\n" not in str(error.value)
