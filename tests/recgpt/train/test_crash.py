"""Killed anywhere and resumed, a run ends with the bits of an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SCENARIOS = [
    *(f"random step {n}" for n in range(5)),
    "inside the temporary write",
    "before the rename",
    "before latest moves",
    "before the first latest",
    "before the model is renamed",
    "while an old checkpoint is removed",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.recgpt.train.crash_driver"]
    folder = tmp_path_factory.mktemp("crash")
    done = subprocess.run([*command, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = [name for name in found if name.startswith("step ")]
    return {f"random step {n}": found.pop(name) for n, name in enumerate(steps)} | found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_and_resumed_equals_undisturbed(results: dict[str, Any], scenario: str) -> None:
    assert results[scenario]["killed"]
    assert results[scenario]["digest"] == results["undisturbed"]["digest"]


def test_the_undisturbed_run_did_what_it_should(results: dict[str, Any]) -> None:
    digest = results["undisturbed"]["digest"]
    assert digest["folders"] == ["step_00000024", "step_00000030"]
    assert digest["state"]["progress"]["step"] == 30
    assert set(digest["files"]) == {
        "model/model.safetensors",
        "step_00000030/model.safetensors",
        "step_00000030/optimizer.safetensors",
        "step_00000030/best.safetensors",
    }
    steps = [(r["event"], r["step"]) for r in digest["records"]]
    assert steps.count(("train", 12)) == 1
    assert [s for e, s in steps if e == "valid"] == [5, 10, 15, 20, 25, 30]
    assert [s for e, s in steps if e == "train"] == [4, 8, 12, 16, 20, 24, 28]
    assert steps[-1] == ("finished", 30)
