"""The item index as `export` writes it; users and items are tested beside the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from recgpt import export as export_module
from recgpt.cli import main
from recgpt.errors import ConfigError
from recgpt.export import export
from recgpt.index import ItemIndex, recommend_with_index
from recgpt.runs import TrainedRun
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log

ROOT = Path(__file__).parents[2]
LENGTHS = [3 + u % 9 for u in range(60)]
SMALL = {"dim": 16, "layers": 1, "heads": 2, "id": {"rows": 64}, "window": {"length": 8, "stride": 4, "chunk": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    config = {
        "data": write_log(folder / "log", LENGTHS),
        "model": SMALL,
        "run": {"steps": 4, "dir": str(folder / "first")},
    }
    load_stage("pretrain")(config)
    return folder / "first"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_every_user_is_answered_as_without_the_index(run: Path, tmp_path: Path, kind: Any) -> None:
    manifest = export(run, tmp_path, users=False, items=False, index=kind)
    assert names(tmp_path) == ["index.faiss", "index_ids.parquet", "manifest.json"]
    assert manifest["index"]["kind"] == kind
    assert manifest["index"].get("recall@100", 1) == 1
    trained = TrainedRun.open(run)
    index = ItemIndex.open(tmp_path, trained.model)
    assert pq.read_table(tmp_path / "index_ids.parquet")["item"].to_pylist() == trained.model.items.ids.to_pylist()
    for row in range(trained.prepared.n_users):
        state = trained.model.encode(trained.history(row))
        plain, found = trained.model.recommend(state, 10), recommend_with_index(trained.model, index, state, 10)
        assert [item for item, _ in found] == [item for item, _ in plain]
        assert [score for _, score in found] == pytest.approx([score for _, score in plain], abs=1e-6)


def test_the_index_beside_users_and_items(run: Path, tmp_path: Path) -> None:
    manifest = export(run, tmp_path / "x", index="auto")
    assert names(tmp_path / "x") == [
        "index.faiss",
        "index_ids.parquet",
        "items/part-00000.parquet",
        "manifest.json",
        "users/part-00000.parquet",
    ]
    assert (manifest["index_kind"], manifest["index"]["kind"]) == ("auto", "flat")
    assert export(run, tmp_path / "x", index="auto") == manifest
    with pytest.raises(ConfigError, match=r"another export \(index_kind: auto there, None here\)"):
        export(run, tmp_path / "x")
    without = export(run, tmp_path / "y")
    assert "index" not in without
    with pytest.raises(ConfigError, match=r"another export \(index_kind: None there, auto here\)"):
        export(run, tmp_path / "y", index="auto")
    items = pq.read_table(tmp_path / "x" / "items")["item"].to_pylist()
    assert items == pq.read_table(tmp_path / "x" / "index_ids.parquet")["item"].to_pylist()


KILLED = """
import os, signal, sys
from recgpt.export import export

run, out, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
replace, calls = os.replace, iter(range(1, 1000))

def dying(source, target):
    if next(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)

os.replace = dying
export(run, out, index="flat")
"""


@pytest.mark.parametrize("at", [2, 3, 4, 5, 6])
def test_killed_before_any_rename_it_opens_as_nothing_and_goes_on(run: Path, tmp_path: Path, at: int) -> None:
    """The renames: started.json, items, users, index.faiss, index_ids.parquet, manifest.json."""
    command = [sys.executable, "-c", KILLED, str(run), str(tmp_path / "out"), str(at)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    model = TrainedRun.open(run).model
    assert len(names(tmp_path / "out")) == at  # those before, and the one that was being written
    with pytest.raises(ConfigError, match="holds no finished export"):
        ItemIndex.open(tmp_path / "out", model)
    whole = export(run, tmp_path / "whole", index="flat")
    again = export(run, tmp_path / "out", index="flat")
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    assert again["index"]["digests"] == whole["index"]["digests"]
    assert len(ItemIndex.open(tmp_path / "out", model)) == len(model.items)


def test_without_faiss_nothing_is_begun(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="pip install faiss-cpu"):
        export(run, tmp_path / "x", index="flat")
    assert not (tmp_path / "x").exists()
    assert "index" not in export(run, tmp_path / "x")


def test_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x")
    assert main(["export", str(run), "--out", out, "--index", "--index-kind", "hnsw", "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert (manifest["users"], manifest["items"], manifest["index"]["kind"]) == (False, False, "hnsw")
    assert manifest["index"]["floor"] == 0.98
    assert main(["export", str(run), "--out", out, "--index-kind", "flat"]) == 2
    assert "--index-kind: flat, but no index is asked for; add --index" in capsys.readouterr().err
    assert main(["export", str(run), "--out", out, "--index", "--index-kind", "ivf"]) == 2
    assert "'ivf'" in capsys.readouterr().err


def test_the_queries_are_users_spread_over_the_log(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = TrainedRun.open(run)
    embed = export_module._Embedding(trained.model)
    assert export_module._some_users(trained, embed).shape == (60, 16)
    monkeypatch.setattr(export_module, "QUERIES", 3)
    found = export_module._some_users(trained, embed)
    for query, row in zip(found, (0, 29, 59), strict=True):
        assert query == pytest.approx(trained.model.encode(trained.history(row)).embedding.numpy(), abs=1e-5)


def test_users_that_ask_for_an_outcome(run: Path, tmp_path: Path) -> None:
    """An exported vector and the items' give the scores of `recommend --want`; a run without conditions refuses."""
    config = {
        "data": write_log(tmp_path / "log", LENGTHS),
        "model": SMALL | {"condition": True},
        "run": {"steps": 4, "dir": str(tmp_path / "run")},
    }
    load_stage("pretrain")(config)
    manifest = export(tmp_path / "run", tmp_path / "asked", items=False, want={"click": 1})
    assert manifest["want"] == {"click": 1.0}
    export(tmp_path / "run", tmp_path / "plain", items=False)
    vectors = {
        name: np.array(pq.read_table(tmp_path / name / "users")["embedding"].to_pylist()) for name in ("asked", "plain")
    }
    assert np.abs(vectors["asked"] - vectors["plain"]).max() > 1e-3
    trained = TrainedRun.open(tmp_path / "run")
    scores = vectors["asked"] @ trained.model.catalogue.numpy().T
    for row in range(0, trained.prepared.n_users, 7):
        best = trained.model.recommend(trained.model.encode(trained.history(row)), 1, False, want={"click": 1})
        assert scores[row].max() == pytest.approx(best[0].score, abs=1e-5)
    with pytest.raises(ConfigError, match=r"holds another export \(want: {'click': 1.0} there, {} here\)"):
        export(tmp_path / "run", tmp_path / "asked", items=False)
    with pytest.raises(ConfigError, match="want: this model cannot be asked for outcomes"):
        export(run, tmp_path / "other", want={"click": 1})
    with pytest.raises(ConfigError, match="want: .* is of users' vectors, and none are asked for"):
        export(tmp_path / "run", tmp_path / "other", users=False, want={"click": 1})
    assert not (tmp_path / "other").exists()
