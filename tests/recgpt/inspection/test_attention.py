"""Attention by distance and by time: planted patterns, and even attention worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from recgpt.data.batch import collate
from recgpt.data.events import NO_TIME, Events
from recgpt.inspection.attention import UPPER, distance_bins, look_at_attention, look_at_biases
from recgpt.inspection.sample import training_windows
from recgpt.nn.blocks import BLOCKS
from recgpt.runs import TrainedRun

MakeRun = Callable[..., TrainedRun]


def window(trained: TrainedRun, seconds: list[int | None]) -> Events:
    """Events of the log's items at these times."""
    time = np.array([NO_TIME if s is None else (1_600_000_000 + s) * 10**6 for s in seconds], np.int64)
    n = len(time)
    return Events(trained.model.items.hash[:n], time, {"click": np.zeros(n, np.float32)})


def look(trained: TrainedRun, *windows: Events) -> dict[str, Any]:
    found = look_at_attention(trained.model.model, trained.model.items, windows)
    assert found is not None
    return found


def test_bins_of_distances() -> None:
    assert distance_bins(1) == [0, 1]
    assert distance_bins(2) == [0, 1]
    assert distance_bins(3) == [0, 1, 2]
    assert distance_bins(18) == [0, 1, 2, 3, 5, 9, 17]
    assert distance_bins(17) == [0, 1, 2, 3, 5, 9]


def test_even_attention_by_hand(make_run: MakeRun) -> None:
    """Of two events, 100 s apart: the first sees the start and itself, the second those two and itself."""
    trained = make_run()
    even = look(trained, window(trained, [0, 100]))["even"]
    assert even["first_token"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert even["distance"][:3] == pytest.approx([(1 / 2 + 1 / 3) / 2, 1 / 6, 0])
    assert even["gap"] == pytest.approx([(1 / 2 + 1 / 3) / 2, 0, 1 / 6, *[0] * 8])
    assert even["mean_distance"] == pytest.approx((0 + 1 / 2) / 2)
    assert even["effective_positions"] == pytest.approx((2 + 3) / 2)


def test_every_user_counts_alike(make_run: MakeRun) -> None:
    trained = make_run()
    short, long = window(trained, [0]), window(trained, list(range(0, 1600, 100)))
    apart = [look(trained, short), look(trained, long)]
    both = look(trained, short, long)
    assert (both["users"], both["events"]) == (2, 17)
    for layer in range(2):
        for head in range(2):
            parts = [np.array(found["layers"][layer][head]["distance"]) for found in apart]
            assert both["layers"][layer][head]["distance"] == pytest.approx((parts[0] + parts[1]) / 2, abs=1e-6)


def test_a_planted_distance_and_a_planted_gap_are_found(make_run: MakeRun) -> None:
    trained = make_run(bias={"distance": True, "time": True})
    first, second = (block.bias for block in trained.model.model.transformer.blocks)
    middle = first.distance.shape[1] // 2
    with torch.no_grad():
        for bias in (first, second):
            bias.distance.zero_()
            bias.time.zero_()
        first.distance[0, middle - 1] = 60  # head 1: the event before
        first.distance[1, middle - 5 : middle] = 60  # head 2: any of the five before
        second.time[0, :38] = -60  # head 1: never within exp(.301 x 38) s, a little more than a day
    hours = [0, 1, 2, 40, 41, 100, 101, 102, 103, 104]
    found = look(trained, window(trained, [3600 * h for h in hours]))
    [[previous, few], [old, free]] = found["layers"]
    assert previous["distance"][1] == pytest.approx(0.9, abs=0.01)  # the first of ten events has none before it
    assert previous["mean_distance"] == pytest.approx(0.9, abs=0.02)
    assert sum(few["distance"][1:5]) + few["first_token"] == pytest.approx(1, abs=0.01)
    assert few["first_token"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 10, abs=0.05)  # it is one of five
    below_a_day = 1 + UPPER.index(86_400) + 1
    assert sum(old["gap"][:below_a_day]) < 0.01
    assert sum(old["gap"][below_a_day:]) > 0.3
    assert sum(free["gap"][:below_a_day]) > 0.2
    told = look_at_biases(trained.model.model)
    assert told["distance"][0][0][:4] == pytest.approx([0, 60, 0, 0])
    assert told["distance"][0][1][1:6] == pytest.approx([60, 60, 60, 60 / 4, 0])
    assert told["gap"][1][0][:5] == pytest.approx([-60] * 5)
    assert told["gap"][1][0][6:] == pytest.approx([0, 0, 0])
    assert [len(told["distance"][0][0]), len(told["gap"][0][0])] == [len(found["distance_from"]), len(UPPER) + 1]


def test_unknown_times_are_told_apart(make_run: MakeRun) -> None:
    trained = make_run()
    found = look(trained, window(trained, [None, 0, None]))
    for head in (*found["layers"][0], found["even"]):
        assert head["gap"][-1] == pytest.approx(sum(head["distance"][1:]))
        assert head["gap"][0] == pytest.approx(head["distance"][0])
    assert look_at_biases(trained.model.model) == {}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("changes", [{}, {"positions": "reverse"}, {"causal": False, "positions": "learned"}])
def test_shares_are_whole_for_every_block(block: str, changes: dict[str, Any], make_run: MakeRun) -> None:
    trained = make_run(block=block, **changes)
    found = look(trained, *training_windows(trained, 5))
    assert found["normalised"] is (block != "hstu")
    assert len(found["layers"]) == 2
    for head in [*found["layers"][0], *found["layers"][1], found["even"]]:
        assert sum(head["distance"]) + head["first_token"] == pytest.approx(1, abs=1e-4)
        assert sum(head["gap"]) + head["first_token"] == pytest.approx(1, abs=1e-4)
        assert min(*head["distance"], *head["gap"], head["first_token"]) >= 0


def test_the_mask_is_as_far_from_the_first_event_as_the_window_is_long(make_run: MakeRun) -> None:
    """17 events and the [MASK] behind them: of the 18 rows two see one event at distance 17."""
    trained = make_run(
        causal=False, positions="learned", bias={"distance": True}, window={"length": 17, "stride": 17, "chunk": 17}
    )
    found = look(trained, window(trained, [0] * 17))
    assert found["distance_from"] == [0, 1, 2, 3, 5, 9, 17]
    assert found["even"]["first_token"] == pytest.approx(1 / 19)
    assert found["even"]["distance"][-1] == pytest.approx(2 / 18 / 19)
    assert len(look_at_biases(trained.model.model)["distance"][0][0]) == len(found["distance_from"])


def test_what_the_model_computes_is_what_is_told(make_run: MakeRun) -> None:
    """Against a slow sum over the pairs of one user."""
    trained = make_run()
    model = trained.model.model
    [*_, events] = training_windows(trained, 99)
    found = look(trained, events)
    weights = model.attention_weights(collate([events], trained.model.items))[1][0, 1]
    total = 0.0
    for query in range(1, len(weights)):
        for key in range(1, query + 1):
            total += float(weights[query, key]) if query - key in (3, 4) else 0.0
    assert found["distance_from"][3] == 3
    assert found["layers"][1][1]["distance"][3] == pytest.approx(total / (len(weights) - 1), abs=1e-5)


def test_no_users_no_attention(make_run: MakeRun) -> None:
    trained = make_run()
    assert look_at_attention(trained.model.model, trained.model.items, []) is None
