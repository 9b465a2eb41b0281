"""Time to quality on a tiny log: a run for each time, and none of them twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import time_to_quality
from tests.recgpt.builders import write_log


def test_a_run_for_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"dim": 8, "layers": 1, "heads": 1, "id": {"rows": 31}, "window": {"length": 8, "stride": 4, "chunk": 4}}
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({"data": write_log(tmp_path, [9] * 12), "model": model, "run": {"epochs": 3}}))
    words = ["time_to_quality", str(config), "optim.lr=1e-3", "--minutes", "0.001", "0.004"]
    monkeypatch.setattr(sys, "argv", [*words, "--runs", str(tmp_path / "runs")])
    time_to_quality.main()
    first = json.loads(capsys.readouterr().out)
    assert list(first) == ["0.001", "0.004"]
    assert all(0 <= of["ndcg@10"] <= 1 and of["targets_per_second"] > 0 for of in first.values())
    assert sorted(run.name for run in (tmp_path / "runs").iterdir()) == ["tiny-0.001-0", "tiny-0.004-0"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--picture", str(tmp_path / "curve.svg")])
    time_to_quality.main()
    assert json.loads(capsys.readouterr().out) == first
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.startswith("<?xml")
    for label in ("0.001", "0.004", "minutes of training", "validation NDCG@10"):
        assert f">{label}<" in drawn
