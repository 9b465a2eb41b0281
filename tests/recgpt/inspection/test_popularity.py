"""Lengths against popularity: ranks with ties, Spearman, tenths that part no equal values."""

from __future__ import annotations

import numpy as np
import pytest

from recgpt.inspection.popularity import by_popularity, mean_ranks, spearman


def test_ranks_share_the_mean_of_ties() -> None:
    assert mean_ranks(np.array([30, 10, 20, 20])).tolist() == [4, 1, 2.5, 2.5]
    values = np.random.default_rng(0).integers(0, 9, 50)
    slow = [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]
    assert mean_ranks(values) == pytest.approx(slow)


def test_spearman_by_hand() -> None:
    # Ranks 1 2 3 4 and 1 3 2 4: 1 - 6 (1 + 1) / (4 x 15) = .8.
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1, 30, 20, 400])) == pytest.approx(0.8)
    # With ties: ranks 1 2 3 4 and 1.5 1.5 3 4 about 2.5: 4.5 / sqrt(5 x 4.5).
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([0, 0, 5, 6])) == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert spearman(np.array([1.0, 2, 3]), np.ones(3)) is None


def test_a_planted_growth_is_found() -> None:
    events = np.random.default_rng(0).permutation(np.arange(1, 1001))
    found = by_popularity(np.log(events) + 2, events)
    assert found["spearman"] == pytest.approx(1)
    assert [part["n"] for part in found["deciles"]] == [100] * 10
    assert (found["deciles"][0]["low"], found["deciles"][0]["high"]) == (1, 100)
    assert found["deciles"][9]["median"] == pytest.approx(np.log(950.5) + 2, abs=1e-3)
    assert by_popularity(-np.log(events), events)["spearman"] == pytest.approx(-1)


def test_items_as_popular_stay_together() -> None:
    events = np.array([1] * 50 + [2] * 3 + [9] * 7)
    found = by_popularity(np.arange(60.0), events)["deciles"]
    assert [(part["low"], part["high"], part["n"]) for part in found] == [(1, 1, 50), (2, 2, 3), (9, 9, 7)]
    assert found[2]["median"] == 56
    assert len(by_popularity(np.ones(5), np.full(5, 3))["deciles"]) == 1
