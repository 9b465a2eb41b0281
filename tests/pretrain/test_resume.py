"""The real stage, killed, stopped, damaged and started anew: the weights are those of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file

from recgpt.cli import main
from recgpt.data.prepare import prepare
from recgpt.stages import load_stage
from tests.pretrain.resume_driver import STEPS
from tests.recgpt.builders import N_ITEMS, write_log

load_stage("pretrain")

from recgpt.pretrain.task import PretrainTask  # noqa: E402 (a stage is found by `load_stage`)

ROOT = Path(__file__).parents[2]
LENGTHS = [3, 5, 9, 14, 18, 23, 30, 40, 7, 12, 50, 26]
SCENARIOS = [
    *(f"random step {n}" for n in range(5)),
    "inside the temporary write",
    "before the rename",
    "before latest moves",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config with all that draws or remembers: dropouts, logQ, drawn negatives, heads, the best weights kept."""
    folder = tmp_path_factory.mktemp("log")
    data = write_log(folder, LENGTHS)
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 4)).tolist()
    pq.write_table(pa.table({"item": list(range(N_ITEMS)), "vector": vectors}), folder / "items.parquet")
    data["items"] = {"path": str(folder / "items.parquet"), "id": "item", "embedding": "vector"}
    values = {
        "data": data,
        "model": {
            "dim": 16,
            "heads": 2,
            "dropout": 0.2,
            "id_dropout": 0.3,
            "id": {"rows": 97},
            "look_ahead": [0, 3],
            "condition": True,
            "window": {"length": 16, "stride": 8, "chunk": 4},
        },
        "loss": {
            "columns": "mixed",
            "n_negatives": 8,
            "estimate_slots": 128,
            "auxiliary": {"outcomes": 0.1, "content": 0.1},
            "self_supervision": {"weight": 0.1, "n_items": 16},
        },
        "optim": {"lr": 0.01, "warmup_steps": 3, "batch_tokens": 96},
        "run": {
            "steps": STEPS,
            "threads": 1,
            "checkpoint_every": 4,
            "evaluate_every": 3,
            "log_every": 3,
            "select": "best",
        },
    }
    prepare(values, progress=False)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def results(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.pretrain.resume_driver", str(config)]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("runs"))],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = [name for name in found if name.startswith("step ")]
    return {f"random step {n}": found.pop(name) for n, name in enumerate(steps)} | found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_resumed_equals_undisturbed(results: dict[str, Any], scenario: str) -> None:
    assert results[scenario]["killed"]
    assert results[scenario]["digest"] == results["undisturbed"]["digest"]
    steps = [(r["event"], r["step"]) for r in results[scenario]["digest"]["records"]]
    assert len(steps) == len(set(steps))


def test_the_undisturbed_run_did_what_it_should(results: dict[str, Any]) -> None:
    digest = results["undisturbed"]["digest"]
    assert digest["folders"] == ["step_00000012", "step_00000014"]
    assert set(digest["files"]) == {
        "model/model.safetensors",
        *(f"step_00000014/{name}.safetensors" for name in ("model", "optimizer", "best")),
    }
    steps = [(r["event"], r["step"]) for r in digest["records"]]
    assert [s for e, s in steps if e == "train"] == [3, 6, 9, 12]
    assert [s for e, s in steps if e == "valid"] == [3, 6, 9, 12, 14]
    assert steps[-1] == ("finished", 14)
    assert digest["state"]["progress"]["epoch"] >= 1  # the kills fall into more than one epoch


class Command:
    """`recgpt pretrain CONFIG run.dir=... WORDS` in this process: the exit code, and the last line on stderr."""

    def __init__(self, config: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.config, self.folder, self.capsys = config, folder, capsys

    def __call__(self, name: str, *words: str) -> tuple[int, str]:
        self.capsys.readouterr()
        code = main(["pretrain", str(self.config), f"run.dir={self.folder / name}", *words])
        lines = self.capsys.readouterr().err.splitlines()
        if code:
            assert [line for line in lines if line.startswith("recgpt: ")] == lines[-1:]
        return code, lines[-1] if lines else ""

    def weights(self, name: str) -> bytes:
        return (self.folder / name / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def pretrain(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(config, tmp_path, capsys)


def signal_at(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """Let the process get a signal in front of the forward pass of one step."""
    real, steps = PretrainTask.step, iter(range(1, STEPS + 1))

    def signalled(self: PretrainTask, batch: Any) -> Any:
        if next(steps) == step:
            os.kill(os.getpid(), number)
        return real(self, batch)

    monkeypatch.setattr(PretrainTask, "step", signalled)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_and_resumed_equals_undisturbed(
    pretrain: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, 6, number)
        told = pretrain("stopped")
    stopped = pretrain.folder / "stopped"
    assert told == (
        code,
        f"recgpt: {stopped}: stopped at step 6 with a checkpoint; run the same command again to go on",
    )
    assert (stopped / "latest").read_text() == "step_00000006\n"
    assert not (stopped / "model").exists()
    assert pretrain("stopped")[0] == pretrain("whole")[0] == 0
    assert pretrain.weights("stopped") == pretrain.weights("whole")


def test_the_same_config_again_says_finished(pretrain: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain("run")[0] == 0
    before = pretrain.weights("run"), (pretrain.folder / "run" / "metrics.jsonl").read_bytes()
    code = main(["pretrain", str(pretrain.config), f"run.dir={pretrain.folder / 'run'}", "--json"])
    assert code == 0
    assert json.loads(capsys.readouterr().out)["finished_before"] is True
    assert (pretrain.weights("run"), (pretrain.folder / "run" / "metrics.jsonl").read_bytes()) == before


def test_another_config_is_refused_and_fresh_starts_anew(pretrain: Command) -> None:
    assert pretrain("run", "run.steps=2", "run.evaluate_every=2")[0] == 0
    old = pretrain.weights("run")
    code, line = pretrain("run", "run.steps=2", "run.evaluate_every=2", "optim.lr=0.02", "run.seed=5")
    assert code == 2
    assert "optim.lr: 0.01 there, 0.02 here" in line
    assert "run.seed: 0 there, 5 here" in line
    assert "--fresh" in line
    assert pretrain.weights("run") == old
    assert pretrain("run", "run.steps=2", "run.evaluate_every=2", "run.seed=5", "--fresh")[0] == 0
    assert pretrain.weights("run") != old
    # The same command again with --fresh trains again, to the same bits.
    old = pretrain.weights("run")
    (pretrain.folder / "run" / "latest").unlink()
    assert pretrain("run", "run.steps=2", "run.evaluate_every=2", "run.seed=5", "--fresh")[0] == 0
    assert (pretrain.folder / "run" / "latest").read_text() == "step_00000002\n"
    assert pretrain.weights("run") == old


def test_a_truncated_checkpoint_is_one_clear_line(pretrain: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        signal_at(patch, 6, signal.SIGTERM)
        assert pretrain("run")[0] == 143
    file = pretrain.folder / "run" / "checkpoints" / "step_00000006" / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 100)
    code, line = pretrain("run")
    assert code == 1
    assert line == (
        f"recgpt: {file}: damaged checkpoint ({size - 100} bytes instead of {size}); delete the folder {file.parent} "
        "to go on from step_00000004"
    )


def test_from_starts_with_the_weights_of_another_run(pretrain: Command) -> None:
    short = ["run.steps=1", "run.select=last", "run.evaluate_every=0"]
    assert pretrain("first", "run.steps=5", "run.select=last")[0] == 0
    first = pretrain.folder / "first"
    assert pretrain("second", *short, "optim.lr=1e-12", "--from", str(first))[0] == 0
    assert pretrain("scratch", *short, "optim.lr=1e-12")[0] == 0
    weights = {name: load_file(pretrain.folder / name / "model" / "model.safetensors") for name in ("first", "second")}
    for name, tensor in weights["first"].items():
        torch.testing.assert_close(weights["second"][name], tensor, rtol=0, atol=1e-9)
    assert pretrain.weights("scratch") != pretrain.weights("second")
    saved = yaml.safe_load((pretrain.folder / "second" / "config.yaml").read_text())
    assert saved["run"]["start_from"] == str(first)
    # Without --from it is another config.
    code, line = pretrain("second", *short, "optim.lr=1e-12")
    assert code == 2
    assert f"run.start_from: {first} there, None here" in line


@pytest.mark.parametrize(("word", "named"), [("model.dim=8", "items.id."), ("model.layers=1", "transformer.blocks.1.")])
def test_from_another_shape_is_refused(pretrain: Command, word: str, named: str) -> None:
    assert pretrain("first", "run.steps=1", "run.select=last")[0] == 0
    code, line = pretrain("second", "run.steps=1", word, "--from", str(pretrain.folder / "first"))
    assert code == 2
    assert line.startswith(f"recgpt: run.start_from: {pretrain.folder / 'first'}: {named}")
    assert "differs between the two models (" in line
    assert not (pretrain.folder / "second").exists()


def test_from_no_run_is_refused(pretrain: Command) -> None:
    code, line = pretrain("second", "--from", str(pretrain.folder / "nothing"))
    assert code == 2
    assert f"{pretrain.folder / 'nothing'} is no finished run" in line
