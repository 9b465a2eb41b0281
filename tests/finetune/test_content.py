"""Finetuning without a pretrained run lays the grids of content over its own items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from recgpt.data.prepare import prepare
from tests.finetune.logs import N_ITEMS, make_task, random_log, settings, write


def test_grids_are_fitted_where_no_run_brings_them(tmp_path: Path) -> None:
    data = write(tmp_path, random_log())
    table = pq.read_table(tmp_path / "items.parquet")
    vectors = (np.random.default_rng(1).normal(size=(N_ITEMS, 4)) + 2).tolist()
    pq.write_table(table.append_column("vector", [vectors]), tmp_path / "items.parquet")
    data["items"]["embedding"] = "vector"
    prepared = prepare({"data": data}, progress=False)
    task = make_task(settings(data, model={"content": {"bins": [1], "projections": 3}}), prepared)
    cascade = task.model.events.items.content.cascade
    known = torch.from_numpy(task.items.embedding[task.items.n_train_events > 0])
    below = (cascade.rows(known) - cascade.first).float().mean(0)
    assert ((below > 0.45) & (below < 0.55)).all()  # one point, half of the training items on either side of it
