from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.ablations import figures, results, runner
from benchmarks.ablations.__main__ import PAGE, main
from benchmarks.ablations.page import page, small, tables
from benchmarks.ablations.picture import picture
from benchmarks.ablations.plan import CELLS, DEFAULT, Cell, Job, Plan, command, jobs
from benchmarks.ablations.results import FOLDER, Measured, Result, difference
from recgpt.config import load_config
from recgpt.errors import ConfigError, RecGPTError
from tests.recgpt.builders import write_log

SHIPPED: Plan = load_config(Plan, CELLS)
TINY_MODEL = {"dim": 8, "layers": 1, "heads": 1, "id": {"rows": 31}, "window": {"length": 8, "stride": 4, "chunk": 4}}


def plan(folder: Path, **changes: Any) -> Path:
    """A plan over a tiny log: the default with two seeds and one cell with one."""
    data = write_log(folder / "log", [9] * 12)
    base = folder / "base.yaml"
    base.write_text(yaml.safe_dump({"data": data, "model": TINY_MODEL, "run": {"epochs": 1}}))
    values = {
        "seeds": 1,
        "default_seeds": 2,
        "logs": {"tiny": {"title": "A tiny log", "config": str(base)}},
        "questions": {"hot": {"title": "Temperature", "text": "Why not.", "default": "0.05", "finding": "It is."}},
        "cells": [{"name": "hot", "log": "tiny", "question": "hot", "value": "1.0", "set": ["loss.temperature=1.0"]}],
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def result(seed: int, ndcg: float, config: dict[str, Any] | None = None) -> Result:
    versions = {"recgpt": "0.1.0", "torch": "2.12.0"}
    valid = {"ndcg@10": ndcg, "recall@10": 2 * ndcg}
    return Result(seed, valid, 240.0, 1000, 4_000_000, "2026-11-22", versions, config or {})


def saved(path: Path, folder: Path, key: str, seed: int, ndcg: float) -> Path:
    """A result file of a cell, as if it had been measured."""
    read = load_config(Plan, path)
    job = Job(read.cell(key), seed)
    results.save(folder, job, result(seed, ndcg, read.settings(job.cell)))
    return results.place(folder, job)


# The plan that ships.


@pytest.mark.parametrize("cell", SHIPPED.cells, ids=lambda cell: cell.key)
def test_a_cell_of_the_plan_is_a_config_that_differs_from_its_default(cell: Cell) -> None:
    default, own = SHIPPED.settings(SHIPPED.cell(f"{cell.log}/{DEFAULT}")), SHIPPED.settings(cell)
    changed = {key for key in default.keys() | own.keys() if default.get(key) != own.get(key)}
    assert changed
    named = {line.partition("=")[0] for line in cell.set}
    follow = {"model.window.stride", "loss.correction"}  # their defaults depend on other settings
    assert {key for key in changed - follow if not any(f"{key}.".startswith(f"{name}.") for name in named)} == set()


def test_no_two_cells_of_a_log_are_one_config() -> None:
    configs = [(cell.log, json.dumps(SHIPPED.settings(cell), sort_keys=True)) for cell in SHIPPED.all_cells()]
    assert len(set(configs)) == len(configs)
    assert len(SHIPPED.cells) <= 30


def test_the_page_in_the_repository_is_the_rendered_one() -> None:
    measured = {cell.key: results.read(FOLDER, SHIPPED, cell) for cell in SHIPPED.all_cells()}
    assert PAGE.read_text(encoding="utf-8") == page(SHIPPED, measured), "run python -m benchmarks.ablations --render"
    assert not results.orphans(FOLDER, SHIPPED)
    assert not [name for found in measured.values() for name in found.stale]


# The rules of a plan.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"cells": [{"name": f"c{i}", "log": "tiny", "question": "hot", "set": ["a=1"]} for i in range(31)]},
            "31 besides",
        ),
        ({"cells": [{"name": "a", "log": "huge", "question": "hot", "set": ["a=1"]}]}, "no log 'huge'"),
        ({"cells": [{"name": "a", "log": "tiny", "question": "cold", "set": ["a=1"]}]}, "no question 'cold'"),
        ({"cells": [{"name": "a", "log": "tiny", "question": "hot"}]}, "changes nothing"),
        ({"cells": [{"name": DEFAULT, "log": "tiny", "question": "hot", "set": ["a=1"]}]}, "stands twice"),
        ({"cells": [{"name": "a", "log": "tiny", "question": "hot", "set": ["run.seed=3"]}]}, "the runner sets it"),
        ({"questions": {"hot": {"title": "", "text": "", "default": "", "reference": "a"}}}, "no cell 'a'; it has hot"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(Plan, plan(tmp_path, **changes))


@pytest.mark.parametrize(
    ("line", "told"), [("loss.temprature=1", "tiny/hot: .*temperature"), ("run.minutes=1", "tiny/hot: run.minutes")]
)
def test_a_cell_that_does_not_load_is_told_with_its_name(tmp_path: Path, line: str, told: str) -> None:
    cell = {"name": "hot", "log": "tiny", "question": "hot", "set": [line]}
    read = load_config(Plan, plan(tmp_path, cells=[cell]))
    with pytest.raises(ConfigError, match=told):
        read.settings(read.cells[0])


def test_first_seeds_come_first_and_defaults_have_more(tmp_path: Path) -> None:
    read = load_config(Plan, plan(tmp_path))
    assert [job.name for job in jobs(read, read.all_cells())] == ["tiny/default-0", "tiny/hot-0", "tiny/default-1"]


@pytest.mark.parametrize("name", ["tiny/hot", "hot"])
def test_only_finds_a_cell_by_its_names(tmp_path: Path, name: str) -> None:
    read = load_config(Plan, plan(tmp_path))
    assert [cell.key for cell in read.chosen([name])] == ["tiny/hot"]
    assert [cell.key for cell in read.chosen(["tiny"])] == ["tiny/default", "tiny/hot"]
    with pytest.raises(ConfigError, match="--only: cold fits no cell"):
        read.chosen(["cold"])


def test_a_cell_is_a_command() -> None:
    log = {"title": "L", "config": "configs/a.yaml", "set": ["run.epochs=2"]}
    cell = {"name": "b", "log": "l", "question": "q", "set": ["model.bias={time: true}"]}
    questions = {"q": {"title": "Q", "text": "", "default": "none"}}
    read = load_config(Plan, {"logs": {"l": log}, "questions": questions, "cells": [cell]})
    assert command(read, read.cells[0]) == "recgpt pretrain configs/a.yaml run.epochs=2 'model.bias={time: true}'"


# What counts as the same config.


def test_a_result_is_stale_when_a_setting_changed() -> None:
    settings = load_settings()
    assert difference(settings, settings) == ""
    key = "loss.temperature"
    assert difference(settings | {key: 0.1}, settings) == f"{key}: 0.1 then, {settings[key]} now"
    assert difference(settings | {"model.gone": 1}, settings) == "model.gone: 1 then, absent now"


def test_a_setting_that_is_new_and_at_its_default_changes_nothing() -> None:
    settings = load_settings()
    before = {name: value for name, value in settings.items() if name != "loss.temperature"}
    assert difference(before, settings) == ""
    assert difference(before, settings | {"loss.temperature": 0.1}).startswith("loss.temperature: absent then, 0.1")


def test_so_does_a_new_setting_of_a_side_table() -> None:
    settings = SHIPPED.settings(SHIPPED.cell("beauty/default"))
    before = {name: value for name, value in settings.items() if name != "data.items.text_width"}
    assert "data.items.text_width" in settings
    assert difference(before, settings) == ""
    assert difference(before, settings | {"data.items.text_width": 8}) != ""


def load_settings() -> dict[str, Any]:
    return SHIPPED.settings(SHIPPED.all_cells()[0])


# The figures.

FIVE = [result(seed, value) for seed, value in enumerate((0.10, 0.11, 0.12, 0.13, 0.14))]


def test_the_interval_by_hand() -> None:
    band = figures.noise(FIVE)
    assert band is not None
    assert band.sd == pytest.approx(0.0158114, abs=1e-6)  # sqrt((.02^2 + .01^2) * 2 / 4)
    assert band.half_width(2) == pytest.approx(2.776 * 0.0158114 * 0.7**0.5, abs=1e-6)
    assert figures.noise(FIVE[:1]) is None


@pytest.mark.parametrize(("value", "verdict"), [(0.15, "no difference"), (0.16, "better"), (0.08, "worse")])
def test_a_difference_inside_the_band_is_no_difference(value: float, verdict: str) -> None:
    found = figures.row([result(0, value), result(1, value)], FIVE)
    assert found is not None
    assert found.difference == pytest.approx(value - 0.12)
    assert found.verdict == verdict  # the band is +-.0367


def test_the_interval_holds_the_truth_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    default, cell = rng.normal(size=(4000, 5)), rng.normal(size=(4000, 2))
    half = 2.776 * default.std(1, ddof=1) * np.sqrt(1 / 5 + 1 / 2)
    covered = np.abs(cell.mean(1) - default.mean(1)) <= half
    assert covered.mean() == pytest.approx(0.95, abs=0.012)
    own = [
        figures.row([result(i, x) for i, x in enumerate(c)], [result(i, x) for i, x in enumerate(d)])
        for c, d in zip(cell[:200], default[:200], strict=True)
    ]
    assert [row is not None and row.verdict == "no difference" for row in own] == covered[:200].tolist()


@pytest.mark.parametrize(("value", "text"), [(0.15234, ".1523"), (-0.0031, "-.0031"), (0.0, ".0000"), (1.5, "1.5000")])
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert small(value) == text


# The page.


def test_the_page_shows_values_differences_and_what_is_missing(tmp_path: Path) -> None:
    more = {"name": "cold", "log": "tiny", "question": "hot", "value": "cold one", "set": ["loss.temperature=0.01"]}
    hot = {"name": "hot", "log": "tiny", "question": "hot", "value": "hot one", "set": ["loss.temperature=1.0"]}
    read = load_config(Plan, plan(tmp_path, cells=[hot, more]))
    measured = {"tiny/default": Measured(FIVE), "tiny/hot": Measured([result(0, 0.16), result(1, 0.16)])}
    text = page(read, measured | {"tiny/cold": Measured()})
    assert "| 0.05 (default) | .1200 | .2400 |  |  | 5 | 240 | 4.00 |  |" in text
    line = "| hot one | .1600 | .3200 | +.0400 (+.0033 to +.0767) | better | 2 | 240 | 4.00 | `loss.temperature=1.0` |"
    assert line in text
    assert text.index("It is.") > text.index("| cold one |")
    assert "| cold one | not measured |" in text
    assert "7 runs, 2026-11-22, torch 2.12.0, one thread each, 0.5 hours" in text
    drawing = picture(read, tables(read, measured | {"tiny/cold": Measured()}))
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert ">Temperature<" in drawing
    assert ">0.05 (default)<" in drawing
    assert ">cold one<" not in drawing
    assert ">hot one<" in drawing
    assert drawing == picture(read, tables(read, measured | {"tiny/cold": Measured()}))


def test_shares_of_a_reference(tmp_path: Path) -> None:
    cells = [
        {"name": name, "log": "tiny", "question": "hot", "value": f"{name} one", "set": [f"loss.temperature={value}"]}
        for name, value in (("hot", 1.0), ("warm", 0.5), ("cold", 0.01))
    ]
    question = {"title": "Temperature", "text": "Why not.", "default": "0.05", "reference": "hot"}
    read = load_config(Plan, plan(tmp_path, cells=cells, questions={"hot": question}))
    measured = {"tiny/default": Measured(FIVE), "tiny/hot": Measured([result(0, 0.16)]), "tiny/cold": Measured()}
    text = page(read, measured | {"tiny/warm": Measured([result(0, 0.10), result(1, 0.14)])})
    assert "NDCG@10 as a share of that of hot one: warm one 75 %." in text
    assert "as a share" not in page(read, measured | {"tiny/hot": Measured(), "tiny/warm": Measured()})


def test_render_leaves_out_what_does_not_count_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, out = plan(tmp_path), tmp_path / "results", tmp_path / "docs" / "ablations.md"
    for seed in range(2):
        saved(path, folder, "tiny/default", seed, 0.1)
    hot = saved(path, folder, "tiny/hot", 0, 0.2)
    saved(path, folder, "tiny/hot", 7, 0.3)
    stale = json.loads(hot.read_text())
    stale["config"]["model.dim"] = 99
    hot.write_text(json.dumps(stale))
    words = ["--plan", str(path), "--results", str(folder), "--out", str(out)]
    assert main([*words, "--render"]) == 0
    told = capsys.readouterr().err
    assert "hot-0.json was measured with another config (model.dim: 99 then, 8 now)" in told
    assert "hot-7.json: belongs to no cell" in told
    assert "| 1.0 | not measured |" in out.read_text()
    assert (out.parent / "ablations.svg").is_file()
    assert main([*words, "--list"]) == 0
    assert "tiny/default                     2/2 0.1000 0.1000" in capsys.readouterr().out


def test_a_file_that_is_no_result_is_told(tmp_path: Path) -> None:
    path, folder = plan(tmp_path), tmp_path / "results"
    saved(path, folder, "tiny/hot", 0, 0.2).write_text('{"seed": 0}')
    read = load_config(Plan, path)
    with pytest.raises(RecGPTError, match="hot-0.json: no result"):
        results.read(folder, read, read.cells[0])


# The runner.


def test_what_is_missing_is_measured_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder, runs = plan(tmp_path), tmp_path / "results", tmp_path / "runs"
    words = ["--plan", str(path), "--results", str(folder), "--runs", str(runs), "--jobs", "2"]
    stamps = {saved(path, folder, "tiny/default", seed, 0.1).stat().st_mtime_ns for seed in range(2)}
    assert main(words) == 0, capsys.readouterr().err
    assert sorted(file.name for file in folder.rglob("*.json")) == ["default-0.json", "default-1.json", "hot-0.json"]
    assert {file.stat().st_mtime_ns for file in folder.rglob("default*.json")} == stamps
    found = json.loads((folder / "tiny" / "hot-0.json").read_text())
    assert 0 <= found["valid"]["ndcg@10"] <= found["valid"]["recall@10"] <= 1
    assert found["targets"] == 12 * 7  # of each user's 9 events all but the validation's and the test's
    assert found["cpu_seconds"] > 0
    assert found["config"]["loss.temperature"] == 1.0
    assert not list(tmp_path.rglob("test_reads.jsonl"))
    assert not (runs / "tiny" / "hot-0").exists()
    started = _pretend(monkeypatch, "pass")
    assert main(words) == 0
    assert started == []
    (folder / "tiny" / "default-1.json").unlink()
    assert main(words) == 0
    assert started == ["tiny/default-1"]


def test_another_config_is_told_and_measured_anew_with_fresh(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = plan(tmp_path), tmp_path / "results"
    saved(path, folder, "tiny/hot", 0, 0.2)
    plan(tmp_path, cells=[{"name": "hot", "log": "tiny", "question": "hot", "set": ["loss.temperature=2.0"]}])
    words = ["--plan", str(path), "--results", str(folder), "--runs", str(tmp_path / "runs")]
    assert main(words) == 2
    assert "tiny/hot: hot-0.json: loss.temperature: 1.0 then, 2.0 now" in capsys.readouterr().err
    started = _pretend(monkeypatch, "pass")
    assert main([*words, "--only", "default"]) == 0
    assert started == ["tiny/default-0", "tiny/default-1"]
    assert main([*words, "--fresh", "--seeds", "1"]) == 0
    assert started[2:] == ["tiny/default-0", "tiny/hot-0"]


def _pretend(monkeypatch: pytest.MonkeyPatch, code: str) -> list[str]:
    """Jobs run this code instead; returns the names of those that start."""
    started: list[str] = []

    def words(plan: Path, job: Job, results: Path, runs: Path) -> list[str]:
        started.append(job.name)
        return [sys.executable, "-c", code, job.name]

    monkeypatch.setattr(runner, "_words", words)
    return started


def _jobs(n: int) -> list[Job]:
    return [Job(Cell(name="a", log="tiny"), seed) for seed in range(n)]


def test_a_failure_stops_no_other_job_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(
        monkeypatch,
        "import sys; print('first', flush=True); sys.exit('out of luck' if sys.argv[1] == 'tiny/a-0' else 0)",
    )
    told: dict[str, str | None] = {}
    failed = runner.run_all(tmp_path, _jobs(3), 1, tmp_path, tmp_path, lambda job, text: told.update({job.name: text}))
    assert [job.name for job in failed] == ["tiny/a-0"]
    assert list(told) == ["tiny/a-0", "tiny/a-1", "tiny/a-2"]
    assert "exit code 1: out of luck" in str(told["tiny/a-0"])
    assert told["tiny/a-2"] is None


def test_at_most_n_run_at_once_with_one_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, sys, time; from pathlib import Path\n"
        f"folder = Path({str(tmp_path)!r}); own = folder / sys.argv[1].replace('/', '.')\n"
        "own.touch(); time.sleep(0.2)\n"
        "print(len(list(folder.glob('tiny.*'))), os.environ['OMP_NUM_THREADS']); own.unlink()"
    )
    _pretend(monkeypatch, code)
    assert runner.run_all(tmp_path, _jobs(4), 2, tmp_path, tmp_path, lambda job, text: None) == []
    told = [(tmp_path / f"tiny/a-{seed}.log").read_text().split() for seed in range(4)]
    assert max(int(running) for running, _ in told) == 2
    assert {threads for _, threads in told} == {"1"}


def test_jobs_end_with_the_runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend(monkeypatch, "import time; time.sleep(60)")

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    processes: list[subprocess.Popen[bytes]] = []
    start = runner._start

    def noted(*arguments: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*arguments))
        return processes[-1]

    monkeypatch.setattr(runner, "_start", noted)
    monkeypatch.setattr(runner, "time", type("Clock", (), {"sleep": staticmethod(interrupted)}))
    with pytest.raises(KeyboardInterrupt):
        runner.run_all(tmp_path, _jobs(2), 2, tmp_path, tmp_path, lambda job, text: None)
    assert [process.poll() for process in processes] == [-signal.SIGTERM, -signal.SIGTERM]
