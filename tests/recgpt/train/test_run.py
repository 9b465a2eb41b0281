"""The run folder: same config, another config, finished, fresh, in use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from recgpt.config import load_config
from recgpt.errors import ConfigError, RecGPTError
from recgpt.train import OptimConfig, RunConfig, run_status, train
from recgpt.train.run import locked, start_run
from tests.recgpt.train.toy import ToyConfig, ToyTask, config


def trained(run_dir: Path, **settings: object) -> ToyConfig:
    toy = config(run_dir, **settings)
    train(ToyTask(), toy.optim, toy.run, toy)
    return toy


def test_finished_is_said_and_nothing_runs(tmp_path: Path) -> None:
    toy = trained(tmp_path)
    assert run_status(tmp_path, toy) == "finished"
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    task = ToyTask()
    result = train(task, toy.optim, toy.run, toy)
    assert result.finished_before
    assert (result.step, result.epoch, result.targets) == (20, 2, 240)
    assert task.seen == []
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


def test_another_config_names_the_keys(tmp_path: Path) -> None:
    trained(tmp_path)
    other = ToyConfig(
        optim=OptimConfig(lr=0.02, warmup_steps=5),
        run=RunConfig(dir=str(tmp_path), threads=1, steps=30),
    )
    with pytest.raises(ConfigError) as caught:
        train(ToyTask(), other.optim, other.run, other)
    message = str(caught.value)
    assert "optim.lr: 0.01 there, 0.02 here; run.steps: 20 there, 30 here" in message
    assert "--fresh" in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_fresh_starts_anew_and_spares_the_rest(tmp_path: Path) -> None:
    trained(tmp_path)
    (tmp_path / "test_reads.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    toy = config(tmp_path, steps=9)
    result = train(ToyTask(), toy.optim, toy.run, toy, fresh=True)
    assert (result.step, result.finished_before) == (9, False)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000009"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "test_reads.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="holds model but no config.yaml"):
        run_status(tmp_path, config(tmp_path), fresh)
    assert (tmp_path / "model" / "mine").read_text() == "x"


def test_a_moved_run_goes_on(tmp_path: Path) -> None:
    trained(tmp_path / "a")
    os.rename(tmp_path / "a", tmp_path / "b")
    assert run_status(tmp_path / "b", config(tmp_path / "b")) == "finished"


def test_a_setting_that_is_newer_than_the_run_has_its_default(tmp_path: Path) -> None:
    toy = trained(tmp_path)
    saved = tmp_path / "config.yaml"
    whole = saved.read_text()
    saved.write_text(whole.replace(" device: auto,", ""))
    assert saved.read_text() != whole
    assert run_status(tmp_path, toy) == "finished"
    other = toy.model_copy(update={"run": toy.run.model_copy(update={"device": "cpu"})})
    with pytest.raises(ConfigError, match="run.device: auto there, cpu here"):
        run_status(tmp_path, other)


def test_started_but_without_a_checkpoint(tmp_path: Path) -> None:
    toy = config(tmp_path)
    start_run(tmp_path, toy)
    assert run_status(tmp_path, toy) == "resume"
    assert train(ToyTask(), toy.optim, toy.run, toy).step == 20


def test_one_process_at_a_time(tmp_path: Path) -> None:
    toy = config(tmp_path)
    with locked(tmp_path), pytest.raises(RecGPTError) as caught:
        train(ToyTask(), toy.optim, toy.run, toy)
    assert f"process {os.getpid()} is training in this folder" in str(caught.value)
    assert train(ToyTask(), toy.optim, toy.run, toy).step == 20


def test_no_folder(tmp_path: Path) -> None:
    toy = ToyConfig(run=RunConfig(steps=1))
    with pytest.raises(ConfigError, match=r"run\.dir: not set"):
        train(ToyTask(), toy.optim, toy.run, toy)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    toy = config(tmp_path)
    with pytest.raises(ConfigError, match="WORLD_SIZE=2"):
        train(ToyTask(), toy.optim, toy.run, toy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "set epochs, steps or minutes"),
        ({"steps": 5, "select": "best"}, "needs evaluate_every"),
        ({"steps": 0}, "steps"),
        ({"steps": True}, "steps: .*true"),
        ({"steps": 5, "kep": 1}, "did you mean 'keep'"),
        (
            {"steps": 5, "evaluate_every": 2.5},
            "evaluate_every: 2.5 is no whole number of steps and no part of an epoch",
        ),
        ({"steps": 5, "evaluate_every": -1}, "evaluate_every: -1 is no whole number"),
        ({"steps": 5, "patience": 2}, "patience: needs select: best"),
        ({"steps": 5, "patience": 0, "select": "best", "evaluate_every": 1}, "patience: .*greater than or equal to 1"),
        ({"steps": 5, "stop_at": 0}, "stop_at: .*greater than 0"),
        ({"steps": 5, "stop_at": 1.01}, "stop_at: .*less than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(RunConfig, values)


@pytest.mark.parametrize("every", [0, 1, 7, 0.25, 3.0])
def test_validations_in_steps_or_in_parts_of_an_epoch(every: float) -> None:
    assert load_config(RunConfig, {"steps": 5, "evaluate_every": every}).evaluate_every == every
