"""Pretraining with each kind of id embedding, and going on with another day's items."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recgpt
from recgpt.nn.ids import ID_EMBEDDINGS
from tests.recgpt.builders import write_log


def settings(folder: Path, kind: str, n_items: int, **run: Any) -> dict[str, Any]:
    return {
        "data": write_log(folder, [12, 15, 9, 20], n_items=n_items),
        "model": {
            "dim": 8,
            "layers": 1,
            "heads": 2,
            "id": {"kind": kind, "rows": 40},
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


def test_a_full_table_goes_on_with_the_rows_of_the_items_that_it_knew(tmp_path: Path) -> None:
    recgpt.pretrain(settings(tmp_path / "a", "full", 12, seed=1))
    recgpt.pretrain(settings(tmp_path / "b", "full", 30, seed=2), from_run=tmp_path / "a" / "run")
    old, new = (recgpt.RecGPT.from_pretrained(tmp_path / day / "run") for day in "ab")
    shared = np.intersect1d(old.items.trained, new.items.trained)
    assert 0 < len(shared) < len(new.items.trained)
    ids = torch.from_numpy(shared)
    torch.testing.assert_close(new.model.items.id(ids), old.model.items.id(ids), rtol=0, atol=1e-9)
    fresh = torch.from_numpy(np.setdiff1d(new.items.trained, old.items.trained))
    assert (new.model.items.id(fresh).abs().sum(-1) > 0).all()
