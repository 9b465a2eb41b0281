"""The published models as configs of ours: what each loss is before anything is learned, and that a step lowers it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recgpt.config import load_config, read_config
from recgpt.data.prepare import prepare
from recgpt.model import EventModel
from recgpt.stages import load_stage

pretrain = load_stage("pretrain")

from recgpt.pretrain.config import PretrainConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.pretrain.task import PretrainTask  # noqa: E402

BASELINES = sorted((Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "baselines").glob("*.yaml"))
N_USERS, LENGTH, N_ITEMS = 20, 24, 400

# Scores start near 0, so each loss starts where all scores are equal. C = 400 items, all of them trained on.
BETA = 1 - 0.75 * (1 - 256 / (N_ITEMS - 1))  # gSASRec: the weight of the positive at t = .75 and 256 negatives
NOTHING_LEARNED = {
    "sasrec": math.log(2),  # binary cross-entropy of one negative: the mean of two log 2
    "gsasrec": (BETA + 256) / 257 * math.log(2),
    "sasrec_ce": math.log(N_ITEMS),
    "bert4rec": math.log(N_ITEMS),
    "esasrec": math.log(1 + 256),  # the positive and 256 negatives, none of them corrected
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Users that go round a ring of items, each from a place of their own."""
    folder = tmp_path_factory.mktemp("ring")
    user, place = np.divmod(np.arange(N_USERS * LENGTH), LENGTH)
    table = {"user": user, "item": (20 * user + place) % N_ITEMS, "place": place}
    pq.write_table(pa.table(table), folder / "events.parquet")
    log = {"events": str(folder / "events.parquet"), "user": "user", "item": "item", "order": "place"}
    return log | {"prepared": str(folder / "prepared")}


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_a_baseline_starts_from_nothing_and_learns(path: Path, data: dict[str, Any]) -> None:
    values = read_config(path) | {"data": data}
    values["model"] |= {"dim": 8, "dropout": 0.0, "window": {"length": 24, "stride": 12, "chunk": 12}}
    config = load_config(PretrainConfig, values)
    prepared = prepare(config.data, progress=False)
    assert len(prepared.items.trained) == N_ITEMS
    model = EventModel(config.model, prepared.schema, prepared.items.trained)
    task = PretrainTask(config, prepared, model)
    batch = next(iter(task.batches(0, 0)))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        result = task.step(batch)
        result.loss.backward()
        optimizer.step()
        losses.append(float(result.loss.detach()))
    if path.stem == "hstu":  # cosines / .05 are not near 0
        assert losses[0] > math.log(1 + 128)
    else:
        assert losses[0] == pytest.approx(NOTHING_LEARNED[path.stem], rel=0.02)
    assert losses[-1] < losses[0]
