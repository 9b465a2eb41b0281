"""Checkpoints: what is in them, what a damaged one or a full disk says, what loading never does."""

from __future__ import annotations

import builtins
import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from recgpt.errors import RecGPTError
from recgpt.train import TrainResult, train
from recgpt.train.checkpoint import (
    Progress,
    TrainState,
    current_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from recgpt.train.optim import OptimConfig, build_optimizer
from recgpt.train.rng import seed_everything
from tests.recgpt.train.toy import ToyTask, config


def toy_state(seed: int = 0, **progress: Any) -> TrainState:
    model = ToyTask(seed).model
    return TrainState(model, build_optimizer(model, OptimConfig()), Progress(**progress))


def stepped(state: TrainState) -> TrainState:
    state.model(torch.arange(4)).square().mean().backward()
    state.optimizer.step()
    return state


def run(run_dir: Path, **settings: Any) -> TrainResult:
    toy = config(run_dir, **{"checkpoint_every": 5, **settings})
    return train(ToyTask(), toy.optim, toy.run, toy)


def interrupted(run_dir: Path, at: int = 13) -> None:
    """A run that died before step `at`; checkpoints of 5 steps, two kept."""

    class Dies(ToyTask):
        def hook(self, epoch: int, number: int) -> None:
            if epoch * 7 + number + 1 == at:
                raise InterruptedError

    toy = config(run_dir, checkpoint_every=5)
    with pytest.raises(InterruptedError):
        train(Dies(), toy.optim, toy.run, toy)


def assert_undisturbed(run_dir: Path) -> None:
    """The run in `run_dir` gave the weights of one that nothing happened to."""
    whole = run_dir / "whole"
    run(whole)
    weights = [folder / "model" / "model.safetensors" for folder in (run_dir, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_everything_comes_back(tmp_path: Path) -> None:
    state = stepped(toy_state(step=3, epoch=1, batch=2, seconds=4.5, targets=36))
    state.best = {"a": torch.arange(3.0)}
    seed_everything(5)
    random.gauss(0, 1)  # leaves a second normal number pending in the generator
    folder = save_checkpoint(tmp_path, state, "x: 1\n", keep=1)
    drawn = torch.rand(3), np.random.rand(3), random.gauss(0, 1)  # noqa: NPY002

    other = toy_state(seed=9)
    seed_everything(6)
    load_checkpoint(folder, other)
    assert other.progress == state.progress
    again = torch.rand(3), np.random.rand(3), random.gauss(0, 1)  # noqa: NPY002
    assert torch.equal(drawn[0], again[0])
    assert np.array_equal(drawn[1], again[1])
    assert drawn[2] == again[2]
    for name, tensor in state.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
    before, after = state.optimizer.state_dict(), other.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for number, values in before["state"].items():
        for key, tensor in values.items():
            assert torch.equal(tensor, after["state"][number][key])
    assert other.best is not None
    assert other.best["a"].tolist() == [0, 1, 2]
    assert (folder / "config.yaml").read_text() == "x: 1\n"
    content = json.loads((folder / "state.json").read_text())
    assert content["torch"] == torch.__version__
    assert content["world_size"] == 1


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    def tied() -> TrainState:
        model = nn.ModuleDict({"a": nn.Embedding(3, 2), "b": nn.Linear(2, 3, bias=False)})
        model["b"].weight = model["a"].weight  # type: ignore[assignment]
        return TrainState(model, build_optimizer(model, OptimConfig()), Progress())

    first, second = tied(), tied()
    load_checkpoint(save_checkpoint(tmp_path, first, "", keep=1), second)
    assert torch.equal(first.model["a"].weight, second.model["b"].weight)  # type: ignore
    assert second.model["a"].weight is second.model["b"].weight  # type: ignore[index]


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, toy_state(step=step), "", keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_00000010", "step_00000015"]
    assert (tmp_path / "latest").read_text() == "step_00000015\n"


def test_loading_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("loading must not unpickle")

    folder = save_checkpoint(tmp_path, stepped(toy_state()), "", keep=1)
    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load"), (torch, "save")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    load_checkpoint(folder, toy_state())
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json", ".yaml"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", truncate, "bytes instead of"),
        ("optimizer.safetensors", truncate, "bytes instead of"),
        ("model.safetensors", flip, "changed since it was written"),
        ("config.yaml", flip, "changed since it was written"),
        ("optimizer.safetensors", Path.unlink, "missing"),
        ("state.json", truncate, "cut off"),
        ("state.json", Path.unlink, "missing"),
    ],
)
def test_damage_is_told_and_the_remedy_works(
    tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    interrupted(tmp_path)
    newest = tmp_path / "checkpoints" / "step_00000010"
    damage(newest / name)
    with pytest.raises(RecGPTError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{newest / name}: damaged checkpoint")
    assert reason in message
    assert f"delete the folder {newest} to go on from step_00000005" in message
    assert "\n" not in message
    assert caught.value.exit_code == 1

    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    run(tmp_path)
    assert_undisturbed(tmp_path)


def test_damage_without_an_earlier_checkpoint(tmp_path: Path) -> None:
    interrupted(tmp_path, at=8)
    truncate(tmp_path / "checkpoints" / "step_00000005" / "model.safetensors")
    with pytest.raises(RecGPTError, match="no earlier checkpoint: start again with --fresh"):
        run(tmp_path)


def test_latest_that_names_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(RecGPTError, match=r"latest: '../elsewhere' names no checkpoint"):
        run(tmp_path)


def test_weights_of_another_model(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, toy_state(), "", keep=1)
    model = nn.Linear(2, 2)
    state = TrainState(model, build_optimizer(model, OptimConfig()), Progress())
    with pytest.raises(RecGPTError, match="does not fit this model") as caught:
        load_checkpoint(folder, state)
    assert "\n" not in str(caught.value)


def full_disk(*args: Any, **kwargs: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_for(name: str) -> Callable[..., Any]:
    """`open` on a disk that is full when the file `name` is to be written."""
    real = builtins.open

    def opening(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return full_disk() if name in str(path) and "w" in mode else real(path, mode, *args, **kwargs)

    return opening


@pytest.mark.parametrize(
    ("module", "function", "replacement"),
    [
        (builtins, "open", full_for("model.safetensors")),
        (builtins, "open", full_for("state.json")),
        (builtins, "open", full_for("latest")),
        (os, "fsync", full_disk),
    ],
)
def test_full_disk_leaves_the_last_good_one_in_force(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    function: str,
    replacement: Callable[..., Any],
) -> None:
    save_checkpoint(tmp_path, toy_state(step=5), "", keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, replacement)
        with pytest.raises(RecGPTError, match="no space left on the disk; free some") as caught:
            save_checkpoint(tmp_path, toy_state(step=10), "", keep=2)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    current = current_checkpoint(tmp_path)
    assert current == tmp_path / "checkpoints" / "step_00000005"
    load_checkpoint(current, toy_state())
    assert not list((tmp_path / "checkpoints").glob(".tmp-*"))


def test_full_disk_in_a_run_then_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full_for("step_00000010"))
        with pytest.raises(RecGPTError, match="step_00000010: no space left"):
            run(tmp_path)
    assert run(tmp_path).step == 20
    assert_undisturbed(tmp_path)
