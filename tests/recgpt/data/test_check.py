import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from recgpt.data.check import check, predictive_auc, print_check
from tests.recgpt.data.logfiles import config, write_parquet


def log(tmp_path, **changes):
    rng = np.random.default_rng(0)
    n = 2_000
    click = rng.integers(0, 2, n)
    columns = {
        "u": rng.integers(0, 100, n),
        "i": rng.integers(0, 50, n),
        "t": rng.integers(0, 10**6, n),
        "y": click,
        "dwell": click * 10 + rng.random(n),
        "code": np.where(click, 7, rng.integers(0, 3, n)),
        "play_time": rng.random(n),
        "honest": rng.random(n),
        "unique": rng.permutation(n),
    }
    return write_parquet(tmp_path / "log.parquet", columns | changes)


def test_suspected_leaks(tmp_path):
    context = {name: {"kind": "numeric"} for name in ("dwell", "play_time", "honest")}
    context |= {name: {"kind": "categorical"} for name in ("code", "unique")}
    section = config(log(tmp_path), context=context, outcomes={"y": {"kind": "binary"}})
    leaks = "\n".join(check(section)["leaks"])
    assert "data.context.dwell: it tells the outcome y (AUC 1.000 alone)" in leaks
    assert "data.context.code: it tells the outcome y" in leaks
    assert "data.context.play_time: by its name" in leaks
    assert "honest" not in leaks
    assert "unique" not in leaks


def test_counts_and_columns(tmp_path):
    path = write_parquet(
        tmp_path / "log.parquet",
        {
            "u": [1, 1, 1, 2, None],
            "i": [1, 2, 2, 1, 1],
            "o": [1, 2, 3, 1, 1],
            "t": [5, 4, 4, None, 1],
            "y": [0, 1, 1, None, 0],
        },
    )
    section = config(path, order="o", outcomes={"y": {"kind": "binary"}}, duplicates="fail")
    found = check(section)
    assert found["rows"] == {"in": 5, "kept": 4, "rejected": 1, "filtered": 0, "dropped": 0}
    assert found["columns"]["u"] == {"role": "user", "type": "int64", "nulls": 1}
    assert found["columns"]["t"] == {"role": "time", "type": "int64", "nulls": 1}
    assert found["backward_times"] == 1
    assert found["copies"] == 1
    assert found["one_event_users"] == 1
    assert found["events_per_user"]["max"] == 3
    assert found["time_range"] == ["1970-01-01T00:00:04+00:00", "1970-01-01T00:00:05+00:00"]
    assert any("1 events repeat" in line for line in found["leaks"])
    assert found["warnings"][0].startswith("20.0% of the rows are rejected, mostly null or empty id (data.user)")
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.parquet"]


def test_tables_go_to_stdout_or_to_the_console_given(tmp_path, capsys):
    file = tmp_path / "my.yaml"
    file.write_text(f"data: {{events: {log(tmp_path)}, user: u, item: i, time: t}}\n")
    found = check(file, ["data.time_unit=ms"])
    print_check(found)
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "time range" in shown.out
    assert "1970-01-01T00:16:" in shown.out  # 10^6 ms are 16 minutes 40
    text = io.StringIO()
    print_check(found, Console(file=text, width=80))
    assert "time range" in text.getvalue()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("values", "label", "auc"),
    [
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], 1.0),
        ([4.0, 3.0, 2.0, 1.0], [0, 0, 1, 1], 1.0),
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 0, 1], 0.5),
        ([1.0, 2.0, 2.0, 3.0], [0, 0, 1, 1], 0.875),  # three pairs of four in order, one tied
        ([1.0, 2.0], [1, 1], 0.5),
    ],
)
def test_auc_by_hand(values, label, auc):
    column = pa.chunked_array([pa.array(values)])
    assert predictive_auc(column, np.array(label, bool), categorical=False) == auc
