"""A finetuning run that is interrupted anywhere and started again leaves what an undisturbed one leaves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from recgpt.errors import Stopped
from recgpt.stages import load_stage
from recgpt.train import finished_record
from tests.finetune.logs import FinetuneTask, merged, settings
from tests.recgpt.train.crash_driver import digest

finetune = load_stage("finetune")
FILES = ("model.safetensors", "ranker.safetensors", "ranker.json", "items.parquet", "config.json")


class Case:
    """One config that draws and remembers: dropout, the best weights kept, patience, several epochs."""

    def __init__(self, folder: Path, data: dict[str, Any], start: Path, backbone_lr: float) -> None:
        self.folder, self.start = folder, start
        self.values = settings(
            data,
            model={"dropout": 0.3, "id_dropout": 0.3},
            tasks={"backbone_lr": backbone_lr},
            optim={"lr": 0.03},
            run={
                "epochs": 5,
                "checkpoint_every": 3,
                "log_every": 2,
                "evaluate_every": 0.3,
                "select": "best",
                "patience": 3,
            },
        )

    def run(self, name: str) -> None:
        torch.manual_seed(len(name))  # what the process drew before must not matter
        finetune(merged(self.values, {"run": {"dir": str(self.folder / name)}}), from_run=self.start)

    def left(self, name: str) -> tuple[dict[str, Any], list[bytes]]:
        run = self.folder / name
        return digest(run), [(run / "model" / file).read_bytes() for file in FILES]


@pytest.fixture(scope="module", params=["tuned", "frozen"])
def case(
    request: pytest.FixtureRequest,
    data: dict[str, Any],
    pretrained: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Case:
    made = Case(tmp_path_factory.mktemp(request.param), data, pretrained, {"frozen": 0.0, "tuned": 0.5}[request.param])
    made.run("whole")
    return made


def steps_of(case: Case) -> int:
    record = finished_record(case.folder / "whole")
    assert record is not None
    return int(record["step"])


def test_the_undisturbed_run_did_what_it_should(case: Case) -> None:
    found, _ = case.left("whole")
    progress = found["state"]["progress"]
    assert progress["stale"] == 3  # patience ended it
    assert progress["best_step"] < steps_of(case) < 5 * 6
    assert progress["epoch"] >= 1
    assert [r["step"] for r in found["records"] if r["event"] == "valid"] == list(range(2, steps_of(case) + 1, 2))
    assert len(found["state"]["optimizer"]) == (2 if case.values["tasks"]["backbone_lr"] == 0 else 4)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_killed_and_resumed_equals_undisturbed(case: Case, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Killed before its first checkpoint, a run has nothing but the weights that it started from."""
    at = {"first": 2, "middle": steps_of(case) // 2 + 1, "last": steps_of(case)}[place]
    real, steps = FinetuneTask.step, iter(range(1, 100))

    def dying(self: FinetuneTask, batch: Any) -> Any:
        if next(steps) == at:
            raise InterruptedError
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, "step", dying)
        with pytest.raises(InterruptedError):
            case.run(place)
    assert (case.folder / place / "latest").exists() == (at > 3)
    case.run(place)
    assert case.left(place) == case.left("whole")


@pytest.mark.parametrize("at", [2, 5])  # a validation is due after the first, none after the second
def test_stopped_and_resumed_equals_undisturbed(case: Case, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    real, steps, name = FinetuneTask.step, iter(range(1, 100)), f"stopped at {at}"

    def signalled(self: FinetuneTask, batch: Any) -> Any:
        if next(steps) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, "step", signalled)
        with pytest.raises(Stopped) as caught:
            case.run(name)
    assert caught.value.exit_code == 143
    assert (case.folder / name / "latest").read_text() == f"step_{at:08d}\n"
    case.run(name)
    found, files = case.left(name)
    expected, same = case.left("whole")
    assert files == same
    assert found["records"] == expected["records"]
    assert found["state"] == expected["state"]


def test_killed_in_its_last_export(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(self: FinetuneTask, path: Path) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTask, "export", dying)
        with pytest.raises(InterruptedError):
            case.run("export")
    assert not (case.folder / "export" / "model").exists()
    case.run("export")
    assert case.left("export") == case.left("whole")
