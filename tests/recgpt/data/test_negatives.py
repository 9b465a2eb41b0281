"""Drawn negatives: their probabilities, what they avoid, and what fixes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recgpt.data import negatives
from recgpt.data.events import Events
from recgpt.data.hashing import hash_ids
from recgpt.data.negatives import Alias, DrawnNegatives, target_counts
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.data.sampler import Predicted, TrainingBatches
from recgpt.data.schema import DataConfig
from recgpt.data.targets import Chosen
from recgpt.data.window import WindowConfig
from tests.recgpt.builders import write_log

COUNTS = np.array([1, 2, 3, 5, 8, 13, 21, 34, 55, 100] * 5)
WINDOW = WindowConfig(length=16, stride=8, chunk=4)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def chi_square(drawn: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    expected = probability * len(drawn)
    return float(((np.bincount(drawn, minlength=len(probability)) - expected) ** 2 / expected).sum())


def hashes() -> NDArray[np.int64]:
    return hash_ids(list(range(len(COUNTS))))


def draw(drawer: DrawnNegatives, windows: Sequence[Events] = (), targets: Sequence[Chosen] = (), seed: int = 0) -> Any:
    """Hashes int64 [M] of the draws."""
    drawn = drawer(rng(seed), windows, targets)
    assert len(set(drawn.hashes.tolist())) == len(drawn.hashes) == len(set(drawn.rows.tolist()))
    return drawn.hashes[drawn.rows]


def events(items: list[int]) -> Events:
    column = hashes()[items]
    return Events(column, np.zeros(len(items), np.int64))


def test_popularity_to_the_three_quarters() -> None:
    drawer = DrawnNegatives(hashes(), 10**6, counts=COUNTS)
    weights = COUNTS**0.75
    place = {item: i for i, item in enumerate(drawer.hashes.tolist())}
    rows = [place[item] for item in hashes().tolist()]
    np.testing.assert_allclose(drawer.probability[rows], weights / weights.sum())
    assert drawer.probability[rows[9]] / drawer.probability[rows[0]] == pytest.approx(31.6, abs=0.03)  # 100 ** .75
    drawn = np.searchsorted(drawer.hashes, draw(drawer))
    assert chi_square(drawn, drawer.probability) < 85.35  # the 99.9th percentile at 49 degrees of freedom
    assert chi_square(drawn, np.full(50, 0.02)) > 10**5  # what it tells apart


def test_uniform_draws() -> None:
    drawer = DrawnNegatives(hashes(), 10**6)
    np.testing.assert_allclose(drawer.probability, 0.02)
    assert chi_square(np.searchsorted(drawer.hashes, draw(drawer)), drawer.probability) < 85.35


def test_a_power_of_zero_is_uniform_and_of_one_proportional() -> None:
    np.testing.assert_allclose(DrawnNegatives(hashes(), 1, counts=COUNTS, power=0).probability, 0.02)
    ordered = COUNTS[np.argsort(hashes())]
    np.testing.assert_allclose(DrawnNegatives(hashes(), 1, counts=COUNTS, power=1).probability, ordered / COUNTS.sum())


@pytest.mark.parametrize("weights", [[1.0], [0.0, 3.0], [1e-9, 1.0, 1e9], [0.1] * 7])
def test_the_alias_table_holds_the_probabilities(weights: list[float]) -> None:
    made = Alias(np.array(weights))
    n = len(weights)
    found = made.keep / n + np.bincount(made.other, 1 - made.keep, n) / n
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), atol=1e-12)


def test_draws_are_a_function_of_the_generator() -> None:
    drawer = DrawnNegatives(hashes(), 20, counts=COUNTS)
    first, again, other = (draw(drawer, seed=seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    assert set(first.tolist()) <= set(hashes().tolist())


@pytest.mark.parametrize("counts", [None, COUNTS])
def test_a_row_s_own_negatives_avoid_its_window(counts: NDArray[np.int64] | None) -> None:
    windows = [events(list(range(40))), events([7])]
    targets = [Chosen(np.array([3, 40]), hashes()[[3, 44]]), Chosen(np.array([1]), hashes()[[8]])]
    drawer = DrawnNegatives(hashes(), 400, counts=counts, per_row=True, avoid=True)
    drawn = draw(drawer, windows, targets).reshape(3, 400)
    left = set(hashes()[[*range(40, 44), *range(45, 50)]].tolist())
    assert set(drawn[0].tolist()) <= left
    assert set(drawn[:2].reshape(-1).tolist()) == left
    assert not {hashes()[7], hashes()[8]} & set(drawn[2].tolist())
    assert len(set(drawn[2].tolist())) > 20
    anywhere = draw(DrawnNegatives(hashes(), 60, counts=counts, per_row=True), windows, targets).reshape(3, 60)
    assert not set(anywhere[0].tolist()) <= left


def test_a_user_who_knows_every_item_still_gets_negatives() -> None:
    drawer = DrawnNegatives(hashes(), 4, per_row=True, avoid=True)
    drawn = draw(drawer, [events(list(range(50)))], [Chosen(np.array([50]), hashes()[[0]])])
    assert len(drawn) == 4


def test_many_windows_of_many_items_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where flags would not fit, what a window holds is searched for."""
    windows = [events(list(range(40))), events([7])]
    targets = [Chosen(np.array([3, 40]), hashes()[[3, 44]]), Chosen(np.array([1]), hashes()[[8]])]
    drawn = []
    for limit in (1 << 28, 0):
        monkeypatch.setattr(negatives, "_FLAGS", limit)
        drawn.append(draw(DrawnNegatives(hashes(), 50, per_row=True, avoid=True), windows, targets))
    np.testing.assert_array_equal(*drawn)


def test_an_item_outside_the_catalogue_is_nothing_to_avoid() -> None:
    drawer = DrawnNegatives(hashes()[:10], 8, per_row=True, avoid=True)
    drawn = draw(drawer, [events([49, 48])], [Chosen(np.array([0]), hashes()[[47]])])
    assert set(drawn.tolist()) <= set(hashes()[:10].tolist())


# -- in a log's batches ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data = write_log(tmp_path_factory.mktemp("log"), [3, 5, 9, 30, 40, 7])
    return prepare(DataConfig.model_validate(data | {"target": {"outcome": "click", "min": 1}}), progress=False)


def test_a_batch_s_negatives_are_fixed_by_its_place(prepared: Prepared) -> None:
    items = prepared.items
    drawer = DrawnNegatives(items.hash[items.n_train_events > 0], 12)

    def drawn(seed: int, epoch: int, skip: int = 0) -> list[list[int]]:
        batches = TrainingBatches(prepared, WINDOW, 40, seed, which=Predicted(every=True), negatives=drawer)
        found = []
        for batch in batches.epoch(epoch, skip):
            assert batch.negative is not None
            found.append(batch.items[batch.negative].tolist())
        return found

    first = drawn(0, 0)
    assert len(first) > 3
    assert all(len(each) == 12 for each in first)
    assert drawn(0, 0) == first
    assert drawn(0, 0, 2) == first[2:]  # a resumed epoch draws what the whole one drew
    assert drawn(0, 1) != first
    assert drawn(1, 0) != first
    assert len({tuple(each) for each in first}) == len(first)


def test_target_counts(prepared: Prepared) -> None:
    counted = np.zeros(len(prepared.items), np.int64)
    users = prepared.users
    for user in range(len(users)):
        part = prepared.events(users.offset[user], users.offset[user] + users.train_end[user])
        for item, target in zip(part.item, part.target, strict=True):
            counted[prepared.items.hash == item] += target
    assert target_counts(prepared, every=False).tolist() == counted.tolist()
    assert 0 < counted.sum() < users.train_end.sum()
    assert target_counts(prepared, every=True).tolist() == prepared.items.n_train_events.tolist()
