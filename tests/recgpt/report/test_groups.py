"""Groups of similar size, and means over them."""

from __future__ import annotations

import numpy as np
import pytest

from recgpt.report.groups import cut, means


def test_groups_cover_everything_once_and_never_part_equal_values() -> None:
    values = np.random.default_rng(0).geometric(0.1, 1000)
    groups = cut(values, most=5)
    assert sum(group.rows.astype(int) for group in groups).tolist() == [1] * 1000
    assert [group.low for group in groups[1:]] == sorted(group.low for group in groups[1:])
    assert all(a.high < b.low for a, b in zip(groups, groups[1:], strict=False))
    assert all(100 < group.n < 300 for group in groups)


def test_groups_by_hand() -> None:
    assert [group.label for group in cut(np.array([1, 2, 3, 4, 5, 6]), most=3)] == ["1–2", "3–4", "5–6"]
    assert [group.label for group in cut(np.array([7, 7, 7]), most=3)] == ["7"]
    assert cut(np.array([], np.int64)) == []
    zeros = cut(np.array([0, 0, 3, 4]), most=2, zero_apart=True)
    assert [(group.label, group.n) for group in zeros] == [("0", 2), ("3", 1), ("4", 1)]
    assert [group.label for group in cut(np.array([0, 0]), zero_apart=True)] == ["0"]
    assert [group.label for group in cut(np.array([950, 12_345, 2_000_000]), most=1)] == ["950–2M"]


def test_means_have_intervals_where_two_or_more_rows_are() -> None:
    groups = cut(np.array([1, 1, 1, 1, 9]), most=2)
    value, low, high = means(groups, np.array([0.0, 1, 0, 1, 1]))
    assert value == pytest.approx([0.5, 1])
    half = 1.959964 * np.sqrt(1 / 3) / 2  # variance of 0, 1, 0, 1 with n - 1 is 1/3
    assert low == pytest.approx([max(0, 0.5 - half), np.nan], nan_ok=True)
    assert high == pytest.approx([0.5 + half, np.nan], nan_ok=True)
