"""Which rows of a table are in use, and what is left of its directions: planted, then found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from recgpt.inspection.sample import spread, training_windows
from recgpt.inspection.tables import (
    embedding_tables,
    event_batches,
    event_outputs,
    first_outputs,
    item_outputs,
    look_at_tables,
    reached_rows,
    untrained,
)
from recgpt.nn.hashing import hash_rows
from recgpt.nn.ids import ID_EMBEDDINGS
from recgpt.runs import TrainedRun
from tests.recgpt.inspection.conftest import SMALL

MakeRun = Callable[..., TrainedRun]


def test_reached_rows_by_hand() -> None:
    read, padded, idle = nn.Embedding(6, 4), nn.Embedding(5, 4, padding_idx=0), nn.Embedding(3, 4)
    flat = nn.Parameter(torch.randn(7))
    tables = {"read": read.weight, "padded": padded.weight, "idle": idle.weight, "flat": flat}
    outputs = [
        read(torch.tensor([[1, 4], [4, 4]])),
        padded(torch.tensor([0, 3])) + read(torch.tensor([5, 1])),
        flat[2:4].sum()[None],
        torch.ones(3),  # depends on no table
    ]
    reached = reached_rows(tables, outputs)
    assert np.flatnonzero(reached["read"]).tolist() == [1, 4, 5]
    assert np.flatnonzero(reached["padded"]).tolist() == [3]
    assert np.flatnonzero(reached["flat"]).tolist() == [2, 3]
    assert reached["idle"] is None


def test_a_collapsed_table_has_abundance_one_and_its_start_has_not() -> None:
    torch.manual_seed(0)
    table, start = nn.Parameter(torch.randn(50, 1) @ torch.randn(1, 8)), nn.Parameter(torch.randn(50, 8))
    flat = nn.Parameter(torch.randn(9))
    used = torch.arange(40)
    tables = {"table": table, "flat": flat, "idle": start}
    [found, line, idle] = look_at_tables(tables, tables | {"table": start}, [table[used], flat[:3]])
    assert (found["name"], found["rows"], found["reached"], found["width"]) == ("table", 50, 40, 8)
    assert found["spectrum"]["n"] == 40
    assert found["spectrum"]["information_abundance"] == pytest.approx(1, abs=1e-3)
    assert found["start"]["information_abundance"] > 5
    assert (line["rows"], line["reached"], line["width"]) == (9, 3, 1)
    assert "spectrum" not in line
    assert idle["reached"] is None
    assert idle["spectrum"]["n"] == 50


def test_the_id_rows_in_use_are_those_of_the_trained_items(make_run: MakeRun) -> None:
    trained = make_run()
    model, items = trained.model.model, trained.model.items
    reached = reached_rows(embedding_tables(model), item_outputs(model, items))["items.id.table"]
    assert reached is not None
    rows = np.unique(hash_rows(torch.from_numpy(items.trained), 2, 97).numpy())
    assert np.flatnonzero(reached).tolist() == rows.tolist()
    assert len(rows) < 97


@pytest.mark.parametrize("kind", ID_EMBEDDINGS)
def test_every_kind_of_id_shows_its_tables(kind: str, make_run: MakeRun) -> None:
    trained = make_run(id={"kind": kind, "rows": 97})
    model, items = trained.model.model, trained.model.items
    found = look_at_tables(
        embedding_tables(model), embedding_tables(untrained(model, items)), item_outputs(model, items)
    )
    own = [table for table in found if table["name"].startswith("items.id")]
    assert own
    for table in own:
        assert table["reached"] is not None
        assert 0 < table["reached"] <= table["rows"]
        if "spectrum" in table:
            # Untrained as it is, it has as many directions as another untrained one.
            assert table["spectrum"]["effective_rank"] == pytest.approx(table["start"]["effective_rank"], rel=0.15)


def test_events_and_first_tokens_reach_their_tables(make_run: MakeRun) -> None:
    trained = make_run()
    model, items = trained.model.model, trained.model.items
    outputs = [*event_outputs(model, items, training_windows(trained, 99)), *first_outputs(model, trained.prepared)]
    reached = reached_rows(embedding_tables(model), outputs)
    click = next(rows for name, rows in reached.items() if "click" in name)
    assert click is not None
    assert np.flatnonzero(click).tolist() == [1, 2]  # no and yes; row 0 is the unknown one
    assert reached["items.id.table"] is None


def test_windows_are_those_of_a_state_at_the_end_of_training(make_run: MakeRun) -> None:
    trained = make_run()
    users, window = trained.prepared.users, trained.model.config.window
    windows = list(training_windows(trained, 99))
    with_events = np.flatnonzero(users.train_end > 0)
    assert [len(events) for events in windows] == [n - window.start(n) for n in users.train_end[with_events].tolist()]
    together = list(training_windows(trained, 99, 7))
    assert [events.item.tolist() for events in together] == [events.item.tolist() for events in windows]
    last = trained.history(int(with_events[-1]))[: int(users.train_end[with_events[-1]])]
    assert windows[-1].item.tolist() == last.item[-len(windows[-1]) :].tolist()
    assert len(list(training_windows(trained, 5))) == 5
    batches = list(event_batches(trained.model.items, windows))
    assert sum(len(batch.length) for batch in batches) == len(windows)


def test_an_untrained_model_leaves_the_random_state(make_run: MakeRun) -> None:
    trained = make_run()
    torch.manual_seed(5)
    wanted = torch.randn(3)
    torch.manual_seed(5)
    first = untrained(trained.model.model, trained.model.items)
    assert torch.equal(torch.randn(3), wanted)
    second = untrained(trained.model.model, trained.model.items)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.config.dim == SMALL["dim"]


def test_spread_is_even_in_groups() -> None:
    assert spread(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert spread(101, 4, 2).tolist() == [0, 1, 99, 100]
    chosen = spread(10_000, 1000, 10)
    assert len(chosen) == 1000
    assert (chosen[0], chosen[-1]) == (0, 9999)
    assert np.diff(chosen).max() < 120
