"""Pretraining lays the grids of content over the training items, once: a run that goes on keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recgpt.api import RecGPT
from recgpt.stages import load_stage
from tests.recgpt.builders import N_ITEMS, write_log

pretrain = load_stage("pretrain")

MODEL = {
    "dim": 8,
    "layers": 1,
    "heads": 1,
    "id": {"rows": 53},
    "window": {"length": 8, "stride": 8, "chunk": 8},
    "content": {"bins": [1, 4], "projections": 3, "norm_bins": 2},
}


def trained(folder: Path, shift: float, from_run: Path | None = None) -> RecGPT:
    """A run of one epoch on a log whose content vectors are moved by `shift`."""
    data: dict[str, Any] = write_log(folder, [6, 7, 8, 9])
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 4)) + shift
    pq.write_table(pa.table({"item": list(range(N_ITEMS)), "vector": vectors.tolist()}), folder / "items.parquet")
    data["items"] = {"path": str(folder / "items.parquet"), "id": "item", "embedding": "vector"}
    config = {"data": data, "model": MODEL, "run": {"dir": str(folder / "run"), "epochs": 1}}
    return RecGPT.from_pretrained(pretrain(config, from_run=from_run)["run"])


def test_grids_are_fitted_once(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", 2.0)
    content = first.model.items.content
    vectors = torch.from_numpy(first.items.embedding[first.items.n_train_events > 0])
    below = (content.cascade.rows(vectors) - content.cascade.first)[:, :3].float().mean(0)
    assert ((below > 0.45) & (below < 0.55)).all()  # one point, half of the training items on either side of it
    counts = torch.bincount(content.norm.rows(vectors), minlength=3)
    assert counts.max() - counts.min() <= 1
    second = trained(tmp_path / "second", -3.0, tmp_path / "first" / "run").model.items.content
    assert torch.equal(second.cascade.grid, content.cascade.grid)
    assert torch.equal(second.norm.grid, content.norm.grid)
    assert not torch.equal(second.cascade.table.weight, content.cascade.table.weight)
