"""Finetuning from a run whose id embedding keeps a list of items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import recgpt
from recgpt.data.prepared import Prepared
from recgpt.stages import load_stage
from tests.finetune.logs import settings


def test_a_full_table_grows_by_the_items_that_tuning_adds(
    data: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    """Each item keeps the row that pretraining gave it; those of validation impressions get rows of their own."""
    values = settings(data, model={"id": {"kind": "full"}}, optim={"lr": 1e-12})
    first = {name: values[name] for name in ("data", "model", "optim", "run")}
    first["run"] = {**first["run"], "steps": 1, "dir": str(tmp_path / "first")}
    load_stage("pretrain")(first)
    values["run"] |= {"steps": 1, "dir": str(tmp_path / "tuned"), "select": "last"}
    values["tasks"] |= {"fit_on": "train_valid"}
    recgpt.finetune(values, from_run=tmp_path / "first")
    before, ranker = (
        recgpt.RecGPT.from_pretrained(tmp_path / "first"),
        recgpt.Ranker.from_pretrained(tmp_path / "tuned"),
    )
    after = ranker.recgpt
    known, added = before.items.trained, np.setdiff1d(after.items.trained, before.items.trained)
    assert np.array_equal(known, prepared.items.trained)
    assert len(added) > 0
    ids = torch.from_numpy(known)
    torch.testing.assert_close(after.model.items.id(ids), before.model.items.id(ids), rtol=0, atol=1e-9)
    assert (after.model.items.id(torch.from_numpy(added)).abs().sum(-1) > 0).all()
    assert before.model.items.id(torch.from_numpy(added)).abs().max() == 0
    ranked = ranker.rank(after.encode({"item": [1, 2], "order": [1, 2], "time": [1, 2]}), list(range(90)))
    assert sum(each.known for each in ranked) == len(known) + len(added)
