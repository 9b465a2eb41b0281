"""What a run is asked to predict: the rule that its config chooses, the loss of it, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.config import load_config
from recgpt.data.batch import EventBatch, collate
from recgpt.data.prepare import prepare
from recgpt.data.targets import LookAhead, NextItem, WithinHorizon
from recgpt.errors import ConfigError
from recgpt.evaluation import compare, evaluate, model_scorer, rank_users
from recgpt.model import EventModel
from recgpt.stages import load_stage
from tests.recgpt.builders import N_ITEMS, write_log

load_stage("pretrain")

from recgpt.pretrain.config import PretrainConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.pretrain.targets import target_rule  # noqa: E402
from recgpt.pretrain.task import PretrainTask  # noqa: E402

TEMPERATURE = 0.5
MODEL = {
    "dim": 16,
    "heads": 2,
    "dropout": 0.0,
    "id_dropout": 0.0,
    "id": {"rows": 97},
    "window": {"length": 16, "stride": 8, "chunk": 4},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A log with a clock, an outcome and content vectors."""
    folder = tmp_path_factory.mktemp("log")
    data = write_log(folder, [3, 5, 9, 14, 18, 23, 30, 40, 7, 12])
    vectors = np.random.default_rng(1).normal(size=(N_ITEMS, 4)).tolist()
    pq.write_table(pa.table({"item": list(range(N_ITEMS)), "vector": vectors}), folder / "items.parquet")
    return data | {"items": {"path": str(folder / "items.parquet"), "id": "item", "embedding": "vector"}}


def config(data: dict[str, Any], model: dict[str, Any] | None = None, **loss: Any) -> PretrainConfig:
    values = {
        "data": data,
        "model": MODEL | (model or {}),
        "loss": {"temperature": TEMPERATURE} | loss,
        "optim": {"precision": "fp32", "batch_tokens": 160},
        "run": {"steps": 4},
    }
    return load_config(PretrainConfig, values)


def task(data: dict[str, Any], model: dict[str, Any] | None = None, **loss: Any) -> PretrainTask:
    """A task in float32 without dropout, with weights far from their start."""
    resolved = config(data, model, **loss)
    prepared = prepare(resolved.data, progress=False)
    torch.manual_seed(0)
    events = EventModel(resolved.model, prepared.schema)
    with torch.no_grad():
        for parameter in events.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in events.query.modules():  # the vector of an unknown outcome is zero
            if isinstance(module, torch.nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    made = PretrainTask(resolved, prepared, events)
    made.model.train()
    return made


def cross_entropy(made: PretrainTask, batch: EventBatch, q: Tensor) -> Tensor:
    """Plain softmax cross-entropy of queries [N, D] over every trained item."""
    items, events = made.prepared.items, made.model.events
    rows = np.flatnonzero(items.n_train_events > 0)
    assert items.embedding is not None
    v = events.vectors(events.items(torch.from_numpy(items.hash[rows]), {}, torch.from_numpy(items.embedding[rows])))
    place = {int(hash): i for i, hash in enumerate(items.hash[rows])}
    positive = torch.tensor([place[int(hash)] for hash in batch.items[batch.target]])
    return F.cross_entropy(q.double() @ v.double().T / TEMPERATURE, positive)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_the_config_chooses_the_rule(data: dict[str, Any]) -> None:
    made = task(data)
    schema = made.prepared.schema

    def rule(model: dict[str, Any] | None = None, **loss: Any) -> object:
        return target_rule(config(data, model, **loss), schema)

    assert made.data.targets == rule() == NextItem()
    assert rule(targets="all") == NextItem(every=True)
    assert rule({"look_ahead": [0, 5, 12]}) == LookAhead((0, 5, 12))
    assert rule({"look_ahead": [0, 5]}, targets="all") == LookAhead((0, 5), every=True)
    assert rule(horizon="2d") == WithinHorizon(2 * 86_400 * 10**6)
    assert rule(horizon="1h", horizon_positions=4, targets="all") == WithinHorizon(3600 * 10**6, 4, every=True)
    with pytest.raises(ConfigError, match=r"loss.horizon: 1d and model.look_ahead: \[0, 3\] both choose targets"):
        rule({"look_ahead": [0, 3]}, horizon="1d")
    with pytest.raises(ConfigError, match="loss.horizon: 1d needs the events' times; name data.time"):
        target_rule(config(data, horizon="1d"), schema.model_copy(update={"has_time": False}))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"horizon": "28"}, "loss.horizon: .*'28' is no length of time; .*28d"),
        ({"horizon": "0d"}, "loss.horizon: .*'0d' is no length of time"),
        ({"horizon_positions": 4}, "horizon_positions: 4 goes with horizon"),
        ({"horizon": "1d", "horizon_positions": 0}, "loss.horizon_positions"),
        ({"condition_dropout": 1.0}, "loss.condition_dropout"),
        ({"self_supervision": {"masking": "half"}}, "loss.self_supervision.masking"),
    ],
)
def test_settings_that_cannot_be(data: dict[str, Any], loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(data, **loss)


# -- losses ------------------------------------------------------------------------------------------------------------


def test_look_aheads_have_their_own_maps_and_share_one_mean(data: dict[str, Any]) -> None:
    made = task(data, {"look_ahead": [0, 2, 6]}, columns="catalogue")
    query = made.model.events.query
    maps = [query.weight, *(ahead.weight for ahead in query.ahead)]
    for batch in [batch for batch in made.batches(0, 0) if 2 in batch.head][:3]:
        hidden = made.model.events(batch).flatten(0, 1)[batch.position]
        rows = [F.normalize(maps[h] @ x, dim=-1) for h, x in zip(batch.head.tolist(), hidden, strict=True)]
        expected = cross_entropy(made, batch, torch.stack(rows))
        result = made.step(batch)
        assert result.targets == len(batch.position)
        assert result.loss.item() == pytest.approx(expected.item(), abs=1e-5)
        made.model.zero_grad()
        result.loss.backward()
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in maps)


def test_a_horizon_gives_targets_and_tells_what_it_drops(data: dict[str, Any]) -> None:
    made = task(data, horizon="1d", columns="catalogue")
    dropped = kept = 0
    for number, rows in enumerate(made.data.order(0)):
        batch = made.data.batch(rows, (0, number))
        windows = made.data.windows
        positions = int((windows.length[rows] + 1 - windows.skip[rows]).sum())
        result = made.step(batch)
        n = len(batch.position)
        assert result.metrics["dropped"] == pytest.approx((positions - n) / max(1, n))
        if len(batch.position):
            q = made.model.events.queries(made.model.events(batch).flatten(0, 1)[batch.position])
            assert result.loss.item() == pytest.approx(cross_entropy(made, batch, q).item(), abs=1e-5)
        dropped, kept = dropped + positions - len(batch.position), kept + len(batch.position)
    assert dropped > 10
    assert kept > 10


def test_a_batch_without_a_target_changes_nothing(data: dict[str, Any]) -> None:
    made = task(data, horizon="1d")
    batch = next(made.batches(0, 0))
    none = torch.zeros(0, dtype=torch.int64)
    result = made.step(replace(batch, position=none, target=none, head=none, wanted={}))
    assert (result.loss.item(), result.targets) == (0, 0)
    result.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in made.model.parameters())


def test_a_horizon_within_which_nothing_happens_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss.horizon: 1s gives no target in the first 20 batches; take a longer"):
        task(data, horizon="1s")


def test_a_plain_run_has_no_part_of_it(data: dict[str, Any]) -> None:
    made = task(data)
    batch = next(made.batches(0, 0))
    assert made.step(batch).metrics.keys() == {"columns"}
    assert [name for name, _ in made.model.events.query.named_parameters()] == ["weight"]


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_queries_are_told_of_their_own_targets_outcomes(data: dict[str, Any]) -> None:
    made = task(data, {"condition": True}, columns="catalogue", condition_dropout=0.0)
    events = made.model.events
    for batch in list(made.batches(0, 0))[:3]:
        hidden = events(batch).flatten(0, 1)[batch.position]
        table = events.query.outcomes["click"].table.weight  # rows: unknown, 0, 1
        told = torch.where(batch.wanted["click"].isnan(), 0, batch.wanted["click"] + 1).long()
        assert set(told.tolist()) == {0, 1, 2}
        q = F.normalize((hidden + 0.5 * 16**0.5 * table[told]) @ events.query.weight.T, dim=-1)
        assert made.step(batch).loss.item() == pytest.approx(cross_entropy(made, batch, q).item(), abs=1e-5)


def test_a_targets_outcome_moves_its_query_and_no_hidden_vector(data: dict[str, Any]) -> None:
    """The outcome of event t is an input from position t + 1 on; the query at t reads it beside the state."""
    made = task(data, {"condition": True})
    made.model.eval()
    events, t = made.model.events, 4
    log = made.prepared.events(*(int(made.prepared.users.offset[7] + i) for i in (0, 10)))

    def run(click: float) -> tuple[Tensor, Tensor]:
        changed = log.outcomes["click"].copy()
        changed[t] = click
        window = replace(log, outcomes={"click": changed})
        chosen = NextItem(every=True).choose(window, 9, 0, np.random.default_rng(0))
        batch = collate([window[:9]], made.prepared.items, [chosen])
        hidden = events(batch).flatten(0, 1)
        return hidden, events.queries(hidden[batch.position], batch.head, batch.wanted)

    (hidden, query), (other_hidden, other_query) = run(0.0), run(1.0)
    assert torch.equal(hidden[: t + 1], other_hidden[: t + 1])
    assert torch.equal(query[:t], other_query[:t])
    assert (query[t] - other_query[t]).abs().max() > 0.01
    assert (hidden[t + 1 :] - other_hidden[t + 1 :]).abs().amax(1).min() > 1e-4  # from then on it is known


def liked_log(folder: Path) -> dict[str, Any]:
    """Items 0 to 19 are liked and 20 to 39 are not, each as often: only the asked outcome tells which comes next."""
    rng = np.random.default_rng(0)
    n_users, length = 60, 12
    item = rng.integers(0, 40, n_users * length)
    log = pa.table(
        {
            "user": np.repeat(np.arange(n_users), length),
            "item": item,
            "time": 1_600_000_000 + np.arange(n_users * length),
            "like": (item < 20).astype(np.int64),
        }
    )
    pq.write_table(log, folder / "events.parquet")
    return {
        "events": str(folder / "events.parquet"),
        "user": "user",
        "item": "item",
        "time": "time",
        "outcomes": {"like": {"kind": "binary"}},
        "prepared": str(folder / "prepared"),
    }


def liked_run(folder: Path, **more: Any) -> PretrainTask:
    """Some epochs on `liked_log`."""
    made = task(
        liked_log(folder) | more,
        {"condition": True, "layers": 1, "id": {"rows": 997}},
        columns="catalogue",
        targets="all",
    )
    optimiser = torch.optim.Adam(made.model.parameters(), lr=0.02)
    for epoch in range(6):
        for batch in made.batches(epoch, 0):
            optimiser.zero_grad()
            made.step(batch).loss.backward()
            optimiser.step()
    return made


def test_validation_asks_for_what_makes_a_target(tmp_path: Path) -> None:
    """Where a like makes the target, the items that nobody likes need not be ranked among them."""
    made = liked_run(tmp_path, target={"outcome": "like", "min": 1})
    asked = made.evaluate()
    rankings, _ = rank_users(made.prepared, "valid", {"model": model_scorer(made.recgpt())}, (10,))
    unasked = rankings["model"].metrics.result()
    assert asked["recall@10"] > 0.5 > unasked["recall@10"]  # a third by chance, two thirds among the liked
    assert asked["ndcg@10"] > 1.3 * unasked["ndcg@10"]  # with half as many items to choose from
    made.target = {}
    assert made.evaluate() == unasked


@pytest.mark.parametrize(
    ("kind", "least", "asked"),
    [("binary", 1, {"like": 1}), ("binary", 0.5, {"like": 1}), ("binary", 0, {}), ("regression", 1, {})],
)
def test_what_an_evaluated_run_is_asked_for(tmp_path: Path, kind: str, least: float, asked: dict[str, float]) -> None:
    """Only the yes of a yes/no outcome; `evaluate` and the run's own validation ask alike."""
    data = liked_log(tmp_path) | {"outcomes": {"like": {"kind": kind}}, "target": {"outcome": "like", "min": least}}
    model = {"dim": 16, "heads": 2, "id": {"rows": 97}, "condition": True} | {
        "window": {"length": 16, "stride": 8, "chunk": 4}
    }
    config = {"data": data, "model": model, "run": {"steps": 3, "dir": str(tmp_path / "run"), "threads": 1}}
    told = load_stage("pretrain")(config)["valid"]
    found = evaluate(tmp_path / "run", "valid", (10,))
    assert found["protocol"]["asked"] == asked
    assert told == {name: found["model"][name] for name in told}
    assert compare(tmp_path / "run", tmp_path / "run", "valid")["asked"] == {str(tmp_path / "run"): asked}


def test_only_the_newest_events_are_predicted_by_every_objective(data: dict[str, Any]) -> None:
    """A run's batches, whichever rule chooses the targets."""
    for model, loss in (
        ({}, {}),
        ({"look_ahead": [0, 2]}, {}),
        ({"causal": False}, {"objective": "masked", "masked": {"probability": 1.0, "last_only": 0.0}}),
    ):
        every, some = (task(data, model, **loss, newest=newest) for newest in (None, 3))
        users = some.prepared.users
        found = [
            batch.position if batch.head is None else batch.position[batch.head == 0] for batch in some.batches(0, 0)
        ]
        count = sum(map(len, found))
        expected = sum(
            int(some.prepared.events(int(at + max(0, end - 3)), int(at + end)).target.sum())
            for at, end in zip(users.offset, users.train_end, strict=True)
        )
        assert count == expected
        assert expected < sum(len(batch.position) for batch in every.batches(0, 0))
    with pytest.raises(ConfigError, match=r"loss.newest: 2 leaves a look-ahead beyond 2 events nothing to learn"):
        task(data, {"look_ahead": [0, 2, 4]}, newest=2)


def test_a_run_learns_what_is_liked(tmp_path: Path) -> None:
    made, rng = liked_run(tmp_path), np.random.default_rng(1)
    model = made.recgpt()
    histories = [{"item": rng.integers(0, 40, 6).tolist()} for _ in range(40)]
    states = model.encode_many([h | {"like": [int(i < 20) for i in h["item"]]} for h in histories])

    def mass(want: dict[str, float] | None) -> float:
        """Of the liked items, by the model's own softmax."""
        scores = [dict(model.recommend(state, 40, exclude_seen=False, want=want)) for state in states]
        weights = np.exp(np.array([[score[i] for i in range(40)] for score in scores]) / TEMPERATURE)
        return float((weights[:, :20].sum(1) / weights.sum(1)).mean())

    assert mass({"like": 1}) > 0.8
    assert mass({"like": 0}) < 0.2
    assert 0.25 < mass(None) < 0.75  # the query that asks for nothing was trained too


# -- items' own loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["cosine", "dot"])
def test_self_supervision_is_added_by_its_weight(data: dict[str, Any], score: str) -> None:
    """It compares directions, whatever the next item's score is."""
    model, own_config = {"score": score}, {"weight": 0.25, "temperature": 0.2, "n_items": 16}
    plain, made = task(data, model), task(data, model, self_supervision=own_config)
    batch = next(plain.batches(0, 0))
    torch.manual_seed(3)
    alone = plain.step(batch)
    torch.manual_seed(3)
    both = made.step(batch)
    torch.manual_seed(3)
    events = made.model.events
    assert made.self_supervision is not None
    own, n = made.self_supervision.loss(lambda *item: F.normalize(events.vectors(events.items(*item)), dim=-1))
    assert n > 5
    assert both.metrics.keys() == {"columns", "self_supervision"}
    assert both.metrics["self_supervision"] == pytest.approx(own.item(), abs=1e-6)
    assert both.loss.item() == pytest.approx(alone.loss.item() + 0.25 * own.item(), abs=1e-6)


def test_a_log_without_item_features_cannot_split_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="loss.self_supervision: the items have an id and nothing else"):
        task(write_log(tmp_path, [5, 9]), self_supervision={"weight": 1})
