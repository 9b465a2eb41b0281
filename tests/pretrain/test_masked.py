"""Masked pretraining: the config's checks, the batches, that it learns, and that its states recommend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from recgpt.config import load_config
from recgpt.data.masked import MaskedItems
from recgpt.data.prepare import prepare
from recgpt.errors import ConfigError
from recgpt.model import EventModel
from recgpt.ranker import RankingModel
from recgpt.stages import load_stage
from tests.recgpt.builders import ranker, recgpt, write_log

load_stage("pretrain")

from recgpt.pretrain.config import PretrainConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.pretrain.targets import target_rule  # noqa: E402
from recgpt.pretrain.task import PretrainTask  # noqa: E402

MODEL = {
    "dim": 16,
    "block": "bert",
    "positions": "learned",
    "causal": False,
    "dropout": 0.0,
    "id_dropout": 0.0,
    "id": {"rows": 997},
    "window": {"length": 16, "stride": 8, "chunk": 4},
}


def config(data: dict[str, Any], model: dict[str, Any] | None = None, **loss: Any) -> PretrainConfig:
    values = {
        "data": data,
        "model": MODEL | (model or {}),
        "loss": {"objective": "masked", "columns": "catalogue"} | loss,
        "optim": {"precision": "fp32", "batch_tokens": 160},
        "run": {"steps": 4},
    }
    return load_config(PretrainConfig, values)


def task(data: dict[str, Any], model: dict[str, Any] | None = None, **loss: Any) -> PretrainTask:
    resolved = config(data, model, **loss)
    prepared = prepare(resolved.data, progress=False)
    torch.manual_seed(0)
    made = PretrainTask(resolved, prepared, EventModel(resolved.model, prepared.schema))
    made.model.train()
    return made


def test_the_objective_and_the_model_must_fit(tmp_path: Path) -> None:
    data = write_log(tmp_path, [5, 9])
    schema = prepare(config(data).data, progress=False).schema

    def rule(model: dict[str, Any] | None = None, **loss: Any) -> object:
        return target_rule(config(data, model, **loss), schema)

    assert rule(masked={"probability": 0.6, "last_only": 0.0}) == MaskedItems(0.6, 0.0)
    assert rule(targets="all") == MaskedItems(0.2, 0.1, every=True)
    with pytest.raises(ConfigError, match="loss.objective: masked needs .*; set model.causal: false"):
        rule({"causal": True})
    with pytest.raises(ConfigError, match="model.causal: false shows .*; set loss.objective: masked"):
        rule(objective="next")
    with pytest.raises(ConfigError, match="loss.horizon: 1d and loss.objective: masked both choose targets"):
        rule(horizon="1d")
    with pytest.raises(ConfigError, match="loss.auxiliary: .*set model.causal: true"):
        rule(auxiliary={"outcomes": 1.0})
    with pytest.raises(ConfigError, match=r"look_ahead: \[0, 3\] needs causal: true"):
        rule({"look_ahead": [0, 3]})


def test_batches_predict_what_they_hide(tmp_path: Path) -> None:
    """The step is the softmax over the catalogue of the queries at [MASK]s, and every kind of window occurs."""
    made = task(write_log(tmp_path, [3, 5, 9, 14, 18, 23, 30, 40]), masked={"probability": 0.3, "last_only": 0.3})
    appended = inside = 0
    for batch in made.batches(0, 0):
        width = batch.item.shape[1] + 1
        row, place = batch.position // width, batch.position % width
        within = place < batch.length[row]
        assert batch.masked is not None
        assert int(within.sum()) == int(batch.masked.sum())
        assert batch.masked[row[within], place[within]].all()
        assert torch.equal(batch.item[row[within], place[within]], batch.target[within])
        inside, appended = inside + int(within.sum()), appended + int((~within).sum())

        events, items = made.model.events, made.prepared.items
        known = torch.from_numpy(items.trained)
        scores = (
            events.queries(events(batch).flatten(0, 1)[batch.position])
            @ events.vectors(events.items(known, {}, None)).T
        )
        wanted = torch.searchsorted(known, batch.items[batch.target])
        expected = F.cross_entropy(scores / made.loss.temperature, wanted)
        assert made.step(batch).loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert inside > 10
    assert appended > 3


def test_a_masked_run_recommends_what_follows(tmp_path: Path) -> None:
    """Items go round in a ring: after i comes i + 1. The [MASK] after the newest event learns it."""
    n_users, length, ring = 60, 12, 6
    start = np.random.default_rng(0).integers(0, ring, n_users)
    item = (start[:, None] + np.arange(length)) % ring
    log = pa.table({"user": np.repeat(np.arange(n_users), length), "item": item.ravel()})
    pq.write_table(log, tmp_path / "events.parquet")
    data = {
        "events": str(tmp_path / "events.parquet"),
        "user": "user",
        "item": "item",
        "order": "row",
        "prepared": str(tmp_path / "prepared"),
    }
    made = task(data, {"layers": 1, "block": "standard", "positions": "rotary"})
    optimiser = torch.optim.Adam(made.model.parameters(), lr=0.01)
    for epoch in range(25):
        for batch in made.batches(epoch, 0):
            optimiser.zero_grad()
            made.step(batch).loss.backward()
            optimiser.step()
    model = made.recgpt()
    for first in range(ring):
        state = model.encode({"item": [(first + i) % ring for i in range(9)]})
        assert model.recommend(state, 1, exclude_seen=False)[0].item == (first + 9) % ring


def test_ranking_refuses_a_model_whose_old_vectors_move() -> None:
    network = ranker().network
    for form in ({"causal": False}, {"positions": "reverse"}):
        with pytest.raises(ConfigError, match=r"model\.positions: reverse and model\.causal: false change older"):
            RankingModel(recgpt(**form).model, network)
