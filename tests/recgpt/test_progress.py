"""How far long work is: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from recgpt import progress
from recgpt.evaluation import evaluate
from recgpt.export import export
from recgpt.progress import progress_bar
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The moment now, to be set by the test."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_when_ten_seconds_have_gone(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar() as told:
        for moment in (101.0, 109.0, 110.0, 111.0, 121.0):
            clock[0] = moment
            told("embedding users", int(moment - 101) * 100, 8000)
    assert capsys.readouterr().err.splitlines() == [
        "embedding users: 900 of 8,000, 100/s, 1.2 min left",
        "embedding users: 2,000 of 8,000, 100/s, 1.0 min left",
    ]


def test_a_rate_is_of_one_piece_of_work(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as told:
        told("first", 0, 10)
        clock[0] = 150.0
        told("second", 0, 1000)
        clock[0] = 170.0
        told("second", 500, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "second: 0 of 1,000, 0/s",
        "second: 500 of 1,000, 25/s, 0.3 min left",
    ]


def test_what_was_there_before_is_no_work_of_this_run(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as told:
        told("embedding users", 900, 1000)
        clock[0] = 120.0
        told("embedding users", 920, 1000)
    assert capsys.readouterr().err == "embedding users: 920 of 1,000, 1/s, 1.3 min left\n"


def test_work_of_unknown_length_has_no_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as told:
        clock[0] = 500.0
        told("building the index", 0, 0)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress_bar() as told:
        told("building the index", 0, 0)
        told("ranking users", 3, 4)
    shown = capsys.readouterr().err
    assert "ranking users: 3 of 4" in shown
    assert shown.endswith("\x1b[2K")  # its line is erased


def test_evaluate_and_export_tell_how_far_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    small = {"dim": 16, "layers": 1, "heads": 2, "window": {"length": 8, "stride": 4, "chunk": 2}}
    data, run = write_log(tmp_path / "log", [3 + user % 9 for user in range(30)]), tmp_path / "run"
    load_stage("pretrain")({"data": data, "model": small, "run": {"steps": 2, "dir": str(run)}})
    capsys.readouterr()
    evaluate(run, "valid")
    assert "ranking users: 30 of 30" in capsys.readouterr().err
    export(run, tmp_path / "out")
    assert "embedding users: 0 of 30" in capsys.readouterr().err
