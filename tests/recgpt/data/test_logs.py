import re
from pathlib import Path

import pytest

from recgpt.data.logs import NAMED_LOGS, find_files
from recgpt.errors import ConfigError


def test_globs_are_sorted_and_files_counted_once(tmp_path):
    for name in ("b.csv", "a.csv", "c.txt"):
        (tmp_path / name).write_text("x")
    found = find_files([f"{tmp_path}/*.csv", f"{tmp_path}/a.csv"], "data.events")
    assert [path.name for path in found] == ["a.csv", "b.csv"]


def test_variable_is_expanded(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "log[1].csv").write_text("x")
    monkeypatch.setenv("RECGPT_DATA", str(tmp_path))
    assert find_files(["$RECGPT_DATA/x/log[1].csv"], "data.events")[0].name == "log[1].csv"


@pytest.mark.parametrize("folder", [None, "/nowhere"])
def test_a_named_log_that_is_missing_says_what_to_put_where(monkeypatch, folder):
    if folder is None:
        monkeypatch.delenv("RECGPT_DATA", raising=False)
    else:
        monkeypatch.setenv("RECGPT_DATA", folder)
    with pytest.raises(ConfigError) as error:
        find_files(["$RECGPT_DATA/ml-1m/ml-1m_sasrec.txt.gz"], "data.events")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("data.events: ")
    assert "RECGPT_DATA" in line
    assert "MovieLens-1M from GroupLens" in line
    assert "$RECGPT_DATA/ml-1m/ml-1m_sasrec.txt.gz" in line


def test_every_file_of_a_ready_config_is_named():
    text = "\n".join(path.read_text() for path in (Path(__file__).parents[3] / "configs").rglob("*.yaml"))
    used = set(re.findall(r"\$RECGPT_DATA/([^/\s]+)/(\S+)", text))
    assert used == {(folder, file) for folder, files in NAMED_LOGS.items() for file in files}


def test_missing_file_and_folder_each_have_their_line(tmp_path):
    with pytest.raises(ConfigError, match="no file matches .*nothing.csv.*check the path"):
        find_files([f"{tmp_path}/nothing.csv"], "data.events")
    with pytest.raises(ConfigError, match="is a folder; name its files"):
        find_files([str(tmp_path)], "data.events")
