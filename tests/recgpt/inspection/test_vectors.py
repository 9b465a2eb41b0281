"""Parts of an item and lengths of its vector: planted, then found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from recgpt.inspection.sample import training_windows
from recgpt.inspection.vectors import item_parts, look_at_items, look_at_queries
from recgpt.runs import TrainedRun
from tests.recgpt.builders import recgpt

MakeRun = Callable[..., TrainedRun]


def test_parts_of_an_item_are_told_apart() -> None:
    made = recgpt()
    assert set(item_parts(made.model)) == {"id", "content", "features.brand", "features.tags"}
    found = look_at_items(made.model, made.items, made.items.trained)["vectors"]
    assert set(found) == {"id", "content", "features.brand", "features.tags", "unnormalised", "item"}
    assert all(part["n"] == len(made.items.trained) for part in found.values())
    assert found["item"]["length"] == pytest.approx(1, abs=1e-5)
    assert found["content"]["effective_rank"] < 6.01  # as wide as the content vectors
    with torch.no_grad():
        made.model.items.features["brand"].table.weight.zero_()
    found = look_at_items(made.model, made.items, made.items.trained)["vectors"]
    assert found["features.brand"]["length"] == 0
    assert found["features.brand"]["information_abundance"] == 0


def test_a_collapsed_item_map_leaves_one_direction(make_run: MakeRun) -> None:
    trained = make_run()
    model, items = trained.model.model, trained.model.items
    before = look_at_items(model, items, items.trained)["vectors"]
    assert before["item"]["information_abundance"] > 5
    with torch.no_grad():
        model.item.weight.copy_(torch.outer(torch.randn(16), torch.randn(16)))
    after = look_at_items(model, items, items.trained)["vectors"]
    assert after["item"]["information_abundance"] == pytest.approx(1, abs=1e-3)
    assert after["item"]["first_direction"] == pytest.approx(1, abs=1e-5)
    assert after["id"] == before["id"]


def test_a_planted_growth_with_popularity_is_found(make_run: MakeRun) -> None:
    trained = make_run(id={"kind": "full"})
    model, items = trained.model.model, trained.model.items
    table = model.items.id
    events = items.n_train_events[items.rows(table.known.numpy())]
    with torch.no_grad():
        unit = torch.nn.functional.normalize(table.table.weight, dim=1)
        table.table.weight.copy_(unit * torch.from_numpy(events)[:, None])
        model.item.weight.mul_(2)
    norms = look_at_items(model, items, items.trained)["norms"]
    assert norms["id"]["spearman"] > 0.98  # items as popular differ by rounding
    assert norms["unnormalised"]["spearman"] > 0.98
    top = norms["unnormalised"]["deciles"][-1]
    assert top["high"] == events.max()
    assert 2 * top["low"] - 1e-4 <= top["median"] <= 2 * top["high"] + 1e-4


def test_queries_are_those_of_the_states(make_run: MakeRun) -> None:
    trained = make_run()
    windows = list(training_windows(trained, 99))
    found = look_at_queries(trained.model.model, trained.model.items, windows)
    queries = trained.model.embed_users(windows).numpy()
    assert found["n"] == len(windows)
    singular = np.linalg.svd(queries, compute_uv=False)
    assert found["information_abundance"] == pytest.approx(singular.sum() / singular[0], rel=1e-3)
