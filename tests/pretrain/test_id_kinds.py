"""Pretraining with each kind of id embedding, and going on with another day's items."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recgpt
from recgpt.nn.ids import ID_EMBEDDINGS
from tests.recgpt.builders import write_log


def settings(folder: Path, kind: str, n_items: int, bits: int = 32, **run: Any) -> dict[str, Any]:
    return {
        "data": write_log(folder, [12, 15, 9, 20], n_items=n_items),
        "model": {
            "dim": 8,
            "layers": 1,
            "heads": 2,
            "id": {"kind": kind, "rows": 40, "bits": bits},
            "window": {"length": 16, "stride": 8, "chunk": 4},
        },
        "optim": {"lr": 1e-12},
        "run": {"dir": str(folder / "run"), "steps": 1, "select": "last", "evaluate_every": 0} | run,
    }


@pytest.mark.parametrize("kind", sorted(ID_EMBEDDINGS))
def test_a_run_of_each_kind(kind: str, tmp_path: Path) -> None:
    recgpt.pretrain({**settings(tmp_path, kind, 15), "optim": {"lr": 0.01, "warmup_steps": 0}})
    model = recgpt.RecGPT.from_pretrained(tmp_path / "run")
    assert model.config.id.kind == kind
    assert len(model.recommend(model.encode({"item": [1, 2], "time": [1, 2]}), 3)) == 3


@pytest.mark.parametrize("bits", [32, 8])
def test_a_full_table_goes_on_with_the_rows_of_the_items_that_it_knew(tmp_path: Path, bits: int) -> None:
    recgpt.pretrain(settings(tmp_path / "a", "full", 12, bits, seed=1))
    recgpt.pretrain(settings(tmp_path / "b", "full", 30, bits, seed=2), from_run=tmp_path / "a" / "run")
    old, new = (recgpt.RecGPT.from_pretrained(tmp_path / day / "run") for day in "ab")
    shared = np.intersect1d(old.items.trained, new.items.trained)
    assert 0 < len(shared) < len(new.items.trained)
    ids = torch.from_numpy(shared)
    torch.testing.assert_close(new.model.items.id(ids), old.model.items.id(ids), rtol=0, atol=1e-9)
    fresh = torch.from_numpy(np.setdiff1d(new.items.trained, old.items.trained))
    assert (new.model.items.id(fresh).abs().sum(-1) > 0).all()


def test_rounded_tables_train_resume_and_go_on(tmp_path: Path) -> None:
    """4 bits: the same files killed and resumed or not; another run starts from the vectors that this one has."""
    optim = {"optim": {"lr": 0.01, "schedule": "constant", "warmup_steps": 0}}
    recgpt.pretrain(settings(tmp_path / "whole", "hash", 15, 4, steps=6) | optim)
    for steps in (3, 6):
        config = settings(tmp_path / "halves", "hash", 15, 4, steps=steps, checkpoint_every=3) | optim
        if steps == 6:  # what a killed run leaves: its checkpoint, and the config that it began with
            saved = tmp_path / "halves" / "run" / "config.yaml"
            saved.write_text(saved.read_text().replace("steps: 3", "steps: 6"))
            shutil.rmtree(tmp_path / "halves" / "run" / "model")
        recgpt.pretrain(config)
    files = [(tmp_path / name / "run" / "model" / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert files[0] == files[1]
    recgpt.pretrain(settings(tmp_path / "next", "hash", 15, 4), from_run=tmp_path / "whole" / "run")
    old, new = (recgpt.RecGPT.from_pretrained(tmp_path / name / "run") for name in ("whole", "next"))
    torch.testing.assert_close(new.catalogue, old.catalogue, rtol=0, atol=1e-6)
