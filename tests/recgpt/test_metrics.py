"""Ranks, gains and intervals against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recgpt.errors import RecGPTError
from recgpt.metrics import (
    MISS,
    RetrievalMetrics,
    ndcg_gain,
    paired_interval,
    recall_gain,
    reciprocal_rank,
    target_ranks,
    top_k,
)

INF = np.inf


def scores(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


class TestTargetRanks:
    def test_rank_counts_the_others_that_score_at_least_as_high(self):
        rank, ties = target_ranks(scores([0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]), [2, 0])
        assert rank.tolist() == [3, 1]
        assert ties.tolist() == [0, 0]

    def test_equal_scores_put_the_target_last(self):
        rank, ties = target_ranks(np.zeros((2, 5), dtype=np.float32), [0, 4])
        assert rank.tolist() == [5, 5]
        assert ties.tolist() == [4, 4]

    def test_a_tie_with_one_item_costs_one_place(self):
        rank, ties = target_ranks(scores([0.9, 0.5, 0.5, 0.1]), [1])
        assert (rank[0], ties[0]) == (3, 1)

    def test_excluded_columns_do_not_count(self):
        rank, ties = target_ranks(scores([-INF, 0.5, -INF, 0.1]), [3])
        assert (rank[0], ties[0]) == (2, 0)

    @pytest.mark.parametrize("target", [-1, 1])
    def test_a_target_outside_the_candidates_is_a_miss(self, target):
        rank, ties = target_ranks(scores([0.3, -INF, -INF]), [target])
        assert (rank[0], ties[0]) == (MISS, 0)

    def test_nan_is_refused_with_its_row(self):
        with pytest.raises(RecGPTError, match="NaN in row 1"):
            target_ranks(scores([0.0, 1.0], [np.nan, 1.0]), [0, 1])

    @pytest.mark.parametrize("target", [[2], [-2]])
    def test_a_column_out_of_range_is_refused(self, target):
        with pytest.raises(RecGPTError, match=f"column {target[0]} is outside 0..1"):
            target_ranks(scores([0.0, 1.0]), target)

    def test_shapes_that_do_not_fit_are_refused(self):
        with pytest.raises(RecGPTError, match="one column for each row"):
            target_ranks(scores([0.0, 1.0]), [0, 1])
        with pytest.raises(RecGPTError, match="floating matrix"):
            target_ranks(np.zeros((1, 2), dtype=np.int64), [0])

    def test_a_difference_below_float32_is_a_tie_and_one_above_is_not(self):
        close = np.nextafter(np.float32(1), np.float32(2))
        assert target_ranks(scores([1.0, 1.0 + 1e-9]), [0])[0].tolist() == [2]
        assert target_ranks(scores([close, 1.0]), [0])[0].tolist() == [1]

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.data())
    def test_equals_a_count_by_hand(self, values, data):
        target = data.draw(st.integers(0, len(values) - 1))
        rank, ties = target_ranks(np.array([values], dtype=np.float32), [target])
        others = [v for column, v in enumerate(values) if column != target]
        assert rank[0] == 1 + sum(v >= values[target] for v in others)
        assert ties[0] == sum(v == values[target] for v in others)


class TestTopK:
    def test_best_first(self):
        assert top_k(scores([0.1, 0.9, 0.5, 0.7]), 3).tolist() == [[1, 3, 2]]

    def test_equal_scores_come_in_column_order(self):
        assert top_k(np.zeros((1, 50), dtype=np.float32), 4).tolist() == [[0, 1, 2, 3]]
        row = np.zeros(100, dtype=np.float32)
        row[[90, 20]] = 1
        assert top_k(row[None], 5).tolist() == [[20, 90, 0, 1, 2]]

    def test_missing_candidates_are_minus_one(self):
        assert top_k(scores([-INF, 0.5, -INF]), 2).tolist() == [[1, -1]]
        assert top_k(scores([0.1, 0.5]), 4).tolist() == [[1, 0, -1, -1]]

    def test_k_below_one_is_refused(self):
        with pytest.raises(RecGPTError, match="k: 0"):
            top_k(scores([0.1]), 0)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 10))
    def test_equals_a_stable_sort(self, values, k):
        wanted = sorted(range(len(values)), key=lambda column: (-values[column], column))[:k]
        best = top_k(np.array([values], dtype=np.float32), k)[0]
        assert best.tolist() == wanted + [-1] * (k - len(wanted))


class TestGains:
    # Ranks 1, 3, 10, 11 and a miss.
    rank = np.array([1, 3, 10, 11, MISS])

    def test_ndcg_is_one_over_log2_of_one_plus_rank(self):
        # log2(2) = 1; log2(4) = 2; log2(11) = 3.4594316; beyond 10: 0.
        np.testing.assert_allclose(ndcg_gain(self.rank, 10), [1, 0.5, 0.2890648, 0, 0], atol=1e-7)

    def test_recall_is_a_hit_or_not(self):
        assert recall_gain(self.rank, 10).tolist() == [1, 1, 1, 0, 0]
        assert recall_gain(self.rank, 1).tolist() == [1, 0, 0, 0, 0]

    def test_reciprocal_rank_has_no_cut_off(self):
        np.testing.assert_allclose(reciprocal_rank(self.rank), [1, 1 / 3, 0.1, 1 / 11, 0])


class TestRetrievalMetrics:
    def test_figures_by_hand(self):
        metrics = RetrievalMetrics((2,), item_popularity=[10, 20, 30, 40])
        metrics.update([1, 3], [[0, 1], [0, 2]])
        metrics.update([MISS], [[1, -1]])
        result = metrics.result()
        assert result["recall@2"] == pytest.approx(1 / 3)
        assert result["ndcg@2"] == pytest.approx(1 / 3)
        assert result["mrr"] == pytest.approx((1 + 1 / 3 + 0) / 3)
        assert result["coverage@2"] == pytest.approx(3 / 4)
        # Recommended: 0, 1, 0, 2, 1 with 10 + 20 + 10 + 30 + 20 train events.
        assert result["avg_popularity@2"] == pytest.approx(90 / 5)
        assert metrics.n_users == 3

    def test_blocks_do_not_matter(self):
        rng = np.random.Generator(np.random.PCG64(3))
        rank, columns = rng.integers(0, 30, 100), rng.integers(0, 40, (100, 10))
        whole, parts = (RetrievalMetrics((5, 10), np.arange(40)) for _ in range(2))
        whole.update(rank, columns)
        for low in range(0, 100, 7):
            parts.update(rank[low : low + 7], columns[low : low + 7])
        assert parts.result() == pytest.approx(whole.result(), rel=1e-12)

    def test_coverage_counts_each_cut_off_by_itself_over_the_candidates(self):
        metrics = RetrievalMetrics((1, 2), np.ones(10), n_candidates=4)
        metrics.update([1, 1], [[0, 1], [0, 2]])
        assert metrics.result()["coverage@1"] == pytest.approx(1 / 4)
        assert metrics.result()["coverage@2"] == pytest.approx(3 / 4)

    def test_no_user_is_an_error_not_a_nan(self):
        with pytest.raises(RecGPTError, match="none has a target"):
            RetrievalMetrics((10,), [1]).result()

    def test_too_few_columns_are_refused(self):
        with pytest.raises(RecGPTError, match=r"pass \[1, 10\]"):
            RetrievalMetrics((10,), [1]).update([1], [[0, 0]])

    @pytest.mark.parametrize("ks", [(), (0,)])
    def test_bad_cut_offs_are_refused(self, ks):
        with pytest.raises(RecGPTError, match="k:"):
            RetrievalMetrics(ks, [1])

    def test_no_candidate_is_refused(self):
        with pytest.raises(RecGPTError, match="none to rank"):
            RetrievalMetrics((1,), [])


class TestPairedInterval:
    def test_by_hand(self):
        # Differences 1, 0, 0, 1: mean .5, variance (4 x .25) / 3, standard error sqrt(1/12).
        interval = paired_interval([1, 0, 1, 1], [0, 0, 1, 0])
        half = 1.96 * (1 / 12) ** 0.5
        assert interval["difference"] == pytest.approx(0.5)
        assert interval["low"] == pytest.approx(0.5 - half, abs=1e-4)
        assert interval["high"] == pytest.approx(0.5 + half, abs=1e-4)

    def test_a_constant_difference_has_no_width(self):
        interval = paired_interval([0.3, 0.5], [0.2, 0.4])
        assert interval["low"] == pytest.approx(0.1)
        assert interval["high"] == pytest.approx(0.1)

    def test_bootstrap_agrees_with_the_normal_interval(self):
        rng = np.random.Generator(np.random.PCG64(0))
        a, b = rng.random(2_000), rng.random(2_000)
        normal, resampled = paired_interval(a, b), paired_interval(a, b, bootstrap=500)
        assert resampled["difference"] == normal["difference"]
        assert resampled["low"] == pytest.approx(normal["low"], abs=0.002)
        assert resampled["high"] == pytest.approx(normal["high"], abs=0.002)

    @pytest.mark.parametrize(("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
    def test_other_users_or_too_few_are_refused(self, a, b):
        with pytest.raises(RecGPTError, match="same two or more users"):
            paired_interval(a, b)

    def test_a_value_that_is_not_finite_is_refused(self):
        with pytest.raises(RecGPTError, match="value 1 is not finite"):
            paired_interval([1.0, np.nan], [1.0, 2.0])
