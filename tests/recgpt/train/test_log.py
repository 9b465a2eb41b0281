"""Records: what is written, what a killed process leaves, wandb that is absent or fails."""

from __future__ import annotations

import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recgpt.errors import ConfigError, RecGPTError
from recgpt.train import RunConfig, train
from recgpt.train.log import (
    METRICS,
    BarWriter,
    JsonlWriter,
    Log,
    WandbConfig,
    cut_records,
    describe,
    read_records,
)
from tests.recgpt.train.toy import ToyConfig, ToyTask

TRAIN = {
    "event": "train",
    "step": 250,
    "epoch": 2,
    "loss": 6.54321,
    "lr": 0.002,
    "grad_norm": 0.4567,
    "targets_per_second": 21000.4,
    "seconds": 100.0,
    "progress": 0.25,
}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_a_step() -> None:
    # A quarter took 100 s, so 300 s are left.
    assert describe(TRAIN) == ("step 250 epoch 2 loss 6.5432 lr 2.00e-03 targets/s 21,000 grad 0.457 eta 5:00")
    assert describe(TRAIN | {"progress": 0.01, "seconds": 60.0}).endswith("eta 1:39:00")
    valid = {"event": "valid", "step": 7, "ndcg@10": 0.25, "note": "x"}
    assert describe(valid) == "valid step 7 ndcg@10 0.25"


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    with Log([JsonlWriter(tmp_path / METRICS)]) as log:
        log.write("valid", 3, auc=math.nan, loss=math.inf, n=4)
    assert lines_of(tmp_path / METRICS) == [{"event": "valid", "step": 3, "auc": None, "loss": None, "n": 4}]


def test_half_a_line_is_left_out_and_cut(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"event": "train", "step": 1}\n{"event": "train", "st')
    assert read_records(path) == [{"event": "train", "step": 1}]
    cut_records(path, step=5, evaluated=0)
    assert path.read_text() == '{"event": "train", "step": 1}\n'


def test_a_broken_line_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"event": "train", "step": 1}\n{oops\n{"event": "train", "step": 2}\n')
    with pytest.raises(RecGPTError, match=r"metrics\.jsonl: line 2 is no JSON; remove that line"):
        read_records(path)


def test_records_after_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    events = [("train", 5), ("valid", 5), ("train", 10), ("valid", 10), ("train", 15)]
    events.append(("finished", 15))
    path.write_text("".join(f'{{"event": "{e}", "step": {s}}}\n' for e, s in events))
    cut_records(path, step=10, evaluated=5)
    assert [(r["event"], r["step"]) for r in read_records(path)] == events[:3]


def test_the_bar_follows_the_progress(capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarWriter()
    with Log([bar]) as log:
        log.write("train", 250, **{k: v for k, v in TRAIN.items() if k not in ("event", "step")})
        log.write("valid", 250, auc=0.5)
    assert bar._bar.tasks[0].completed == 0.25
    assert "loss 6.5432" in bar._bar.tasks[0].description
    output = capsys.readouterr()
    assert "valid step 250 auc 0.5" in output.err
    assert output.out == ""


def wandb_run(run_dir: Path, **wandb: Any) -> ToyConfig:
    run = RunConfig(dir=str(run_dir), steps=20, log_every=5, threads=1, wandb=WandbConfig(**wandb))
    toy = ToyConfig(run=run)
    train(ToyTask(), toy.optim, toy.run, toy)
    return toy


def test_wandb_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'recgpt\[wandb\]'"):
        wandb_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


class FakeRun:
    def __init__(self, fails: str) -> None:
        self.fails, self.logged, self.finished = fails, [], False  # type: ignore[var-annotated]

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails == "log":
            raise ConnectionError("the network\nis away")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def fake_wandb(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        if fails == "init":
            raise ConnectionError("cannot reach")
        runs.append(FakeRun(fails))
        return runs[-1]

    module = types.SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


@pytest.mark.parametrize(("fails", "reason"), [("init", "cannot reach"), ("log", "the network is away")])
def test_wandb_out_of_reach_does_not_end_the_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails: str,
    reason: str,
) -> None:
    fake_wandb(monkeypatch, fails)
    wandb_run(tmp_path)
    told = capsys.readouterr().err
    assert told.count(f"wandb is off for the rest of this run (ConnectionError: {reason})") == 1
    assert read_records(tmp_path / METRICS)[-1]["event"] == "finished"


def test_wandb_gets_what_the_file_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_wandb(monkeypatch)
    wandb_run(tmp_path)
    (run,) = runs
    assert run.finished
    assert [step for step, _ in run.logged] == [5, 10, 15, 20, 20, 20]
    assert run.logged[0][1]["train/loss"] == read_records(tmp_path / METRICS)[0]["loss"]
    assert "valid/ndcg@10" in run.logged[4][1]


@pytest.fixture
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb_home"))
    yield
    import wandb

    wandb.teardown()


@pytest.mark.usefixtures("_offline")
@pytest.mark.filterwarnings("default")
def test_wandb_offline_for_real(tmp_path: Path) -> None:
    wandb_run(tmp_path / "run", mode="offline", project="toy")
    written = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(written) == 1
    assert written[0].stat().st_size > 0
    kept = (tmp_path / "run" / "wandb" / "id").read_text()
    assert kept in written[0].name
